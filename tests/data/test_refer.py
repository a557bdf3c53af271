import copy
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from popen.data import rle
from popen.data.refer import (
    SPLIT_BY,
    by_image,
    in_split,
    read_instances,
    read_references,
    refer_row,
    split_names,
)
from popen.data.safe_io import DataError
from popen.data.schema import Sample

HEIGHT, WIDTH = 20, 30


def box(left, top, right, bottom):
    """A COCO polygon of the pixels left..right - 1, top..bottom - 1."""
    return [[left, top, left, bottom, right, bottom, right, top]]


def said(*words, first=0):
    return [{"sent_id": first + n, "sent": w, "raw": w.upper(), "tokens": w.split()} for n, w in enumerate(words)]


REFS = [
    {"ref_id": 3, "ann_id": 12, "image_id": 2, "split": "testB", "sentences": said("the cup", first=7)},
    {"ref_id": 1, "ann_id": 11, "image_id": 1, "split": "train", "sentences": said(" Man on LEFT ", "him", first=1)},
    {"ref_id": 2, "ann_id": 10, "image_id": 1, "split": "train", "sentences": said("dog", first=5)},
]
GREFS = [
    {"ref_id": 1, "ann_id": [10, 11], "image_id": 1, "split": "train", "sentences": said("both of them")},
    {"ref_id": 2, "ann_id": [-1], "image_id": 1, "split": "train", "sentences": said("a third one", first=1)},
    {"ref_id": 3, "ann_id": [12], "image_id": 2, "split": "val", "sentences": said("the cup", first=2)},
]
CUP = np.zeros((HEIGHT, WIDTH), dtype=bool)
CUP[1:4, 2:9] = True
INSTANCES = {
    "images": [{"id": n, "file_name": f"COCO_{n}.jpg", "height": HEIGHT, "width": WIDTH} for n in (1, 2)],
    "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "cup"}],
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 2, "segmentation": box(4, 2, 10, 8)},
        {"id": 11, "image_id": 1, "category_id": 1, "segmentation": box(8, 4, 20, 16)},
        {"id": 12, "image_id": 2, "category_id": 3, "segmentation": rle.encode(CUP)},
    ],
}


def build(root, refs=REFS, instances=INSTANCES, dataset="refcoco", pictures=(1, 2)):
    """A native layout: refer_seg/<dataset> and refer_seg/images/mscoco/images/train2014."""
    folder, images = root / dataset, root / "images" / "mscoco" / "images" / "train2014"
    folder.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    if dataset == "grefcoco":
        (folder / "grefs(unc).json").write_text(json.dumps(refs))
    else:
        (folder / f"refs({SPLIT_BY[dataset][0]}).p").write_bytes(pickle.dumps(refs, 2))
    (folder / "instances.json").write_text(json.dumps(instances))
    for number in pictures:
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(images / f"COCO_{number}.jpg")
    return folder, images


def row_of(root, image_id, dataset="refcoco", **changes):
    folder, images = build(root, dataset=dataset, **changes)
    groups = by_image(read_references(folder, dataset, "unc"))
    return refer_row(read_instances(folder / "instances.json"), groups[image_id], dataset, images)


def test_every_sentence_of_every_reference_is_a_question(tmp_path):
    row = row_of(tmp_path, 1)
    made = Sample.from_row(row)
    assert (made.image_id, made.objects) == ("1", ("dog", "person"))
    assert not made.decoded_ignore().any()
    assert [q.id for q in made.questions] == ["refcoco/1/1", "refcoco/1/2", "refcoco/2/5"]  # by ref_id
    assert [q.question for q in made.questions] == [
        f"What is {words} in this image? Please output segmentation mask." for words in ("man on left", "him", "dog")
    ]
    assert {(q.kind, q.answer, q.phrases) for q in made.questions} == {
        ("referring", "The target <seg> is here.", ("target",))
    }
    areas = [q.decoded_masks(HEIGHT, WIDTH).sum() for q in made.questions]
    assert areas == [12 * 12, 12 * 12, 6 * 6]
    assert row["image"]["bytes"].startswith(b"\xff\xd8")


def test_an_annotation_may_be_an_rle(tmp_path):
    (asked,) = Sample.from_row(row_of(tmp_path, 2)).questions
    assert np.array_equal(asked.decoded_masks(HEIGHT, WIDTH)[0], CUP)


def test_grefcoco_asks_for_several_and_for_none(tmp_path):
    both, none = Sample.from_row(row_of(tmp_path, 1, "grefcoco", refs=GREFS)).questions
    assert (both.id, both.kind, both.answer) == ("grefcoco/1/0", "multi", "The target <seg> is here.")
    assert both.decoded_masks(HEIGHT, WIDTH).sum() == 12 * 12 + 6 * 6 - 2 * 4  # they overlap
    assert (none.id, none.kind, none.answer) == (
        "grefcoco/2/1",
        "no_target",
        "There is no such target in the picture.",
    )
    assert (none.phrases, none.masks) == ((), ())


