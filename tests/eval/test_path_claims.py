"""The bars of the whole path, from rows whose numbers are known by hand."""

import json

import pytest

from eval import path_claims
from popen.data.safe_io import DataError


def row(number, picture, named, hallucinated, **counts):
    said = {"named": named, "hallucinated": hallucinated}
    arms = {arm: said | {"counts": [list(slot)]} for arm, slot in counts.items()}
    return {"id": f"q{number}", "picture": picture, "arms": arms}


BEFORE = [row(0, "a", 2, 1, single=(50, 100)), row(1, "b", 2, 1, single=(25, 100))]
AFTER = [
    row(1, "b", 4, 1, single=(50, 100), ensemble=(60, 100)),
    row(0, "a", 4, 1, single=(60, 100), ensemble=(70, 100)),
]


def test_gain_and_drop_by_hand():
    pairs = path_claims.paired(AFTER, BEFORE)
    assert path_claims.ciou_gain(pairs, "single", "single") == pytest.approx(55 - 37.5)
    assert path_claims.chair_drop(pairs) == pytest.approx(50)  # 2 of 8 against 2 of 4
    assert path_claims.ciou_gain(path_claims.paired(AFTER, AFTER), "ensemble", "single") == pytest.approx(10)


def test_rows_are_paired_by_id_not_by_place():
    for group in path_claims.paired(AFTER, BEFORE):
        for a, b in group:
            assert a["id"] == b["id"]


def test_nothing_hallucinated_before_is_no_drop():
    clean = [row(0, "a", 2, 0, single=(1, 2))]
    assert path_claims.chair_drop(path_claims.paired(clean, clean)) == 0


def test_other_questions_are_refused():
    with pytest.raises(DataError, match="different questions"):
        path_claims.paired(AFTER, BEFORE[:1])


def test_a_question_twice_and_a_missing_file_are_refused(tmp_path):
    file = tmp_path / "rows.jsonl"
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        path_claims.read_rows(file)
    file.write_text((json.dumps(BEFORE[0]) + "\n") * 2)
    with pytest.raises(DataError, match="twice"):
        path_claims.read_rows(file)


def test_the_claims_of_a_run(tmp_path):
    for name, rows in (("base", BEFORE), ("continued_sft", BEFORE), ("popen", AFTER)):
        folder = tmp_path / "eval" / name
        folder.mkdir(parents=True)
        (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    summary = {"arms": {"single": {"n": 2, "ciou": 0.375, "ciou_95": [0.25, 0.5]}}}
    (tmp_path / "eval" / "base" / "summary.json").write_text(json.dumps(summary))
    made = {c.what: c for c in path_claims.measure(tmp_path, "make it", seed=3)}
    assert made["base, cIoU in free generation"].met is False
    gain = made["POPEN single pass − base, points of cIoU"]
    assert (gain.met, gain.value, gain.seeds, gain.command) == (True, pytest.approx(17.5), (3,), "make it")
    assert gain.low == pytest.approx(10) and gain.high == pytest.approx(25)  # only a, only b
    assert made["CHAIR_i of POPEN below same-budget continued SFT, percent"].met is True
    assert made["POPEN ensemble − single pass, points of cIoU"].met is True


def test_the_cost_of_the_demo(tmp_path):
    (tmp_path / "cost.json").write_text('{"seconds": 960.0, "peak_gib": 3.5}')
    minutes, memory = path_claims.cost(tmp_path, "make demo", seed=0)
    assert (minutes.value, minutes.bar, minutes.met) == (16.0, 15.0, False)
    assert (memory.value, memory.bar, memory.met) == (3.5, 6.0, True)
