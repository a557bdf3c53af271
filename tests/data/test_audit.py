import numpy as np
import pytest
from PIL import Image

from popen import cli
from popen.data import faults, rle
from popen.data.audit import audit_dataset
from popen.data.safe_io import DataError
from popen.data.scene_questions import sample
from popen.data.schema import FEATURES, Question, Sample, empty_ignore, write_dataset


def square(size=10, top=0, height=40, width=50):
    mask_HW = np.zeros((height, width), dtype=bool)
    mask_HW[top : top + size, :size] = True
    return rle.encode(mask_HW)


def row(number, *questions, colour=None, **changed):
    """A row that is right, with a picture of its own; `changed` replaces its columns."""
    image = Image.new("RGB", (50, 40), (number, 0, 0) if colour is None else colour)
    asked = questions or (question(f"q{number}"),)
    made = Sample(image, f"image-{number}", ("dog", "grass"), empty_ignore(40, 50), ()).to_row()
    return {**made, "questions": list(asked), **changed}


def question(name, **changed):
    fields = {
        "id": name,
        "kind": "referring",
        "question": "Where is the dog?",
        "answer": "The dog <seg> is here.",
        "phrases": ["dog"],
        "masks": [square()],
    }
    return {**fields, **changed}


def write(folder, split, rows):
    """Writes rows past the checks of `write_dataset`, as other software may."""
    import datasets

    datasets.Dataset.from_list(rows, features=FEATURES).save_to_disk(folder / split)
    return folder


def test_a_good_data_set_has_no_fault(tmp_path):
    samples = [sample(seed) for seed in range(3)]
    write_dataset(samples, tmp_path, "train")
    audit = audit_dataset(tmp_path)
    assert audit.lines == () and not audit.errors and not audit.warnings
    counts = audit.counts["train"]
    questions = [question for made in samples for question in made.questions]
    assert counts.images == 3
    assert sum(counts.kinds.values()) == len(questions)
    assert counts.kinds["none"] == sum(q.kind == "none" for q in questions)
    shares = [rle.area(mask) / 96**2 for q in questions for mask in q.masks]
    assert sorted(counts.shares) == pytest.approx(sorted(shares))


ERRORS = {
    "blank answer": (question("q", answer=" ", phrases=[], masks=[]), "blank text", "q: answer is blank"),
    "blank question": (question("q", question=""), "blank text", "q: question is blank"),
    "blank id": (question(" "), "blank text", ": id is blank"),
    "mark in the question": (
        question("q", question="<seg>?"),
        "mark in a question",
        "q: <seg> stands in the question",
    ),
    "no mark": (question("q", answer="A dog."), "counts differ", "q: 0 <seg> in the answer, 1 phrases, 1 masks"),
    "mask of another size": (
        question("q", masks=[square(width=60)]),
        "bad mask",
        "q: mask 0: of size [40, 60], the picture's is [40, 50]; resize it",
    ),
    "mask longer than its picture": (
        question("q", masks=[{"size": [40, 50], "counts": rle.encode(np.ones((41, 50), dtype=bool))["counts"]}]),
        "bad mask",
        "q: mask 0: RLE counts",
    ),
    "empty mask": (question("q", masks=[square(0)]), "empty mask", "q: mask 0 is empty; remove the target"),
    "blank phrase": (question("q", phrases=[""]), "blank phrase", "q: a phrase is blank"),
}
WARNINGS = {
    "blank kind": (question("q", kind=""), "blank text", "q: kind is blank"),
    "ignored": (question("q"), "ignored mask", "q: mask 0 lies wholly in ignored pixels"),
    "tiny": (question("q", masks=[square(3)]), "tiny target", "q: mask 0 has 9 pixels"),
    "beyond the objects": (
        question("q", phrases=["carpet"], answer="The carpet <seg>."),
        "phrase beyond objects",
        "q: 'carpet' names nothing of the row's objects",
    ),
}


@pytest.mark.parametrize("name", [*ERRORS, *WARNINGS])
def test_each_fault_of_a_question_is_named_and_the_audit_goes_on(tmp_path, name):
    is_error = name in ERRORS
    asked, sort, message = (ERRORS if is_error else WARNINGS)[name]
    ignore = square(20) if name == "ignored" else empty_ignore(40, 50)
    good = question("good", masks=[square(10, 25)])
    audit = audit_dataset(write(tmp_path, "train", [row(0, good, asked, ignore=ignore), row(1)]))
    assert audit.errors == ({sort: 1} if is_error else {})
    assert audit.warnings == ({} if is_error else {sort: 1})
    (line,) = audit.lines
    assert line.startswith(f"{'error' if is_error else 'warning'}: train: row 0: image-0: ")
    assert message in line
    assert audit.counts["train"].images == 2
    assert audit.counts["train"].kinds.total() == 3


