import json

import numpy as np
import pytest
from PIL import Image

from popen.data.reasonseg import (
    Explanation,
    Region,
    paint,
    read_annotation,
    read_explanations,
    reasonseg_row,
    split_names,
)
from popen.data.safe_io import DataError
from popen.data.schema import Sample

HEIGHT, WIDTH = 20, 30
LARGE, SMALL = [[2, 2], [2, 15], [25, 15], [25, 2]], [[5, 5], [5, 9], [9, 9], [9, 5]]


def shape(label, points):
    return {"label": label, "points": points, "shape_type": "polygon"}


def annotation(**changes):
    target = [shape("target", LARGE)]
    return {"text": ["the thing to sit on", "What can one sit on?"], "is_sentence": False, "shapes": target} | changes


def write(folder, name="a", **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(annotation(**changes)))
    Image.new("RGB", (WIDTH, HEIGHT), (9, 99, 9)).save(folder / f"{name}.jpg")
    return folder


def region(points, is_ignored=False):
    return Region(tuple(map(tuple, points)), is_ignored)


def test_small_regions_are_painted_over_large_ones():
    big, small = 14 * 24, 5 * 5  # the outline belongs to a polygon
    for regions in ((region(LARGE), region(SMALL, True)), (region(SMALL, True), region(LARGE))):
        target_HW, ignore_HW = paint(regions, HEIGHT, WIDTH)
        assert (target_HW.sum(), ignore_HW.sum()) == (big - small, small)
        assert ignore_HW[5:10, 5:10].all() and not (target_HW & ignore_HW).any()
    target_HW, ignore_HW = paint((region(LARGE, True), region(SMALL)), HEIGHT, WIDTH)
    assert (target_HW.sum(), ignore_HW.sum()) == (small, big - small)


def test_of_two_of_one_area_the_earlier_lies_on_top():
    here, there = SMALL, [[x + 2, y] for x, y in SMALL]
    target_HW, ignore_HW = paint((region(here), region(there, True)), HEIGHT, WIDTH)
    assert (target_HW.sum(), ignore_HW.sum()) == (25, 10)
    target_HW, ignore_HW = paint((region(here, True), region(there)), HEIGHT, WIDTH)
    assert (target_HW.sum(), ignore_HW.sum()) == (10, 25)


def test_nothing_is_painted_of_no_regions():
    target_HW, ignore_HW = paint((), HEIGHT, WIDTH)
    assert target_HW.shape == ignore_HW.shape == (HEIGHT, WIDTH)
    assert not target_HW.any() and not ignore_HW.any()


def test_labels(tmp_path):
    labels = ("target", "ignore", "Ignore_2", "FLAG", "to ignore", "anything")
    shapes = [shape(label, [] if label == "FLAG" else SMALL) for label in labels]
    read = read_annotation(write(tmp_path, shapes=shapes) / "a.json")
    assert [r.is_ignored for r in read.regions] == [False, True, True, True, False]
    assert read.has_target
    assert not read_annotation(write(tmp_path, shapes=[shape("ignore", SMALL)]) / "a.json").has_target


def test_evaluation_asks_the_first_query(tmp_path):
    row = reasonseg_row(write(tmp_path), "a", "val", Explanation("unused", "unused"))
    made = Sample.from_row(row)
    assert (made.image_id, made.objects) == ("val/a", ())
    (asked,) = made.questions
    assert (asked.id, asked.kind) == ("reasonseg/val/a/0", "reasonseg_short")
    assert asked.question == "What is the thing to sit on in this image? Please output segmentation mask."
    assert (asked.answer, asked.phrases) == ("The target <seg> is here.", ("target",))
    assert asked.decoded_masks(HEIGHT, WIDTH).sum() == 14 * 24
    assert row["image"]["bytes"] == (tmp_path / "a.jpg").read_bytes()


def test_training_asks_every_query_and_the_explanation(tmp_path):
    row = reasonseg_row(write(tmp_path, is_sentence=True), "a", "train", Explanation("Where to sit?", "Soft it is."))
    made = Sample.from_row(row)
    assert [(q.kind, q.question, q.answer) for q in made.questions] == [
        ("reasonseg_long", "the thing to sit on Please output segmentation mask.", "The target <seg> is here."),
        ("reasonseg_long", "What can one sit on? Please output segmentation mask.", "The target <seg> is here."),
        (
            "reasonseg_explained",
            "Where to sit? Please output segmentation mask and explain why.",
            "The target <seg> is here. Soft it is.",
        ),
    ]
    assert [q.id for q in made.questions] == [f"reasonseg/train/a/{n}" for n in range(3)]


def test_ignored_pixels_reach_the_row(tmp_path):
    shapes = [shape("target", LARGE), shape("ignore", SMALL)]
    made = Sample.from_row(reasonseg_row(write(tmp_path, shapes=shapes), "a", "test"))
    assert np.argwhere(made.decoded_ignore()).min(0).tolist() == [5, 5]
    assert made.decoded_ignore().sum() == 25
    assert not (made.decoded_ignore() & made.questions[0].decoded_masks(HEIGHT, WIDTH)).any()


