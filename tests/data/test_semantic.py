import random
import re

import numpy as np
import pytest
from PIL import Image

from popen.data.class_list import ClassList
from popen.data.safe_io import DataError
from popen.data.schema import SEG, Sample
from popen.data.semantic import (
    MOST_ASKED,
    LabelledPicture,
    Region,
    labelled_pictures,
    questions_for,
    read_regions,
    semantic_row,
)

CLASSES = ClassList({0: "Sky", 1: "Road", 2: "Car", 11: "Void"})


def region(name, top=0, size=8, kind="semantic"):
    mask_HW = np.zeros((40, 40), dtype=bool)
    mask_HW[top : top + size, :size] = True
    return Region(name, mask_HW, kind)


def ask(*regions, absent=(), seed=0):
    questions, left_out = questions_for("set/7", regions, absent, random.Random(seed))
    return {kind: [q for q in questions if q.kind == kind] for kind in {q.kind for q in questions}}, left_out


def test_a_class_alone_and_an_absent_one():
    asked, left_out = ask(region("sky"), absent=["sky", "car"])
    (sky,), (car,) = asked.pop("semantic"), asked.pop("no_target")
    assert asked == {} and not left_out
    assert (sky.id, sky.answer, sky.phrases) == ("set/7/0", "The sky <seg> is here.", ("sky",))
    assert "sky" in sky.question
    assert np.array_equal(sky.decoded_masks(40, 40)[0], region("sky").mask_HW)
    assert (car.id, car.answer, car.masks) == ("set/7/1", "There is no car in the picture.", ())
    assert "car" in car.question


def test_several_classes_at_once():
    regions = [region(name, 8 * index) for index, name in enumerate(("sky", "road", "tree"))]
    counts = set()
    for seed in range(20):
        (multi,) = ask(*regions, seed=seed)[0]["multi"]
        counts.add(len(multi.masks))
        first, *rest = multi.phrases
        middle = "".join(f", the {name} <seg>" for name in rest[:-1])
        assert multi.answer == f"The {first} <seg>{middle} and the {rest[-1]} <seg> are here."
        assert all(name in multi.question for name in multi.phrases)
        for name, mask in zip(multi.phrases, multi.decoded_masks(40, 40), strict=True):
            assert np.array_equal(mask, next(r.mask_HW for r in regions if r.name == name))
    assert counts == {2, 3}


def test_wordings_vary_and_answers_do_not():
    asked = [ask(region("clouds"), absent=["stairs"], seed=seed)[0] for seed in range(60)]
    for kind, answer in (
        ("semantic", "The clouds <seg> are here."),
        ("no_target", "There are no stairs in the picture."),
    ):
        questions = [made[kind][0] for made in asked]
        assert {question.answer for question in questions} == {answer}
        assert len({question.question for question in questions}) >= 6
    present = {made["semantic"][0].question.replace("clouds", "X") for made in asked}
    missing = {made["no_target"][0].question.replace("stairs", "X") for made in asked}
    assert present == missing  # the wording does not give away whether there is something
    assert "Are there any X? Segment them." in present
    assert ask(region("sky"), seed=3) == ask(region("sky"), seed=3)


def test_a_name_that_could_mean_another_region_is_not_asked():
    asked, left_out = ask(region("table"), region("pool table", 8), region("mug", 16), region("handle of the mug", 24))
    assert [q.phrases for q in asked["semantic"]] == [("handle of the mug",), ("mug",), ("pool table",)]
    assert left_out == {"regions whose name also fits another region": 1}


@pytest.mark.parametrize(("absent", "expected"), [(["table"], False), (["dining pool table"], False), (["car"], True)])
def test_nothing_is_absent_whose_name_fits_something(absent, expected):
    assert ("no_target" in ask(region("pool table"), absent=absent)[0]) == expected


def test_tiny_and_surplus_regions_are_counted():
    asked, left_out = ask(region("sky", size=3), absent=["sky"])
    assert asked == {}
    assert left_out == {"regions of fewer than 16 pixels": 1}
    asked, left_out = ask(*(region(f"thing {n}", kind="part") for n in range(MOST_ASKED + 2)))
    assert len(asked["part"]) == MOST_ASKED
    assert left_out == {f"regions beyond {MOST_ASKED} in a picture": 2}


def test_regions_of_a_label_map():
    labels_HW = np.array([[0, 0, 1], [3, 255, 11]])
    classes = ClassList({0: "Sky", 1: "Road", 3: "sky", 11: "Void"})
    regions, ignore_HW = read_regions(labels_HW, classes, {11, 255}, "a.png")
    assert [r.name for r in regions] == ["road", "sky"]
    assert regions[1].mask_HW.tolist() == [[True, True, False], [True, False, False]]  # two classes, one word
    assert ignore_HW.tolist() == [[False, False, False], [False, True, True]]


@pytest.mark.parametrize(("classes", "shown"), [(CLASSES, "7"), (ClassList({0: "sky"}, True), "#000007")])
def test_a_label_without_a_class_is_named(classes, shown):
    with pytest.raises(DataError, match=rf"^a\.png: 2 pixels of label {shown}, not in the class list; add it"):
        read_regions(np.array([[7, 7], [0, 0]]), classes, {255}, "a.png")


def picture(tmp_path, labels_HW, size=None):
    labels_HW = np.asarray(labels_HW, dtype=np.uint8)
    Image.fromarray(labels_HW).save(tmp_path / "a_label.png")
    Image.new("RGB", size or labels_HW.shape[::-1], "green").save(tmp_path / "a.png")
    return LabelledPicture("a", tmp_path / "a.png", tmp_path / "a_label.png")


