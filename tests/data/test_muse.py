import copy
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from popen.data import rle
from popen.data.muse import listed, muse_row, read_muse
from popen.data.safe_io import DataError
from popen.data.schema import Sample, check_unique_ids, load_split

CONVERTER = Path(__file__).parents[2] / "data_tools" / "convert_muse.py"


def target(name, left, rephrased=None):
    made = {"category_id": 1, "category_name": name, "bbox": [left, 0, 10, 10]}
    made["segmentation"] = [[left, 0, left + 10, 0, left + 10, 10, left, 10]]
    return made if rephrased is None else {**made, "rephrased_name": rephrased}


MUG, FORK, CAR = target("mug", 0, "a red mug"), target("fork", 20), target("car_(automobile)", 30, " the old car. ")
RECORD = {
    "coco_url": "http://images.cocodataset.org/train2017/a.jpg",
    "height": 40,
    "width": 50,
    "ann_list": [MUG, FORK],
    "questions": ["What could hold tea?", "What is used at a meal?"],
    "answers": [[MUG], [MUG, FORK]],
    "text_answers": ["The red mug {seg} could.", None],
}
SECOND = {
    "file_name": "b.jpg",
    "height": 40,
    "width": 50,
    "ann_list": [CAR],
    "questions": ["What needs petrol?"],
    "answers": [[CAR]],
}


def change(*path, value=None):
    data = copy.deepcopy([RECORD, SECOND])
    *parents, last = path
    inner = data
    for key in parents:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return data


def write(folder, data, name="MUSE_train.json"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(data if isinstance(data, str) else json.dumps(data))
    for file in ("train2017/a.jpg", "train2014/b.jpg", "val2017/a.jpg"):
        path = folder / "coco" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 40), (len(file), 0, 0)).save(path)
    return folder / name


def convert(folder, data, index=0):
    pictures, _ = read_muse(write(folder, data))
    return muse_row(pictures[index], folder / "coco", "train", 10**6)


def test_sentences_and_lists(tmp_path):
    sample = Sample.from_row(convert(tmp_path, [RECORD, SECOND]).row)
    assert (sample.image_id, sample.objects) == ("muse/train/a", ("fork", "mug"))
    first, second = sample.questions
    assert (first.id, first.kind, first.question) == ("muse/train/a/0/0", "reasoning", "What could hold tea?")
    assert (first.answer, first.phrases) == ("The red mug <seg> could.", ("a red mug",))
    assert (second.answer, second.phrases) == ("A red mug <seg> and fork <seg>.", ("a red mug", "fork"))
    masks_THW = second.decoded_masks(40, 50)
    for mask_HW, left in zip(masks_THW, (0, 20), strict=True):
        expected = np.zeros((40, 50), dtype=bool)
        expected[:10, left : left + 10] = True
        assert np.array_equal(mask_HW, expected)


def test_names_and_folders(tmp_path):
    pictures, left_out = read_muse(write(tmp_path, [RECORD, SECOND]))
    assert [picture.file for picture in pictures] == ["train2017/a.jpg", "train2014/b.jpg"]
    assert not left_out
    sample = Sample.from_row(muse_row(pictures[1], tmp_path / "coco", "val", 10**6).row)
    assert (sample.objects, sample.questions[0].phrases) == (("car",), ("the old car",))
    assert (sample.questions[0].id, sample.questions[0].answer) == ("muse/val/b/1/0", "The old car <seg>.")
    assert listed(["a mug", "a fork", "a plate"]) == "A mug <seg>, a fork <seg> and a plate <seg>."


def test_records_of_a_picture_are_one_row_and_keep_their_numbers(tmp_path):
    """The released script scores by record, so what two records or one ask twice counts twice."""
    again = {**RECORD, "questions": ["What could hold tea?", "What is red?", "What is red?"], "answers": [[MUG]] * 3}
    again["text_answers"] = ["The red mug {seg} could.", None, None]
    pictures, left_out = read_muse(write(tmp_path, [RECORD, SECOND, again]))
    assert not left_out and [picture.file for picture in pictures] == ["train2017/a.jpg", "train2014/b.jpg"]
    assert [asked.question for asked in pictures[0].asked] == [*RECORD["questions"], *again["questions"]]
    sample = Sample.from_row(muse_row(pictures[0], tmp_path / "coco", "val", 10**6).row)
    assert [q.id for q in sample.questions] == [f"muse/val/a/{place}" for place in ("0/0", "0/1", "2/0", "2/1", "2/2")]


def test_an_evaluation_split_keeps_a_target_of_no_pixel(tmp_path):
    between = {**FORK, "segmentation": [[20.1, 3.1, 20.3, 3.1, 20.3, 3.3, 20.1, 3.3]]}
    (picture,), _ = read_muse(write(tmp_path, change(0, "answers", 1, value=[MUG, between])[:1]))
    made = muse_row(picture, tmp_path / "coco", "val", 10**6)
    masks_THW = Sample.from_row(made.row).questions[1].decoded_masks(40, 50)
    assert not made.left_out and masks_THW.any((1, 2)).tolist() == [True, False]


