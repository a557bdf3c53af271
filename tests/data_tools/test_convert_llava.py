"""LLaVA's instructions become rows without targets, and such rows alone make a step."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

from popen.data.schema import Sample, check_unique_ids, load_split
from popen.lvlm.packing import supervised_batch

main = runpy.run_path(str(Path(__file__).parents[2] / "data_tools" / "convert_llava.py"))["main"]
FIRST = ["<image>\nWhat is this?", "A red square.", "Is it large?", "It fills the picture."]


def record(image, said):
    speakers = ("human", "gpt") * len(said)
    turns = [{"from": who, "value": text} for who, text in zip(speakers, said, strict=False)]
    return {"id": "1", "conversations": turns} | ({} if image is None else {"image": image})


def write(folder, *records):
    (folder / "images").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (30, 20), "red").save(folder / "images" / f"{name}.jpg")
    (folder / "llava.json").write_text(json.dumps(records))
    return [str(folder / "llava.json"), str(folder / "images"), str(folder / "vqa")]


def test_turns_become_questions(tmp_path, capsys, tiny):
    arguments = write(
        tmp_path,
        record("a.jpg", FIRST),
        record("b.jpg", ["Describe it.\n<image>", "Red all over."]),
        record("a.jpg", ["What is this?\n<image>", "A red square."]),
        record(None, ["Tell a joke.", "No."]),
    )
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train: 2 images, 3 questions (vqa 3), 0 targets",
        "  left out: 1 questions listed twice",
        "  left out: 1 records without a picture",
    ]
    rows = load_split(tmp_path / "vqa", "train")
    check_unique_ids(rows)
    samples = [Sample.from_row(row) for row in rows]
    assert [(s.image_id, s.objects) for s in samples] == [("vqa/train/a", ()), ("vqa/train/b", ())]
    asked = [(q.id, q.question, q.answer, q.phrases, q.masks) for s in samples for q in s.questions]
    assert asked == [
        ("vqa/train/a/0", "What is this?", "A red square.", (), ()),
        ("vqa/train/a/1", "Is it large?", "It fills the picture.", (), ()),
        ("vqa/train/b/0", "Describe it.", "Red all over.", (), ()),
    ]
    model, processor = tiny
    batch = supervised_batch(processor, samples)
    loss = model(**{k: v for k, v in batch.items() if k not in ("token_sequence", "sequence_row")}).loss
    assert torch.isfinite(loss) and loss > 0


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ({}, "llava.json: not visual instructions: expected a list of records; fetch it again"),
        ([{"image": "a.jpg"}], "record 0: no list of conversations; fetch the file again"),
        ([record(3, FIRST)], "record 0: image must be the name of a file; correct it"),
        ([record("a.jpg", FIRST[:3])], "record 0: 3 turns; each question"),
        ([record("a.jpg", [])], "record 0: 0 turns; each question needs its answer"),
        ([record("a.jpg", ["<image>", "Red."])], "record 0: turn 0 is blank or has <seg> in it; correct or remove"),
        ([record("a.jpg", ["What?", "A <seg>."])], "record 0: turn 1 is blank or has <seg> in it; correct or remove"),
        ([record("../a.jpg", FIRST)], "../a.jpg"),
        ([record("c.jpg", FIRST)], "c.jpg"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, capsys, records, says):
    arguments = write(tmp_path)
    (tmp_path / "llava.json").write_text(json.dumps(records))
    assert main(arguments) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert says in said[-1] and not (tmp_path / "vqa" / "train").exists()


def test_turns_that_do_not_alternate(tmp_path, capsys):
    wrong = record("a.jpg", FIRST)
    wrong["conversations"][2]["from"] = "gpt"
    assert main(write(tmp_path, wrong)) == 1
    assert "record 0: turn 2 is not text from 'human'; correct or remove the record" in capsys.readouterr().err
