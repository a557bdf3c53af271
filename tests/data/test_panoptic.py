import importlib.util
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from popen.data import rle
from popen.data.panoptic import Category, Segment, clean_name, in_dev, questions_for, read_panoptic
from popen.data.safe_io import DataError
from popen.data.schema import Sample, check_unique_ids, load_split

CONVERTER = Path(__file__).parents[2] / "data_tools" / "convert_panoptic.py"
NAMES = {1: ("person", 1), 2: ("dog", 1), 3: ("giraffe", 1), 4: ("grass-merged", 0), 5: ("wall-other-merged", 0)}
NAMES[6] = ("wall-brick", 0)
CATEGORIES = tuple(Category(clean_name(name), bool(thing)) for name, thing in NAMES.values())
IMAGE = {"id": 7, "height": 20, "width": 40}


def load_converter():
    spec = importlib.util.spec_from_file_location("convert_panoptic", CONVERTER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def segment(number, top, left, size=4, crowd=False):
    mask_HW = np.zeros((20, 40), dtype=bool)
    mask_HW[top : top + size, left : left + size] = True
    return Segment(CATEGORIES[number - 1], mask_HW, crowd)


def ask(*segments, seed=0):
    questions = questions_for(IMAGE, segments, CATEGORIES, random.Random(seed))
    return {kind: [q for q in questions if q.kind == kind] for kind in {q.kind for q in questions}}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("grass-merged", "grass"),
        ("wall-other-merged", "wall"),
        ("wall-brick", "brick wall"),
        ("floor-wood", "wooden floor"),
        ("door-stuff", "door"),
        ("water-other", "water"),
        ("window-blind", "window blind"),
        ("hot dog", "hot dog"),
    ],
)
def test_names_become_words(name, words):
    assert clean_name(name) == words


def test_a_single_thing_and_stuff():
    asked = ask(segment(2, 1, 1), segment(4, 10, 10))
    (dog,), (grass,), (absent,) = asked.pop("referring"), asked.pop("stuff"), asked.pop("no_target")
    assert asked == {}
    assert dog.answer == "The dog <seg> is here."
    assert "dog" in dog.question
    assert np.array_equal(dog.decoded_masks(20, 40)[0], segment(2, 1, 1).mask_HW)
    assert (grass.question, grass.answer) == ("Where is the grass?", "The grass <seg> is here.")
    assert (absent.phrases, absent.masks) == ((), ())
    assert absent.question in ("Is there a giraffe? Segment it.", "Is there a person? Segment it.")
    assert absent.answer.replace("There is no ", "").split()[0] in absent.question


def test_several_things_from_left_to_right_and_by_position():
    people = segment(1, 8, 30), segment(1, 8, 2), segment(1, 8, 16)
    asked = ask(*people)
    (multi,) = asked["multi"]
    assert multi.answer == "From left to right: person <seg>, person <seg> and person <seg>."
    assert [int(mask.any(0).argmax()) for mask in multi.decoded_masks(20, 40)] == [2, 16, 30]
    (position,) = asked["position"]  # no topmost: all stand level
    side = position.phrases[0].split()[0]
    assert position.question == f"Which person is {side}?"
    assert position.decoded_masks(20, 40)[0].any(0).argmax() == {"leftmost": 2, "rightmost": 30}[side]


def test_answers_follow_from_question_and_targets():
    people = segment(1, 0, 30), segment(1, 8, 2)
    answers = {}
    for seed in range(20):
        for question in (q for kind in ask(*people, seed=seed).values() for q in kind):
            assert answers.setdefault(question.question, (question.answer, question.masks))[0] == question.answer
            assert question.answer.count("<seg>") == len(question.masks)
    assert ask(*people, seed=3) == ask(*people, seed=3)


def test_more_than_four_are_not_listed():
    assert "multi" not in ask(*(segment(1, 8, 6 * n) for n in range(5)))


def test_crowds_and_ambiguous_names_are_not_asked():
    asked = ask(segment(1, 0, 0), segment(1, 8, 8, crowd=True), segment(5, 0, 20), segment(6, 12, 20))
    assert set(asked) == {"stuff", "no_target"}
    assert [q.phrases for q in asked["stuff"]] == [("brick wall",)]  # "the wall" could be either
    assert "person" not in asked["no_target"][0].question


def test_clashing_stuff_names_are_one():
    (wall,) = ask(segment(5, 0, 0), segment(5, 10, 10))["stuff"]
    assert wall.decoded_masks(20, 40).sum() == 32