def test_what_is_left_out_is_counted(tmp_path):
    between = {**FORK, "segmentation": [[20.1, 3.1, 20.3, 3.1, 20.3, 3.3, 20.1, 3.3]]}  # no pixel's centre in it
    data = change(0, "answers", 1, value=[MUG, between])
    data[0]["text_answers"][0] = "The mug {seg} and the fork {seg}."
    made = convert(tmp_path, [*data, {**SECOND, "questions": [], "answers": []}])
    assert [question["answer"] for question in made.row["questions"]] == ["A red mug <seg>."]
    assert made.left_out == {
        "questions with a target of no pixel": 1,
        "sentences whose {seg} are not as many as the targets, which are listed instead": 1,
    }
    _, left_out = read_muse(write(tmp_path, [RECORD, {**SECOND, "questions": [], "answers": []}]))
    assert left_out == {"records without questions": 1}


FILES = {
    "object": ({"a": 1}, "not MUSE: expected a list"),
    "text": ("[3]", "record 0: not MUSE (TypeError"),
    "no size": (change(0, "height"), "record 0: not MUSE (KeyError"),
    "size as text": (change(0, "height", value="40"), "record 0: height and width must be whole numbers"),
    "no picture": (change(0, "coco_url"), "record 0: not MUSE (KeyError: 'coco_url')"),
    "fewer answers": (change(0, "answers", 1), "record 0: 2 questions, 1 answers, 2 text_answers"),
    "blank question": (change(0, "questions", 1, value=" "), "record 0: question 1 is blank"),
    "no target": (change(0, "answers", 1, value=[]), "record 0: question 1: no annotation answers it"),
    "mark in the text": (change(0, "text_answers", 0, value="A <seg>."), "question 0: text_answer must be text"),
    "no category": (change(0, "ann_list", 0, "category_name"), "record 0: not MUSE (KeyError: 'category_name')"),
    "listed twice": (
        [RECORD, SECOND, RECORD],
        "record 2: train2017/a.jpg is listed twice: the same as record 0; remove",
    ),
    "another size": ([RECORD, {**RECORD, "width": 60}], "train2017/a.jpg has another size in an earlier record"),
    "NaN": ('[{"height": NaN}]', "not a finite number"),
    "deep": ("[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_not_muse_are_named(tmp_path, name):
    data, message = FILES[name]
    with pytest.raises(DataError, match=r"^[^\n]*MUSE_train\.json[^\n]*$") as error:
        read_muse(write(tmp_path, data))
    assert message in str(error.value)


FAR = [[0, 0, 10, 0, 1e9, 10, 0, 10]]
ROWS = {
    "long RLE": (
        change(0, "answers", 0, 0, "segmentation", value={"size": [40, 50], "counts": [2001]}),
        "train2017/a.jpg: record 0, question 0: segmentation: RLE counts",
    ),
    "other RLE": (
        change(0, "answers", 0, 0, "segmentation", value=rle.encode(np.ones((50, 40), dtype=bool))),
        "question 0: segmentation: RLE of size [50, 40]",
    ),
    "far away": (change(0, "answers", 0, 0, "segmentation", value=FAR), "question 0: segmentation: polygon 0: point"),
    "none": (change(0, "answers", 0, 0, "segmentation"), "question 0: segmentation: polygons: expected a list"),
    "missing picture": (change(0, "coco_url", value="x/train2017/c.jpg"), "c.jpg: no such file"),
    "way out": (change(0, "coco_url", value="x/../secret.jpg"), "must be relative, without '..'"),
    "wrong size": (change(0, "width", value=60), "train2017/a.jpg: 50x40, MUSE says 60x40"),
}


@pytest.mark.parametrize("name", ROWS)
def test_pictures_that_cannot_be_used_are_named(tmp_path, name):
    data, message = ROWS[name]
    with pytest.raises(DataError, match=r"^[^\n]*$") as error:
        convert(tmp_path, data)
    assert message in str(error.value)


def test_a_target_needs_a_name(tmp_path):
    data = change(0, "answers", 0, 0, "rephrased_name")
    data[0]["answers"][0][0]["category_name"] = " "
    with pytest.raises(DataError, match="question 0: a target without rephrased_name and category_name"):
        convert(tmp_path, data)


def test_conversion_of_a_folder(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("convert_muse", CONVERTER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    write(tmp_path, [RECORD, SECOND])
    write(tmp_path, change(0, "coco_url", value="x/val2017/a.jpg")[:1], "MUSE_test_many.json")
    command = [str(tmp_path), str(tmp_path / "coco"), str(tmp_path / "out")]
    assert module.main(command) == 0
    output = capsys.readouterr().out
    assert "train: 2 images, 3 questions (reasoning 3), 4 targets" in output
    check_unique_ids(load_split(tmp_path / "out", "train"))
    assert load_split(tmp_path / "out", "test_many")["image_id"][:] == ["muse/test_many/a"]
    (tmp_path / "coco" / "train2014" / "b.jpg").unlink()
    assert module.main(command) == 1
    assert "b.jpg: no such file" in capsys.readouterr().err.splitlines()[-1]
    assert module.main([*command, "--most-bad", "1"]) == 0
    assert "left out: 1 bad pictures, named above" in capsys.readouterr().out
    assert module.main([str(tmp_path / "coco"), *command[1:]]) == 1
    assert r"no MUSE_*.json in it" in capsys.readouterr().err
