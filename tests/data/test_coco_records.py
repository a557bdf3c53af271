import pytest

from popen.data.coco_records import check_once
from popen.data.safe_io import DataError


def test_what_stands_once_passes():
    check_once("a.json", "images", [{"id": 1}, {"id": 2}], "id")
    check_once("a.json", "images", [], "id")


@pytest.mark.parametrize(
    ("values", "message"),
    [([3, 1, 3], "id 3 stands 2 times"), (["x", "x", "y", "x"], "id 'x' stands 3 times")],
)
def test_what_stands_twice_is_named(values, message):
    with pytest.raises(DataError, match=f"^a.json: images: {message}; keep one of them$"):
        check_once("a.json", "images", [{"id": value} for value in values], "id")


@pytest.mark.parametrize("record", [{}, {"id": [1]}, 3])
def test_what_is_no_record_is_for_the_caller(record):
    with pytest.raises((KeyError, TypeError)):
        check_once("a.json", "images", [record], "id")