def build(root, count=6, change=None):
    """A panoptic folder: person and grass in each image, a crowd of dogs, and void elsewhere."""
    data = {"images": [], "annotations": [], "categories": []}
    data["categories"] = [{"id": n, "name": name, "isthing": thing} for n, (name, thing) in NAMES.items()]
    for folder in ("images", "panoptic"):
        (root / folder).mkdir(parents=True)
    for number in range(1, count + 1):
        ids_HW = np.zeros((20, 40), dtype=np.int64)
        ids_HW[2:6, 2:6], ids_HW[12:, :], ids_HW[2:6, 20:30] = 70_000 + number, 3, 300
        channels = np.stack([ids_HW % 256, ids_HW // 256 % 256, ids_HW // 65536], -1).astype(np.uint8)
        Image.fromarray(channels).save(root / "panoptic" / f"{number}.png")
        Image.new("RGB", (40, 20), (number, 0, 0)).save(root / "images" / f"{number}.jpg")
        data["images"].append({"id": number, "file_name": f"{number}.jpg", "height": 20, "width": 40})
        rows = ((70_000 + number, 1, 0), (3, 4, 0), (300, 2, 1))
        info = [
            {"id": i, "category_id": c, "iscrowd": crowd, "area": int((ids_HW == i).sum())} for i, c, crowd in rows
        ]
        data["annotations"].append({"image_id": number, "file_name": f"{number}.png", "segments_info": info})
    if change:
        change(data)
    (root / "panoptic.json").write_text(json.dumps(data))
    return root


def test_conversion_of_a_small_folder(tmp_path, capsys):
    main = load_converter().main
    source = build(tmp_path / "source")
    assert main([str(source), str(tmp_path / "one"), "--dev", "0.5"]) == 0
    assert main([str(source), str(tmp_path / "two"), "--dev", "0.5"]) == 0
    dev = [number for number in range(1, 7) if in_dev(number, 0.5)]
    assert 0 < len(dev) < 6
    output = capsys.readouterr().out
    assert f"dev: {len(dev)} images, {3 * len(dev)} questions (no_target" in output
    for split, ids in (("dev", dev), ("train", sorted({*range(1, 7)} - {*dev}))):
        one = load_split(tmp_path / "one", split)
        check_unique_ids(one)
        assert one["image_id"][:] == [str(number) for number in ids]
        assert one["questions"][:] == load_split(tmp_path / "two", split)["questions"][:]
        for row in one:
            made = Sample.from_row(row)
            assert made.objects == ("dog", "grass", "person")
            assert rle.area(made.ignore) == 20 * 40 - 16 - 8 * 40  # void, and the crowd of dogs
            assert not any("dog" in question.question for question in made.questions)


def test_dev_of_nothing_and_of_everything(tmp_path, capsys):
    source = build(tmp_path / "source", count=2)
    assert load_converter().main([str(source), str(tmp_path / "out"), "--dev", "0"]) == 0
    assert "dev: no images" in capsys.readouterr().out
    assert os.listdir(tmp_path / "out") == ["train"]


def edit(path, value):
    def change(data):
        *parents, last = path
        for key in parents:
            data = data[key]
        if value is None:
            del data[last]
        else:
            data[last] = value

    return change


SEGMENTS = ("annotations", 0, "segments_info")
INCONSISTENT = {
    "wrong area": (edit((*SEGMENTS, 1, "area"), 5), "image 1: segment 3: area 5 in the json, 320 in the PNG"),
    "unknown id": (edit((*SEGMENTS, 1, "id"), 4), "image 1: segment 4: area 320 in the json, 0 in the PNG"),
    "void as segment": (edit((*SEGMENTS, 1, "id"), 0), "image 1: segment 0"),
    "not in json": (edit((*SEGMENTS, 1), None), "image 1: segment 3 of the PNG is not in the json"),
    "twice": (edit((*SEGMENTS, 2, "id"), 3), "image 1: segment 3: area 40 in the json, 0 in the PNG"),
    "category": (edit((*SEGMENTS, 0, "category_id"), 99), "image 1: segment 70001: category 99"),
    "no area": (edit((*SEGMENTS, 0, "area"), None), "image 1: a segment without 'area'"),
    "nested id": (edit((*SEGMENTS, 0, "id"), [1]), "image 1: segment [1]: id, category_id and area"),
    "no segments": (edit(SEGMENTS, None), "image 1: no list of segments"),
    "size": (edit(("images", 0, "height"), 30), "image 1: label PNG of shape"),
    "no annotation": (edit(("annotations", 0), None), "image 1: no annotation"),
    "image twice": (edit(("images", 0, "id"), 2), "panoptic.json: images: id 2 stands 2 times"),
    "picture twice": (edit(("images", 0, "file_name"), "2.jpg"), "images: file_name '2.jpg' stands 2 times"),
    "way out": (edit(("images", 0, "file_name"), "../../secret.jpg"), "must be relative"),
    "no file": (edit(("images", 0, "file_name"), "9.jpg"), "9.jpg: no such file"),
    "not panoptic": (edit(("categories",), None), "not COCO panoptic"),
}


@pytest.mark.parametrize("name", INCONSISTENT)
def test_inconsistent_data_are_named_in_one_line(tmp_path, capsys, name):
    change, message = INCONSISTENT[name]
    source = build(tmp_path / "source", count=2, change=change)
    assert load_converter().main([str(source), str(tmp_path / "out"), "--dev", "0"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert not (tmp_path / "out" / "train").exists()


def test_a_missing_json_is_named(tmp_path):
    with pytest.raises(DataError, match=r"panoptic\.json: no such file"):
        read_panoptic(tmp_path / "panoptic.json")


def test_real_pictures(tmp_path, capsys):
    shared = os.environ.get("POPEN_SHARED_DATA")
    if not shared:
        pytest.skip("POPEN_SHARED_DATA is not set: it names the folder that holds coco-panoptic-100")
    source = Path(shared) / "coco-panoptic-100" / "train2017"
    if not source.is_dir():
        pytest.skip(f"POPEN_SHARED_DATA has no {source.relative_to(shared)}")
    assert load_converter().main([str(source), str(tmp_path)]) == 0
    train, dev = load_split(tmp_path, "train"), load_split(tmp_path, "dev")
    assert len(train) + len(dev) == 100
    check_unique_ids(train)
    kinds = {question["kind"] for row in train.select_columns("questions") for question in row["questions"]}
    assert kinds == {"referring", "multi", "position", "stuff", "no_target"}
    for row in dev:
        made = Sample.from_row(row)
        ignored = made.decoded_ignore()
        for question in made.questions:
            masks_THW = question.decoded_masks(*ignored.shape)
            assert not (masks_THW & ignored).any()
            assert masks_THW.any((1, 2)).all()
            assert masks_THW.sum(0).max(initial=0) <= 1  # panoptic segments never overlap