def row(pair):
    return semantic_row(pair, "camvid/train", CLASSES, {11}, 0, 10**6)


def test_the_row_of_a_picture(tmp_path):
    labels_HW = np.zeros((20, 30))
    labels_HW[10:], labels_HW[0, :10] = 1, 11
    made = row(picture(tmp_path, labels_HW))
    read = Sample.from_row(made.row)
    assert (read.image_id, read.objects) == ("camvid/train/a", ("road", "sky"))
    assert read.decoded_ignore().sum() == 10
    assert made.row["image"]["bytes"] == (tmp_path / "a.png").read_bytes()
    assert {q.kind for q in read.questions} == {"semantic", "multi", "no_target"}
    assert [q.id for q in read.questions] == [f"camvid/train/a/{n}" for n in range(4)]
    assert read.questions[-1].answer == "There is no car in the picture."
    for question in read.questions:
        assert len(re.findall(SEG, question.answer)) == len(question.masks)
        assert not (question.decoded_masks(20, 30) & read.decoded_ignore()).any()
    assert row(picture(tmp_path, labels_HW)) == made


def test_uses_and_relations_come_after_the_names(tmp_path):
    """The sky lies on the road, which serves a car; nothing here is a target that a driver could hit."""
    labels_HW = np.zeros((20, 30))
    labels_HW[10:] = 1
    pair = picture(tmp_path, labels_HW)
    plain, more = (semantic_row(pair, "camvid/train", CLASSES, {11}, 0, 10**6, uses=u).row for u in (False, True))
    first = len(plain["questions"])
    assert more["questions"][:first] == plain["questions"]
    added = more["questions"][first:]
    assert [q["id"] for q in added] == [f"camvid/train/a/{first + n}" for n in range(len(added))]
    assert {q["kind"] for q in added} == {"use", "no_use", "relation"}
    Sample.from_row(more)


@pytest.mark.parametrize(
    ("pixels", "ignored", "asked"),
    [(15, {11}, False), (16, {11}, False), (0, {11}, True), (30, {3, 11}, False)],
    ids=["too small", "a target", "not there", "ignored"],
)
def test_there_is_nothing_to_hit_only_where_there_is_nothing(tmp_path, pixels, ignored, asked):
    """A road without cars, and a pedestrian of so many pixels, in 20 drawings of the questions."""
    classes = ClassList({0: "Sky", 1: "Road", 3: "Pedestrian", 11: "Void"})
    labels_HW = np.zeros((20, 30))
    labels_HW[10:] = 1
    labels_HW.flat[:pixels] = 3
    pair = picture(tmp_path, labels_HW)
    rows = [semantic_row(pair, "camvid/train", classes, ignored, seed, 10**6, uses=True).row for seed in range(20)]
    answers = {question["answer"] for row in rows for question in row["questions"]}
    assert ("There is nothing here that the driver could hit." in answers) == asked
    assert "There is nothing here that tells the rules." in answers


def test_nothing_is_called_absent_where_much_is_unlabelled(tmp_path):
    labels_HW = np.zeros((20, 30))
    labels_HW[:3] = 11  # 15 %
    made = row(picture(tmp_path, labels_HW))
    assert [question["kind"] for question in made.row["questions"]] == ["semantic"]
    assert made.left_out == {"questions for something absent where over 10% is unlabelled": 1}


def test_a_label_of_another_size_is_named(tmp_path):
    with pytest.raises(DataError, match=r"a_label\.png: 30x20, its picture is 20x30; fetch both again"):
        row(picture(tmp_path, np.zeros((20, 30)), size=(20, 30)))


def folders(root, pictures, labels):
    for folder, files in (("images", pictures), ("labels", labels)):
        (root / folder).mkdir()
        for name in files:
            (root / folder / name).write_bytes(b"x")
    return root / "images", root / "labels"


def test_pairs_by_name(tmp_path):
    where = folders(tmp_path, ["b.JPG", "a.png", "c.png", "notes.txt"], ["a_L.png", "b_L.png"])
    pairs, left_out = labelled_pictures(*where, suffix="_L")
    assert [(pair.name, pair.picture.name, pair.labels.name) for pair in pairs] == [
        ("a", "a.png", "a_L.png"),
        ("b", "b.JPG", "b_L.png"),
    ]
    assert left_out == {"pictures without a label PNG": 1}


@pytest.mark.parametrize(
    ("pictures", "labels", "message"),
    [
        (["a.jpg"], ["a.png", "b.png"], r"labels/b\.png: no picture b\.\* in .*images"),
        (["a.jpg", "a.png"], ["a.png"], r"images: a\.jpg and a\.png are one picture by name"),
        (["a.txt"], ["a.png"], r"images: no \.jpg, .* in it"),
        (["a.jpg"], [], r"labels: no \.png in it"),
    ],
)
def test_folders_that_do_not_fit_are_named(tmp_path, pictures, labels, message):
    with pytest.raises(DataError, match=message):
        labelled_pictures(*folders(tmp_path, pictures, labels))
    with pytest.raises(DataError, match="nowhere: no such folder"):
        labelled_pictures(tmp_path / "nowhere", tmp_path)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "set").mkdir()
    pair = picture(tmp_path / "set", np.zeros((20, 30)))
    for file in (pair.picture, pair.labels):
        file.rename(tmp_path / file.name)
        file.symlink_to(tmp_path / file.name)
        with pytest.raises(DataError, match="a link leads out of"):
            row(pair)
        file.unlink()
        (tmp_path / file.name).rename(file)
