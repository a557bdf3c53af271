"""Published rows are whole, labelled, and those of the tables they come from."""

import json

import pytest

from eval import published_rows
from eval.benchmark_report import markdown
from eval.published_rows import PROTOCOLS, Published, read_published
from popen.data.safe_io import DataError

SPLITS = {
    "reasonseg": {"val", "test"}, "refcoco": {"val", "testA", "testB"}, "refcoco+": {"val", "testA", "testB"},
    "refcocog": {"val", "test"}, "grefcoco": {"val"},
}  # fmt: skip


@pytest.mark.parametrize("name, count", [("reasonseg", 34), ("refcoco", 77), ("grefcoco", 2)])
def test_rows_are_whole(name, count):
    rows = read_published(name)
    assert len(rows) == count
    for row in rows:
        assert set(row.numbers) <= SPLITS[row.dataset] and row.protocol in PROTOCOLS
        assert all(0 < value < 100 for split in row.numbers.values() for value in split.values())
    assert len({(row.system, row.dataset, row.source) for row in rows}) == len(rows)


def numbers_of(name, system, dataset):
    (row,) = [r for r in read_published(name) if (r.system, r.dataset) == (system, dataset)]
    return row.numbers


def test_some_numbers_are_those_of_the_papers():
    own = numbers_of("reasonseg", "LISA-7B (ft)", "reasonseg")
    assert own == {"val": {"giou": 52.9, "ciou": 54.0}, "test": {"giou": 47.3, "ciou": 48.4}}
    assert numbers_of("reasonseg", "POPEN", "reasonseg") == {"test": {"giou": 60.2}}
    own = numbers_of("refcoco", "POPEN-7B (ft)", "refcocog")
    assert own == {"val": {"ciou": 75.4}, "test": {"ciou": 75.6}}
    assert numbers_of("refcoco", "PixelLM-7B", "refcoco")["testB"] == {"ciou": 68.2}
    assert numbers_of("grefcoco", "GSVA-7B (ft)", "grefcoco")["val"] == {"giou": 66.5, "ciou": 63.3, "n_acc": 62.4}


def test_rows_from_elsewhere_say_so():
    for name in ("reasonseg", "refcoco"):
        for row in read_published(name):
            if row.system.startswith("POPEN"):
                assert "third-party" in row.note and row.protocol == "unknown"


@pytest.mark.parametrize(
    "change, message",
    [({"source": ""}, "row 0: no source"), ({"protocol": "guess"}, "'guess' is none of free, forced")],
)
def test_a_row_without_its_origin_is_refused(monkeypatch, tmp_path, change, message):
    row = {"system": "A", "dataset": "d", "protocol": "free", "numbers": {"val": {"giou": 1.0}}, "source": "s"}
    (tmp_path / "x.json").write_text(json.dumps([row | change]))
    monkeypatch.setattr(published_rows, "FOLDER", tmp_path)
    with pytest.raises(DataError, match=message):
        read_published("x")


def test_only_rows_of_the_split_are_printed():
    summary = {
        "split": "test", "command": "c", "commit": "0", "machine": "m", "thresholds": {}, "pictures": 1,
        "pictures_of_split": 1, "model": "ours",
        "results": [{"arm": "single", "protocol": "free", "n": 3, "giou": 0.5, "giou_95": (0.25, 1.0), "ciou": None}],
    }  # fmt: skip
    theirs = (
        Published("A", "d", "forced", {"test": {"giou": 61.0}}, "paper", "seen"),
        Published("B", "d", "free", {"val": {"giou": 62.0}}, "paper"),
    )
    text = markdown("T", summary, {"giou": "gIoU", "ciou": "cIoU"}, theirs)
    assert "| **ours**, single | free generation | 50.0 [25.0, 100.0] | – | 3 | this run |" in text
    assert "| A | teacher-forced | 61.0 | – | – | paper; seen |" in text and "| B |" not in text
