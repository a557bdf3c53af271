"""Arms of one evaluation against its single pass, by hand."""

import json
import sys

import pytest

from eval import arm_tables
from popen.data.safe_io import DataError


def arm(intersection, union, hallucinated=0, named=1, predicted=1):
    return {
        "counts": [[intersection, union]], "hallucinated": hallucinated, "named": named, "predicted": predicted,
        "exact": not hallucinated,
    }  # fmt: skip


@pytest.fixture
def file(tmp_path):
    """Two pictures, a relation and a question without targets: the ensemble gains 40 of 200 pixels and denies."""
    rows = [
        {"id": "a", "picture": "p", "kind": "relation", "targets": 1,
         "arms": {"single": arm(50, 100, 1, 2), "ensemble": arm(90, 100)}},
        {"id": "b", "picture": "q", "kind": "none", "targets": 0,
         "arms": {"single": arm(0, 100), "ensemble": arm(0, 0, 0, 0, 0)}},
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


def test_by_hand(file):
    table = arm_tables.tabulate(file, "single")
    assert list(table) == ["single", "ensemble"]
    own = table["ensemble"]
    assert own["ciou"]["value"] == pytest.approx(0.9) and own["ciou"]["difference"] == pytest.approx(0.9 - 0.25)
    assert own["hard_ciou"]["difference"] == pytest.approx(0.4)
    assert own["chair_i"]["difference"] == pytest.approx(-1 / 3)
    assert own["no_target_acc"]["value"] == 1 and table["single"]["no_target_acc"]["value"] == 0
    assert table["single"]["ciou"]["difference_95"] == [0, 0] and own["n"] == 2


def test_printed_and_written(file, tmp_path, monkeypatch, capsys):
    argv = ["eval.arm_tables", "--rows", str(file), "--out", str(tmp_path / "table")]
    monkeypatch.setattr(sys, "argv", argv)
    arm_tables.main()
    assert "| ensemble | 90.00 [90.00, 90.00] |" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "table.json").read_text())) == {"single", "ensemble"}
    assert (tmp_path / "table.svg").read_text().count("<circle") == 1


def test_what_is_not_there_is_named(file, tmp_path):
    with pytest.raises(DataError, match="no arm 'double'; there: single, ensemble"):
        arm_tables.tabulate(file, "double")
    with pytest.raises(DataError, match="no rows"):
        arm_tables.tabulate(tmp_path / "nothing.jsonl", "single")
