import copy
import json

import numpy as np
import pytest
from PIL import Image

from popen.data import rle
from popen.data.parts import PartCategory, part_category, part_row, read_parts
from popen.data.safe_io import DataError
from popen.data.schema import Sample

MUG, HANDLE, CAR, DOG, WHEEL = 1, 2, 3, 4, 5


def box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def annotation(number, category, segmentation, image=1):
    return {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation}


DATA = {
    "categories": [
        {"id": MUG, "name": "mug"},
        {"id": HANDLE, "name": "mug:handle"},
        {"id": CAR, "name": "car_(automobile)"},
        {"id": DOG, "name": "dog"},
        {"id": WHEEL, "name": "car_(automobile):wheel"},
    ],
    "images": [
        {"id": 1, "file_name": "train2017/a.jpg", "height": 40, "width": 50, "neg_category_ids": [DOG, 999]},
        {"id": 2, "file_name": "train2017/b.jpg", "height": 40, "width": 50},
    ],
    "annotations": [
        annotation(1, MUG, box(0, 0, 20, 20)),
        annotation(2, HANDLE, box(20, 5, 25, 15)),
        annotation(3, MUG, box(30, 0, 45, 20)),
        annotation(4, HANDLE, box(45, 5, 50, 15)),
        annotation(5, CAR, box(0, 0, 30, 30), image=2),
    ],
}


def change(*path, value=None):
    data = copy.deepcopy(DATA)
    *parents, last = path
    inner = data
    for key in parents:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return data


def read(tmp_path, data=DATA):
    (tmp_path / "parts.json").write_text(json.dumps(data))
    return read_parts(tmp_path / "parts.json", "paco_lvis/train")


def convert(tmp_path, data=DATA, image=1):
    (tmp_path / "train2017").mkdir(exist_ok=True)
    for name in "ab":
        Image.new("RGB", (50, 40), "blue").save(tmp_path / "train2017" / f"{name}.jpg")
    return part_row(read(tmp_path, data), image, tmp_path, 0, 10**6)


@pytest.mark.parametrize(
    ("name", "expected", "phrase"),
    [
        ("mug", PartCategory("mug"), "mug"),
        ("mug:handle", PartCategory("mug", "handle"), "handle of the mug"),
        ("car_(automobile):side_mirror", PartCategory("car", "side mirror"), "side mirror of the car"),
    ],
)
def test_names_of_parts(name, expected, phrase):
    assert part_category(name) == expected
    assert expected.phrase == phrase


def test_annotations_of_a_category_are_one_target(tmp_path):
    made = convert(tmp_path)
    sample = Sample.from_row(made.row)
    assert (sample.image_id, sample.objects) == ("paco_lvis/train/1", ("handle of the mug", "mug"))
    handle, mug, multi, absent = sample.questions
    assert (handle.kind, handle.answer) == ("part", "The handle of the mug <seg> is here.")
    assert (mug.kind, mug.answer) == ("semantic", "The mug <seg> is here.")
    assert multi.kind == "multi" and len(multi.masks) == 2
    assert absent.answer == "There is no dog in the picture."  # the one that PACO says is not there
    expected = np.zeros((40, 50), dtype=bool)
    expected[5:15, 20:25] = expected[5:15, 45:50] = True
    assert np.array_equal(handle.decoded_masks(40, 50)[0], expected)
    assert not made.left_out
    assert convert(tmp_path) == made


def test_without_word_of_the_absent_all_without_a_label_are(tmp_path):
    sample = Sample.from_row(convert(tmp_path, image=2).row)
    car, absent = sample.questions
    assert car.phrases == ("car",)
    assert absent.answer in ("There is no dog in the picture.", "There is no mug in the picture.")


def test_categories_that_are_not_labelled_whole_are_not_asked(tmp_path):
    data = change("images", 0, "not_exhaustive_category_ids", value=[MUG])
    data["images"][0]["neg_category_ids"] = [MUG]
    made = convert(tmp_path, data)
    assert made.row["questions"] == []
    assert made.left_out == {"regions of categories that are not labelled whole": 2}


def test_forms_of_segmentation(tmp_path):
    mask_HW = np.zeros((40, 50), dtype=bool)
    mask_HW[3:30, 4:20] = True
    coded = rle.encode(mask_HW)
    made = convert(tmp_path, change("annotations", 4, "segmentation", value=coded), image=2)
    assert made.row["questions"][0]["masks"] == [coded]


FILES = {
    "image twice": (change("images", 1, "id", value=1), "images: id 1 stands 2 times"),
    "file twice": (
        change("images", 1, "file_name", value="train2017/a.jpg"),
        "images: file_name 'train2017/a.jpg' stands 2 times",
    ),
    "category twice": (change("categories", 1, "id", value=1), "categories: id 1 stands 2 times"),
    "three parts": (change("categories", 1, "name", value="mug:a:b"), "category 'mug:a:b': expected"),
    "no part": (change("categories", 1, "name", value="mug:"), "category 'mug:': expected"),
    "strange image": (change("annotations", 0, "image_id", value=9), "annotation 1: no image 9 in the file"),
    "strange category": (change("annotations", 0, "category_id", value=9), "annotation 1: no category 9"),
    "no categories": (change("categories"), "not COCO-style JSON"),
    "list": ([1], "not COCO-style JSON"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_contradict_themselves_are_named(tmp_path, name):
    data, message = FILES[name]
    with pytest.raises(DataError, match=r"^[^\n]*parts\.json: [^\n]*$") as error:
        read(tmp_path, data)
    assert message in str(error.value)


LONG = {"size": [40, 50], "counts": [2001]}
ROWS = {
    "no picture": (change("images", 0, "file_name", value="train2017/c.jpg"), "c.jpg: no such file"),
    "way out": (change("images", 0, "file_name", value="../a.jpg"), "must be relative, without '..'"),
    "size": (change("images", 0, "width", value=60), "image 1: a.jpg is 50x40, not 60x40"),
    "no target": (change("annotations", 0, "segmentation"), "image 1: annotation 1: no segmentation"),
    "empty": (change("annotations", 0, "segmentation", value=[]), "image 1: annotation 1: no segmentation"),
    "long RLE": (change("annotations", 0, "segmentation", value=LONG), "image 1: annotation 1: segmentation: RLE"),
    "numbers": (change("images", 0, "neg_category_ids", value=["x"]), "image 1: 'neg_category_ids' must be a list"),
}


@pytest.mark.parametrize("name", ROWS)
def test_images_that_cannot_be_used_are_named(tmp_path, name):
    data, message = ROWS[name]
    with pytest.raises(DataError, match=r"^[^\n]*$") as error:
        convert(tmp_path, data)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"), [('{"a": [NaN]}', "not a finite number"), ("[" * 100_000, "nested too deeply")]
)
def test_json_that_is_none_is_named(tmp_path, text, message):
    (tmp_path / "parts.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_parts(tmp_path / "parts.json", "paco_lvis/train")