def test_a_picture_without_target_is_asked_with_an_empty_mask(tmp_path):
    made = Sample.from_row(reasonseg_row(write(tmp_path, shapes=[]), "a", "test"))
    assert made.questions[0].decoded_masks(HEIGHT, WIDTH).shape == (1, HEIGHT, WIDTH)
    assert not made.questions[0].decoded_masks(HEIGHT, WIDTH).any()


def test_windows_text_is_read(tmp_path):
    write(tmp_path)
    text = json.dumps(annotation(text=["the café’s chair"]), ensure_ascii=False)
    for encoding in ("utf-8", "cp1252"):
        (tmp_path / "a.json").write_bytes(text.encode(encoding))
        assert read_annotation(tmp_path / "a.json").queries == ("the café’s chair",)
    (tmp_path / "a.json").write_bytes(text.encode("cp1252") + b"\x81")
    with pytest.raises(DataError, match=r"a\.json:1: not UTF-8 or cp1252"):
        read_annotation(tmp_path / "a.json")


NAN = float("nan")
BAD = {
    "no text": ({"text": []}, "'text' must be a list of at least one query"),
    "blank": ({"text": ["a", " "]}, "none blank"),
    "text alone": ({"text": "a"}, "'text' must be a list"),
    "sentence": ({"is_sentence": "no"}, "'is_sentence' must be true or false, not 'no'"),
    "shapes": ({"shapes": None}, "'shapes' must be a list"),
    "no label": ({"shapes": [{"points": SMALL}]}, "shape 0: no label"),
    "no points": ({"shapes": [shape("target", None)]}, "shape 0: 'points' must be a list of pairs"),
    "flat": ({"shapes": [shape("target", [1, 2, 3])]}, "shape 0: 'points' must be a list of pairs"),
    "two points": ({"shapes": [shape("target", SMALL), shape("target", SMALL[:2])]}, "region 1: polygon: 2 points"),
    "far": ({"shapes": [shape("target", [*SMALL, [900, 3]])]}, r"region 0: polygon: point \(900, 3\) lies outside"),
    "nan": ({"shapes": [shape("target", [*SMALL, [NAN, 3]])]}, "NaN is not a finite number"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_annotation_is_named(tmp_path, name):
    changes, message = BAD[name]
    with pytest.raises(DataError, match=f"a.json: .*{message}") as error:
        reasonseg_row(write(tmp_path, **changes), "a", "val")
    assert "\n" not in str(error.value)


def test_files_that_attack_the_reader_are_named(tmp_path):
    write(tmp_path)
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match=r"a\.json: nested too deeply"):
        reasonseg_row(tmp_path, "a", "val")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DataError, match=r"a\.json: expected an object with text"):
        reasonseg_row(tmp_path, "a", "val")
    write(tmp_path)
    with pytest.raises(DataError, match=r"a\.jpg: 30x20, over 100 pixels"):
        reasonseg_row(tmp_path, "a", "val", max_pixels=100)
    (tmp_path / "folder").mkdir()
    for file in ("b.jpg", "b.json"):
        (tmp_path / "folder" / file).symlink_to(tmp_path / file.replace("b", "a"))
    with pytest.raises(DataError, match="a link leads out of"):
        reasonseg_row(tmp_path / "folder", "b", "val")
    with pytest.raises(DataError, match="must be relative"):
        reasonseg_row(tmp_path / "folder", "../a", "val")


def test_pictures_are_listed_by_name(tmp_path):
    for name in ("b", "a", "c"):
        write(tmp_path / "val", name)
    assert split_names(tmp_path, "val") == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"no split 'train'; there: val$"):
        split_names(tmp_path, "train")
    with pytest.raises(DataError, match=r"no split '\.\.'; there: val$"):
        split_names(tmp_path, "..")
    (tmp_path / "val" / "b.json").unlink()
    with pytest.raises(DataError, match=r"b\.jpg: no b\.json beside it"):
        split_names(tmp_path, "val")
    (tmp_path / "val" / "b.jpg").unlink()
    (tmp_path / "val" / "c.jpg").unlink()
    with pytest.raises(DataError, match=r"c\.json: no c\.jpg beside it"):
        split_names(tmp_path, "val")
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"test: no pictures"):
        split_names(tmp_path, "test")


def test_explanations(tmp_path):
    path = tmp_path / "train.json"
    row = {"image": "a.jpg", "query": "Where?", "outputs": "Here. "}
    path.write_text(json.dumps([row]))
    assert read_explanations(path) == {"a": Explanation("Where?", "Here.")}
    for data, message in (
        ([row, row], r"row 1: a\.jpg is listed twice"),
        ([row, {**row, "outputs": ""}], "row 1: image, query and outputs must be text, none blank"),
        ([None], "row 0: image, query"),
        ({}, "expected a list"),
    ):
        path.write_text(json.dumps(data))
        with pytest.raises(DataError, match=rf"train\.json: {message}"):
            read_explanations(path)
