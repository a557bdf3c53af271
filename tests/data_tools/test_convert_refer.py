import json
import pickle
import runpy
from pathlib import Path

import pytest
from PIL import Image

from popen.data.schema import Sample, check_unique_ids, load_split

CONVERTER = Path(__file__).parents[2] / "data_tools" / "convert_refer.py"
main = runpy.run_path(str(CONVERTER))["main"]
SPLITS = {1: "train", 2: "train", 3: "val", 4: "testA"}


def build(root, dataset="refcoco", images="images/mscoco/images/train2014"):
    """The native layout of one data set: an image, an object and two sentences for each entry of SPLITS."""
    (root / dataset).mkdir(parents=True)
    (root / images).mkdir(parents=True)
    data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "dog"}]}
    refs = []
    for number, split in SPLITS.items():
        Image.new("RGB", (30, 20), (number, 0, 0)).save(root / images / f"{number}.jpg")
        data["images"].append({"id": number, "file_name": f"{number}.jpg", "height": 20, "width": 30})
        polygon = [2, 2, 2, 8, 2 + 3 * number, 8, 2 + 3 * number, 2]
        data["annotations"].append({"id": number, "image_id": number, "category_id": 1, "segmentation": [polygon]})
        sentences = [{"sent_id": 2 * number + n, "sent": f"Dog {n}", "raw": "", "tokens": []} for n in range(2)]
        refs.append({"ref_id": number, "ann_id": number, "image_id": number, "split": split, "sentences": sentences})
    (root / dataset / "instances.json").write_text(json.dumps(data))
    (root / dataset / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    if dataset == "grefcoco":
        grefs = [{**ref, "ann_id": [-1] if ref["split"] == "val" else [ref["ann_id"]]} for ref in refs]
        (root / dataset / "grefs(unc).json").write_text(json.dumps(grefs))
    return root


def test_a_native_folder_is_converted(tmp_path, capsys):
    source = build(tmp_path / "refer_seg")
    command = [str(source), str(tmp_path / "one"), "--dataset", "refcoco", "--split-by", "unc"]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train: 2 references",
        "train: 2 images, 4 questions (referring 4), 4 targets",
        "val: 1 references",
        "val: 1 images, 2 questions (referring 2), 2 targets",
        "testA: 1 references",
        "testA: 1 images, 2 questions (referring 2), 2 targets",
    ]
    train = load_split(tmp_path / "one", "train")
    check_unique_ids(train)
    made = [Sample.from_row(row) for row in train]
    assert [q.id for sample in made for q in sample.questions] == [
        "refcoco/1/2", "refcoco/1/3", "refcoco/2/4", "refcoco/2/5",
    ]  # fmt: skip
    assert [sample.questions[0].decoded_masks(20, 30).sum() for sample in made] == [6 * 3, 6 * 6]
    assert main([str(source), str(tmp_path / "two"), "--dataset", "refcoco", "--splits", "train"]) == 0
    again = load_split(tmp_path / "two", "train")
    assert (again._fingerprint, [path.name for path in (tmp_path / "two").iterdir()]) == (
        train._fingerprint,
        ["train"],
    )


def test_another_way_of_splitting_is_in_the_ids(tmp_path):
    source = build(tmp_path / "refer_seg")
    (source / "refcoco" / "refs(unc).p").rename(source / "refcoco" / "refs(google).p")
    assert main([str(source), str(tmp_path / "out"), "--dataset", "refcoco", "--split-by", "google"]) == 0
    (sample,) = map(Sample.from_row, load_split(tmp_path / "out", "val"))
    assert [question.id for question in sample.questions] == ["refcoco-google/3/6", "refcoco-google/3/7"]


@pytest.mark.parametrize(
    ("dataset", "kind"), [("refcoco+", "referring 2"), ("refclef", "referring 2"), ("grefcoco", "no_target 2")]
)
def test_the_other_data_sets_and_a_folder_of_pictures(tmp_path, capsys, dataset, kind):
    source = build(tmp_path / "refer_seg", dataset, "pictures")
    command = [str(source), str(tmp_path / "out"), "--dataset", dataset, "--splits", "val"]
    assert main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert ("saiapr_tc-12" if dataset == "refclef" else "train2014") in error and "3.jpg: no such file" in error
    assert main([*command, "--images", str(source / "pictures")]) == 0
    assert f"val: 1 images, 2 questions ({kind}), " in capsys.readouterr().out


def test_what_is_wrong_is_one_line(tmp_path, capsys):
    source = build(tmp_path / "refer_seg")
    command = [str(source), str(tmp_path / "out"), "--dataset", "refcoco"]
    for more, message in (
        (["--splits", "train", "minival"], "no references in split 'minival'; there: train, val, testA"),
        (["--split-by", "umd"], "dataset 'refcoco' split by 'umd' does not exist"),
        (["--split-by", "google"], "refs(google).p: no such file"),
    ):
        assert main([*command, *more]) == 1
        (error,) = capsys.readouterr().err.splitlines()
        assert message in error
    assert not (tmp_path / "out").exists()
