"""Rows are whole or refused: from files, from processes, and by the report."""

import json

import pytest

from eval import report
from eval.ranks import CHUNK, gather_rows, share
from eval.rows import check_whole, question_ids, read_rows, write_rows
from popen.data.safe_io import DataError
from popen.data.schema import write_dataset
from popen.distributed.ranks import Ranks

ROWS = [{"id": "b"}, {"id": "a"}]


def test_rows_come_back_in_their_order(tmp_path):
    write_rows(tmp_path / "rows.jsonl", ROWS)
    assert read_rows(tmp_path / "rows.jsonl", ["a", "b"]) == ROWS


@pytest.mark.parametrize(
    "rows, expected, message",
    [
        ([*ROWS, {"id": "a"}], None, "here: 1 ids stand twice, first 'a'"),
        (ROWS, ["a", "b", "d", "c"], "here: 2 ids are missing, first 'c'"),
        (ROWS, ["a"], "here: 1 ids were not asked for, first 'b'"),
    ],
)
def test_what_is_not_whole_is_refused(rows, expected, message):
    with pytest.raises(DataError, match=message):
        check_whole(rows, "here", expected)
    with pytest.raises(DataError, match=message):
        gather_rows(Ranks(), rows, expected or ["a", "b"], "here")


def test_gathered_rows_are_sorted_by_id():
    assert gather_rows(Ranks(), ROWS, ["b", "a"], "here") == ROWS[::-1]


@pytest.mark.parametrize(
    "text, message", [('{"id": "a"}\n[1]', ":2: not a row"), ("{}", ":1: not a"), ("", "no rows")]
)
def test_a_file_of_something_else_is_refused(tmp_path, text, message):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / "rows.jsonl")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.jsonl: no rows there"):
        read_rows(tmp_path / "nothing.jsonl")


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, CHUNK, 199, 200, 201, 779])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_every_picture_is_dealt_once_in_the_same_chunks(count, world):
    alone = share(Ranks(), count)
    dealt = [share(Ranks(rank, world), count) for rank in range(world)]
    assert sorted((c for own in dealt for c in own), key=lambda c: c.start) == alone
    assert [picture for chunk in alone for picture in chunk] == list(range(count))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


@pytest.fixture
def evaluated(tmp_path, samples):
    """A run whose evaluation of the first two of three pictures is whole."""
    rows = write_dataset(samples[:3], tmp_path / "data", "dev")
    folder = tmp_path / "eval" / "base"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"split": "dev", "pictures": 2}))
    ids = question_ids(rows, 2)
    assert ids == [q.id for sample in samples[:2] for q in sample.questions]
    write_rows(folder / "rows.jsonl", [{"id": name} for name in ids])
    return tmp_path, ids


def test_the_report_takes_whole_rows(evaluated):
    assert report.whole_summary(evaluated[0], "base")["pictures"] == 2


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda ids: ids[1:], "1 ids are missing"),
        (lambda ids: [*ids, ids[0]], "stand twice"),
        (lambda ids: [*ids, "scene-9-0"], "not asked for, first 'scene-9-0'"),
    ],
)
def test_the_report_refuses_others(evaluated, change, message):
    run, ids = evaluated
    write_rows(run / "eval" / "base" / "rows.jsonl", [{"id": name} for name in change(ids)])
    with pytest.raises(DataError, match=message):
        report.whole_summary(run, "base")
