import json
import runpy
from pathlib import Path

from PIL import Image

from popen.data.schema import Sample, check_unique_ids, load_split

CONVERTER = Path(__file__).parents[2] / "data_tools" / "convert_reasonseg.py"
main = runpy.run_path(str(CONVERTER))["main"]


def build(root):
    """A native ReasonSeg folder: train with three pictures, one of them without a target, and val with two."""
    for split, names in (("train", "abc"), ("val", "de")):
        (root / split).mkdir(parents=True)
        for index, name in enumerate(names):
            points = [[2, 2], [2, 9 + index], [20, 9 + index], [20, 2]]
            shapes = [] if name in "ce" else [{"label": "target", "points": points}]
            data = {"text": [f"first {name}", f"second {name}"], "is_sentence": bool(index), "shapes": shapes}
            (root / split / f"{name}.json").write_text(json.dumps(data))
            Image.new("RGB", (30, 20), (index, 0, 0)).save(root / split / f"{name}.jpg")
    (root / "explanatory").mkdir()
    rows = [{"image": f"{name}.jpg", "query": f"query {name}", "outputs": f"reason {name}"} for name in "az"]
    (root / "explanatory" / "train.json").write_text(json.dumps(rows))
    return root


def test_a_native_folder_is_converted_and_nothing_is_left_out_in_silence(tmp_path, capsys):
    source = build(tmp_path / "ReasonSeg")
    assert main([str(source), str(tmp_path / "one")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train: 1 explanations of pictures that are not there: z",
        "train: 1 pictures without a target, left out: c",
        "train: 2 images, 5 questions (reasonseg_explained 1, reasonseg_long 2, reasonseg_short 2), 5 targets",
        "val: 1 pictures without a target, kept with an empty mask, as LISA scores them: e",
        "val: 2 images, 2 questions (reasonseg_long 1, reasonseg_short 1), 2 targets",
    ]
    train, val = load_split(tmp_path / "one", "train"), load_split(tmp_path / "one", "val")
    check_unique_ids(train)
    assert train["image_id"][:] == ["train/a", "train/b"]
    areas = [Sample.from_row(row).questions[0].decoded_masks(20, 30).sum() for row in val]
    assert areas == [8 * 19, 0]
    assert main([str(source), str(tmp_path / "two"), "--splits", "train"]) == 0
    again = load_split(tmp_path / "two", "train")
    assert again["questions"][:] == train["questions"][:]
    assert (again._fingerprint, [path.name for path in (tmp_path / "two").iterdir()]) == (
        train._fingerprint,
        ["train"],
    )


def test_what_is_wrong_is_one_line(tmp_path, capsys):
    source = build(tmp_path / "ReasonSeg")
    assert main([str(source), str(tmp_path / "out"), "--splits", "test"]) == 1
    assert capsys.readouterr().err.strip().endswith("no split 'test'; there: train, val")
    assert main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert "none of train, val, test in it" in capsys.readouterr().err
    (source / "val" / "d.jpg").write_bytes(b"GIF89a")
    assert main([str(source), str(tmp_path / "out"), "--splits", "val"]) == 1
    assert "d.jpg: not a picture" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "val").exists()
    (source / "explanatory" / "train.json").unlink()
    assert main([str(source), str(tmp_path / "out"), "--splits", "train"]) == 0
    assert "hence no explanations" in capsys.readouterr().out