def of_splits(tmp_path, *splits):
    refs = [{**REFS[0], "ref_id": n, "split": split} for n, split in enumerate(splits)]
    return read_references(build(tmp_path, refs)[0], "refcoco", "unc")


@pytest.mark.parametrize(
    ("split", "chosen"),
    [
        ("train", {"train"}),
        ("val", {"val"}),
        ("testA", {"testA", "testAB"}),
        ("testB", {"testB", "testAB", "testBC"}),
        ("testC", {"testBC"}),
        ("testAB", {"testAB"}),
        ("test", {"testA", "testB", "testAB", "testBC"}),
    ],
)
def test_splits_are_those_of_refer(tmp_path, split, chosen):
    references = of_splits(tmp_path, "train", "val", "testA", "testB", "testAB", "testBC", "train")
    assert {reference.split for reference in in_split(references, split)} == chosen
    assert len(in_split(references, "train")) == 2


def test_the_splits_there_are_named(tmp_path):
    assert split_names(of_splits(tmp_path, "val", "train", "testB", "testAB")) == ("train", "val", "testA", "testB")
    references = of_splits(tmp_path, "val", "test")
    assert split_names(references) == ("val", "test")
    with pytest.raises(DataError, match=r"no references in split 'testA'; there: val, test$"):
        in_split(references, "testA")


def test_only_known_files_are_looked_for(tmp_path):
    for dataset, way in (("refcoco", "umd"), ("coco", "unc"), ("../x", "unc")):
        with pytest.raises(DataError, match="does not exist; there are refcoco: unc, google; refcoco"):
            read_references(tmp_path, dataset, way)
    with pytest.raises(DataError, match=r"refs\(umd\)\.p: no such file"):
        read_references(tmp_path, "refcocog", "umd")
    with pytest.raises(DataError, match=r"grefs\(unc\)\.json: no such file"):
        read_references(tmp_path, "grefcoco", "unc")


def changed(data, path, value):
    data = copy.deepcopy(data)
    *parents, last = path
    entry = data
    for key in parents:
        entry = entry[key]
    if value is None:
        del entry[last]
    else:
        entry[last] = value
    return data


BAD_REFS = {
    "empty": ([], r"refs\(unc\)\.p: expected a list of references"),
    "no list": ({"a": 1}, "expected a list of references"),
    "no reference": ([3], "entry 0: expected a reference, not int"),
    "no id": (changed(REFS, (1, "ref_id"), None), r"entry 1 \(ref None\): ref_id, image_id and ann_id must be whole"),
    "text as image": (changed(REFS, (1, "image_id"), "1"), r"entry 1 \(ref 1\): ref_id, image_id and ann_id"),
    "no annotation": (changed(REFS, (0, "ann_id"), []), r"entry 0 \(ref 3\): ref_id, image_id and ann_id"),
    "denied": (changed(REFS, (0, "ann_id"), -1), "ann_id -1, no target, stands alone and in gRefCOCO only"),
    "no split": (changed(REFS, (0, "split"), 3), "split must be text"),
    "no sentences": (changed(REFS, (0, "sentences"), []), "no sentences; remove the reference"),
    "blank": (changed(REFS, (0, "sentences", 0, "sent"), " "), "sentence 0: sent_id must be a whole number and sent"),
    "no sent_id": (changed(REFS, (0, "sentences", 0, "sent_id"), None), "sentence 0: sent_id"),
    "twice": ([*REFS, REFS[0]], r"refs\(unc\)\.p: references: ref_id 3 stands 2 times"),
}


@pytest.mark.parametrize("name", BAD_REFS)
def test_bad_references_are_named(tmp_path, name):
    refs, message = BAD_REFS[name]
    with pytest.raises(DataError, match=message) as error:
        read_references(build(tmp_path, refs)[0], "refcoco", "unc")
    assert "\n" not in str(error.value)


def test_no_target_stands_alone(tmp_path):
    folder, _ = build(tmp_path, changed(GREFS, (0, "ann_id"), [10, -1]), dataset="grefcoco")
    with pytest.raises(DataError, match=r"entry 0 \(ref 1\): ann_id -1, no target, stands alone"):
        read_references(folder, "grefcoco", "unc")