def test_rows_with_broken_columns(tmp_path):
    rows = [
        row(0, image={"bytes": b"GIF8", "path": None}),
        row(1, ignore=square(width=60)),
        row(2, image_id=" "),
        row(3, objects=None),
        row(4, questions=[]),
        row(5, question("q5", masks=[square(width=70)]), image=None),
        row(6, question("q6", masks=[None], kind=None), objects=["dog", None]),
        row(7, questions=[None]),
    ]
    audit = audit_dataset(write(tmp_path, "train", rows))
    assert audit.errors == {"bad picture": 1, "bad mask": 3, "blank text": 2, "missing column": 2}
    assert audit.warnings == {"no questions": 2, "phrase beyond objects": 1, "blank text": 1}
    text = "\n".join(audit.lines)
    assert "row 0: image-0: picture: not a picture" in text
    assert "row 1: image-1: ignore: of size [40, 60]" in text
    assert "row 2: : the image id is blank" in text
    assert "row 3: image-3: 'objects' is missing" in text
    assert "row 4: image-4: the row has no questions" in text
    assert "row 5: image-5: q5: mask 0: of size [40, 70], the picture's is [40, 50]" in text  # by the ignore mask
    assert "row 6: image-6: q6: mask 0: RLE: expected" in text
    assert "row 6: image-6: an object is blank" in text


def test_ids_and_pictures_in_and_between_splits(tmp_path):
    write(tmp_path, "dev", [row(0), row(1, question("q1"), question("q1"))])
    write(tmp_path, "train", [row(2, question("q0"), colour=(0, 0, 0)), row(3), row(4, colour=(3, 0, 0)), row(3)])
    audit = audit_dataset(tmp_path)
    assert audit.errors == {"question id twice": 3, "picture in two splits": 1}
    assert audit.warnings == {"picture twice": 2, "image id twice": 1}
    text = "\n".join(audit.lines)
    assert "dev: row 1: image-1: q1: the question id also stands in dev, row 1" in text
    assert "train: row 0: image-2: q0: the question id also stands in dev, row 0" in text
    assert "train: row 0: image-2: the same picture stands in dev, row 0; keep it in one split" in text
    assert "train: row 2: image-4: the same picture stands in train, row 1" in text
    assert "train: row 3: image-3: the image id also stands in train, row 1" in text
    assert not audit_dataset(tmp_path, ["dev"]).warnings


def test_many_faults_of_one_sort_are_capped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "MOST_SHOWN", 2)
    asked = [question(f"q{n}", answer="No mark.") for n in range(5)]
    audit = audit_dataset(write(tmp_path, "train", [row(0, *asked, question("last", answer=""))]))
    assert audit.errors == {"counts differ": 6, "blank text": 1}
    assert len(audit.lines) == 4
    assert audit.lines[2].startswith("...: more of this sort (counts differ)")
    assert "answer is blank" in audit.lines[3]


def test_a_split_that_cannot_be_read_does_not_end_it(tmp_path):
    write(tmp_path, "train", [row(0)])
    write(tmp_path, "broken", [row(1)])
    next((tmp_path / "broken").glob("*.arrow")).write_bytes(b"nothing")
    audit = audit_dataset(tmp_path)
    assert audit.errors == {"split cannot be read": 1}
    assert audit.counts.keys() == {"train"}
    with pytest.raises(DataError, match="no such dataset folder"):
        audit_dataset(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no split in it"):
        audit_dataset(tmp_path / "empty")


def test_the_table_of_counts(tmp_path):
    none = question("none", kind="no_target", answer="There is no cat.", phrases=[], masks=[])
    whole = question("whole", masks=[rle.encode(np.ones((40, 50), dtype=bool))])
    audit = audit_dataset(write(tmp_path, "train", [row(0, none, whole, question("q"))]))
    lines = audit.counts["train"].lines("train")
    assert lines[0] == "train: 1 pictures, 3 questions, 2 targets"
    assert lines[1].split() == ["referring", "2", "questions", "66.7%"]
    assert lines[2].split() == ["no_target", "1", "questions", "33.3%"]
    assert lines[3].endswith("0: 1, 1: 2")
    assert "5% 9.750%" in lines[4] and "50% 52.500%" in lines[4]  # of shares 5 % and 100 %
    assert lines[5].split() == ["objects", "that", "no", "answer", "names", "1"]  # grass


def test_the_command(tmp_path, capsys):
    write(tmp_path, "dev", [row(0)])
    write(tmp_path, "train", [row(1, question("q", answer="A dog."))])
    assert cli.main(["data", "check", str(tmp_path), "--split", "dev"]) == 0
    assert capsys.readouterr().out.endswith("0 errors\n0 warnings\n")
    assert cli.main(["data", "check", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert output.startswith("error: train: row 0: image-1: q: 0 <seg> in the answer")
    assert output.endswith("1 errors (counts differ 1)\n0 warnings\n")
    assert cli.main(["data", "check", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.startswith("popen: ")
    write(tmp_path, "warned", [row(2, question("w", masks=[square(3)]))])
    assert cli.main(["data", "check", str(tmp_path), "--split", "warned"]) == 0
    assert "1 warnings (tiny target 1)" in capsys.readouterr().out


def test_what_the_audit_passes_the_schema_takes(tmp_path):
    assert isinstance(Sample.from_row(row(0)).questions[0], Question)
