import pytest

from popen.data.conversion import Conversion, Converted, convert_split
from popen.data.safe_io import DataError
from popen.data.scene_questions import sample
from popen.data.schema import load_split

SAMPLES = [sample(seed) for seed in range(4)]


def convert(bad=(), empty=()):
    def one(index):
        if index in bad:
            raise DataError(f"picture {index}: broken")
        row = SAMPLES[index].to_row()
        return Converted(None if index in empty else row, {"regions of fewer than 16 pixels": 2})

    return one


def test_a_split_and_what_was_left_out(tmp_path, capsys):
    made = convert_split(range(4), convert(bad=[1], empty=[3]), tmp_path, "train", most_bad=1)
    assert load_split(tmp_path, "train")["image_id"][:] == [SAMPLES[0].image_id, SAMPLES[2].image_id]
    questions = [question for index in (0, 2) for question in SAMPLES[index].questions]
    assert made.images == 2
    assert sum(made.kinds.values()) == len(questions)
    assert made.targets == sum(len(question.masks) for question in questions)
    assert made.left_out == {"regions of fewer than 16 pixels": 6, "pictures of which nothing can be asked": 1}
    assert made.bad == ("picture 1: broken",)
    assert "left out: picture 1: broken" in capsys.readouterr().err


def test_one_bad_picture_too_many_writes_nothing(tmp_path):
    with pytest.raises(DataError, match=r"^picture 1: broken$"):
        convert_split(range(4), convert(bad=[1]), tmp_path, "train")
    assert not (tmp_path / "train").exists()


def test_a_split_of_nothing_says_why(tmp_path):
    message = r"out: split val: no picture came of 2 \(2 pictures of which nothing can be asked, 4 regions .*\); check"
    with pytest.raises(DataError, match=message):
        convert_split(range(2), convert(empty=[0, 1]), tmp_path / "out", "val")
    with pytest.raises(DataError, match=r"no picture came of 0 \(none there\)"):
        convert_split([], convert(), tmp_path / "out", "val")


def test_an_error_stands_on_a_line_of_its_own(tmp_path, capsys):
    def twice(index):
        return Converted(SAMPLES[0].to_row())

    with pytest.raises(DataError, match="an earlier row has this question id"):
        convert_split(range(2), twice, tmp_path, "train")
    assert capsys.readouterr().err.endswith("\n")


def test_the_report_in_words():
    made = Conversion("val", 2, 9, {"part": 3, "multi": 1}, {"b": 4, "a": 1}, ("x", "y"))
    assert made.lines() == [
        "val: 2 images, 4 questions (multi 1, part 3), 9 targets",
        "  left out: 1 a",
        "  left out: 4 b",
        "  left out: 2 bad pictures, named above",
    ]