IMAGE, ANN = ("images", 0), ("annotations", 1)
BAD_INSTANCES = {
    "not coco": (changed(INSTANCES, ("images",), None), "not COCO instances"),
    "a list": ([1], "not COCO instances"),
    "image twice": (changed(INSTANCES, (*IMAGE, "id"), 2), "images: id 2 stands 2 times; keep one"),
    "picture twice": (
        changed(INSTANCES, (*IMAGE, "file_name"), "COCO_2.jpg"),
        "images: file_name 'COCO_2.jpg' stands 2 times",
    ),
    "annotation twice": (changed(INSTANCES, (*ANN, "id"), 10), "annotations: id 10 stands 2 times"),
    "category twice": (changed(INSTANCES, ("categories", 0, "id"), 2), "categories: id 2 stands 2 times"),
    "no name": (changed(INSTANCES, ("categories", 0, "name"), " "), "category 1: its name must be text, not blank"),
    "height": (changed(INSTANCES, (*IMAGE, "height"), "20"), "image 1: id, height and width must be whole"),
    "category": (changed(INSTANCES, (*ANN, "category_id"), 9), "annotation 11: its image or category"),
    "stranger": (changed(INSTANCES, (*ANN, "image_id"), 9), "annotation 11: its image or category"),
    "annotation of another": (
        changed(INSTANCES, (*ANN, "image_id"), 2),
        "ref 1: annotation 11: is of image 2; fetch both files again",
    ),
    "annotation gone": (changed(INSTANCES, ANN, None), r"ref 1: annotation 11: is not in instances\.json"),
    "size": (changed(INSTANCES, (*IMAGE, "width"), 31), r"COCO_1\.jpg: 30x20, instances\.json says 31x20"),
    "way out": (changed(INSTANCES, (*IMAGE, "file_name"), "../../secret.jpg"), "must be relative"),
    "absolute": (changed(INSTANCES, (*IMAGE, "file_name"), "/etc/passwd"), "must be relative"),
    "name of a number": (changed(INSTANCES, (*IMAGE, "file_name"), 3), "file name 3: expected text"),
    "picture gone": (changed(INSTANCES, (*IMAGE, "file_name"), "COCO_9.jpg"), r"COCO_9\.jpg: no such file"),
    "no segmentation": (
        changed(INSTANCES, (*ANN, "segmentation"), None),
        "ref 1: annotation 11: segmentation: polygons: expected a list",
    ),
    "no polygons": (changed(INSTANCES, (*ANN, "segmentation"), []), "ref 1: annotation 11: segmentation: polygons"),
    "no pixels": (
        changed(INSTANCES, (*ANN, "segmentation"), [[1.1, 1, 1.2, 1, 1.2, 2]]),
        "ref 1: annotation 11: no pixel in its segmentation",
    ),
    "far": (
        changed(INSTANCES, (*ANN, "segmentation"), [[1, 1, 5, 5, 1e9, 2]]),
        r"polygon 0: point \(1000000000.0, 2\) lies outside",
    ),
    "nan": (changed(INSTANCES, (*ANN, "segmentation"), [[1, 1, 5, 5, float("nan"), 2]]), "NaN is not a finite number"),
    "long RLE": (
        changed(INSTANCES, (*ANN, "segmentation"), {"size": [HEIGHT, WIDTH], "counts": [0, 601]}),
        r"segmentation: RLE counts: .*outside 0\.\.600",
    ),
    "RLE of another size": (
        changed(INSTANCES, (*ANN, "segmentation"), {"size": [WIDTH, HEIGHT], "counts": [0, 600]}),
        r"segmentation: RLE of size \[30, 20\]",
    ),
}


@pytest.mark.parametrize("name", BAD_INSTANCES)
def test_bad_instances_are_named(tmp_path, name):
    instances, message = BAD_INSTANCES[name]
    with pytest.raises(DataError, match=message) as error:
        row_of(tmp_path, 1, instances=instances)
    assert "\n" not in str(error.value)


def test_an_image_the_instances_do_not_know(tmp_path):
    with pytest.raises(DataError, match=r"ref 3: image 7 is not in instances\.json"):
        row_of(tmp_path, 7, refs=changed(REFS, (0, "image_id"), 7))


def test_files_that_attack_the_reader_are_named(tmp_path):
    folder, images = build(tmp_path)
    groups = by_image(read_references(folder, "refcoco", "unc"))
    with pytest.raises(DataError, match=r"COCO_1\.jpg: 30x20, over 100 pixels"):
        refer_row(read_instances(folder / "instances.json"), groups[1], "refcoco", images, max_pixels=100)
    (folder / "instances.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match=r"instances\.json: nested too deeply"):
        read_instances(folder / "instances.json")
    (folder / "refs(unc).p").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: not a pickle of plain data: it asks for the code 'os'\."):
        read_references(folder, "refcoco", "unc")
