import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from popen.data.schema import Sample, check_unique_ids, load_split

PATH = Path(__file__).parents[2] / "data_tools" / "convert_semantic.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("convert_semantic", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *argv: module.main([str(part) for part in argv])


def save(folder, name, labels, picture="jpg"):
    for part in ("images", "annotations"):
        (folder / part / Path(name).parent).mkdir(parents=True, exist_ok=True)
    labels = np.asarray(labels, dtype=np.uint8)
    Image.fromarray(labels).save(folder / "annotations" / f"{name}.png")
    Image.new("RGB", (labels.shape[1], labels.shape[0]), (len(name), 9, 9)).save(
        folder / "images" / f"{name}.{picture}"
    )


def half(upper, lower):
    return np.repeat([[upper], [lower]], 10, axis=0).repeat(30, axis=1)


def rows(out, split):
    dataset = load_split(out, split)
    check_unique_ids(dataset)
    return [Sample.from_row(row) for row in dataset]


TABLE = """Idx\tRatio\tTrain\tVal\tStuff\tName
1\t0.1\t1\t1\t1\twall
2\t0.1\t1\t1\t1\tbuilding, edifice
3\t0.1\t1\t1\t1\tsky
"""


@pytest.mark.parametrize("given", [None, '["wall", "building", "sky"]'], ids=["table", "LISA's list"])
def test_ade20k(main, tmp_path, capsys, given):
    save(tmp_path, "training/a", half(2, 3))
    save(tmp_path, "validation/b", half(1, 0))
    (tmp_path / "objectInfo150.txt").write_text(TABLE)
    (tmp_path / "classes.json").write_text(given or "")
    more = ["--classes", tmp_path / "classes.json"] if given else []
    assert main("ade20k", tmp_path, tmp_path / "out", *more) == 0
    (train,), (val,) = rows(tmp_path / "out", "train"), rows(tmp_path / "out", "val")
    assert (train.image_id, train.objects) == ("ade20k/train/a", ("building", "sky"))
    assert [q.kind for q in train.questions] == ["semantic", "semantic", "multi", "no_target"]
    assert train.questions[-1].answer == "There is no wall in the picture."
    assert (val.image_id, val.objects, val.decoded_ignore().mean()) == ("ade20k/val/b", ("wall",), 0.5)
    output = capsys.readouterr().out
    assert "train: 1 images, 4 questions (multi 1, no_target 1, semantic 2), 4 targets" in output
    assert "left out: 1 questions for something absent where over 10% is unlabelled" in output


@pytest.mark.parametrize("first", ["0: unlabeled\n", ""], ids=["with unlabeled", "without"])
def test_cocostuff(main, tmp_path, first):
    """The PNGs count from person = 0; classes with a hyphen and 255 are nothing."""
    shift = 1 if first else 0
    names = ["person", "sky", "wall-brick", "dog"]
    classes = "".join(f"{number + shift}: {name}\n" for number, name in enumerate(names))
    (tmp_path / "labels.txt").write_text(first + classes)
    labels = half(0, 2)
    labels[:, 0] = 255
    save(tmp_path, "a", labels)
    images, pngs = tmp_path / "images", tmp_path / "annotations"
    more = ("--classes", tmp_path / "labels.txt", "--split", "val")
    assert main("cocostuff", images, pngs, tmp_path / "out", *more) == 0
    (row,) = rows(tmp_path / "out", "val")
    assert (row.image_id, row.objects) == ("cocostuff/val/a", ("person",))
    assert row.decoded_ignore().sum() == 10 * 30 + 10


def test_colours_and_ignored_names(main, tmp_path, capsys):
    colours = np.zeros((20, 30, 3))
    colours[10:] = 64, 128, 64
    save(tmp_path, "a_L", colours, "png")
    (tmp_path / "images" / "a_L.png").rename(tmp_path / "images" / "a.png")
    (tmp_path / "list.csv").write_text("name,r,g,b\nSignSymbol,64,128,64\nUnknown,0,0,0\nCar,1,2,3\n")
    folders = tmp_path / "images", tmp_path / "annotations", tmp_path / "out"
    more = ("--name", "camvid", "--classes", tmp_path / "list.csv", "--suffix", "_L")
    assert main("labels", *folders, *more, "--ignore", "unknown") == 0
    (row,) = rows(tmp_path / "out", "train")
    assert [q.phrases for q in row.questions] == [("sign symbol",)]
    assert main("labels", *folders, *more, "--ignore", "Moon") == 1
    assert "--ignore Moon: no such class in" in capsys.readouterr().err


def test_parts(main, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (50, 40)).save(tmp_path / "images" / "a.jpg")
    wing = {"id": 1, "image_id": 7, "category_id": 1, "segmentation": [[0, 0, 20, 0, 20, 20, 0, 20]]}
    data = {
        "categories": [{"id": 1, "name": "aeroplane:wing"}, {"id": 2, "name": "dog:head"}],
        "images": [{"id": 7, "file_name": "a.jpg", "height": 40, "width": 50}],
        "annotations": [wing],
    }
    (tmp_path / "train.json").write_text(json.dumps(data))
    assert main("pascal_part", tmp_path / "train.json", tmp_path / "images", tmp_path / "out") == 0
    (row,) = rows(tmp_path / "out", "train")
    assert row.image_id == "pascal_part/train/7"
    assert [q.answer for q in row.questions] == [
        "The wing of the aeroplane <seg> is here.",
        "There is no dog in the picture.",
    ]


def test_a_bad_picture_is_named_and_may_be_left_out(main, tmp_path, capsys):
    for name in ("a", "b"):
        save(tmp_path, name, half(0, 1))
    (tmp_path / "images" / "b.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "names.txt").write_text("sky\nroad\n")
    command = ("labels", tmp_path / "images", tmp_path / "annotations", tmp_path / "out", "--name", "x")
    command = (*command, "--classes", tmp_path / "names.txt")
    assert main(*command) == 1
    assert "b.jpg" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "train").exists()
    assert main(*command, "--most-bad", "1") == 0
    assert "left out: 1 bad pictures, named above" in capsys.readouterr().out
    assert [row.image_id for row in rows(tmp_path / "out", "train")] == ["x/train/a"]


def test_camvid(main, tmp_path):
    shared = os.environ.get("POPEN_SHARED_DATA")
    if not shared or not (Path(shared) / "camvid" / "val").is_dir():
        pytest.skip("POPEN_SHARED_DATA is not set to a folder with camvid/val")
    source = Path(shared) / "camvid" / "val"
    names = ["Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian"]
    names += ["Bicyclist", "Void"]
    (tmp_path / "classes.json").write_text(json.dumps(names))
    more = ("--name", "camvid", "--classes", tmp_path / "classes.json", "--split", "dev")
    assert main("labels", source / "images", source / "labels", tmp_path / "out", *more) == 0
    made = rows(tmp_path / "out", "dev")
    assert len(made) == 101
    for row in made:
        ignored = row.decoded_ignore()
        for question in row.questions:
            masks_THW = question.decoded_masks(*ignored.shape)
            assert masks_THW.any((1, 2)).all()
            assert not (masks_THW & ignored).any()
            assert masks_THW.sum(0).max(initial=0) <= 1
