import errno
import io
import os
import struct
import zlib

import datasets
import numpy as np
import pytest
from PIL import Image

from popen.data import rle, schema
from popen.data.safe_io import DataError, StorageError
from popen.data.schema import (
    FEATURES,
    Question,
    Sample,
    check_unique_ids,
    empty_ignore,
    load_split,
    split_names,
    write_dataset,
)

HEIGHT, WIDTH = 6, 8


def square(row, column):
    mask_HW = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask_HW[row : row + 2, column : column + 2] = True
    return mask_HW


def sample(image_id="a", **changes):
    image = Image.fromarray(np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3))
    masks = (rle.encode(square(0, 0)), rle.encode(square(3, 4)))
    questions = (
        Question(f"{image_id}/0", "multi", "Segment both.", "A ball <seg> and a cube <seg>.", ("ball", "cube"), masks),
        Question(f"{image_id}/1", "no_target", "Is there a dog?", "There is no dog.", (), ()),
    )
    fields = {"image": image, "image_id": image_id, "objects": ("ball", "cube"), "questions": questions}
    return Sample(**{**fields, "ignore": empty_ignore(HEIGHT, WIDTH), **changes})


def same(one, other):
    assert np.array_equal(np.asarray(one.image), np.asarray(other.image))
    assert (one.image_id, one.objects, one.ignore) == (other.image_id, other.objects, other.ignore)
    assert one.questions == other.questions


def test_row_round_trip():
    same(Sample.from_row(sample().to_row()), sample())


def test_masks_are_decoded_at_the_size_of_the_image():
    multi, none = sample().questions
    assert np.array_equal(multi.decoded_masks(HEIGHT, WIDTH), np.stack([square(0, 0), square(3, 4)]))
    assert none.decoded_masks(HEIGHT, WIDTH).shape == (0, HEIGHT, WIDTH)
    assert not sample().decoded_ignore().any()
    with pytest.raises(DataError, match=r"a/0: mask 0: size \[6, 8\]"):
        multi.decoded_masks(WIDTH, HEIGHT)


def test_disk_round_trip(tmp_path):
    written = write_dataset(iter([sample("a"), sample("b").to_row()]), tmp_path, "train")
    write_dataset([sample("c")], tmp_path, "dev")
    assert written.features == {**FEATURES, "image": datasets.Image(decode=False)}
    assert sorted(os.listdir(tmp_path)) == ["dev", "train"]
    loaded = load_split(tmp_path, "train")
    check_unique_ids(loaded)
    for row, expected in zip(loaded, (sample("a"), sample("b")), strict=True):
        same(Sample.from_row(row), expected)
    assert datasets.load_from_disk(str(tmp_path / "dev"))[0]["image_id"] == "c"


def test_the_same_rows_give_the_same_files(tmp_path):
    for name in ("one", "two"):
        write_dataset([sample("a"), sample("b")], tmp_path / name, "train")
    for file in (tmp_path / "one" / "train").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / "train" / file.name).read_bytes()
    write_dataset([sample("a"), sample("c")], tmp_path / "two", "train")
    assert load_split(tmp_path / "one", "train")._fingerprint != load_split(tmp_path / "two", "train")._fingerprint


def test_encoded_pictures_are_kept_as_they_came(tmp_path):
    buffer = io.BytesIO()
    sample().image.save(buffer, "JPEG")
    row = {**sample().to_row(), "image": {"bytes": buffer.getvalue(), "path": None}}
    write_dataset([row], tmp_path, "train")
    encoded = load_split(tmp_path, "train").cast_column("image", datasets.Image(decode=False))
    assert encoded[0]["image"]["bytes"] == buffer.getvalue()
    decoded = Sample.from_row(load_split(tmp_path, "train")[0]).image
    assert np.array_equal(np.asarray(decoded), np.asarray(Image.open(buffer)))


def bomb():
    """A PNG of a few bytes whose header promises 60,000 × 60,000 pixels."""
    buffer = io.BytesIO()
    sample().image.save(buffer, "PNG")
    data = buffer.getvalue()
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.mark.parametrize("image", [b"no picture", bomb()], ids=["junk", "bomb"])
def test_a_picture_that_cannot_be_decoded_is_named(tmp_path, image):
    """By its row: `datasets` itself would raise errors of Pillow that do not say which."""
    rows = [{**sample().to_row(), "image": {"bytes": image, "path": None}}]
    datasets.Dataset.from_list(rows, features=FEATURES).save_to_disk(str(tmp_path / "train"))
    with pytest.raises(DataError, match=f"^{sample().image_id}: (not a picture|far over)"):
        Sample.from_row(load_split(tmp_path, "train")[0])


def changed(**changes):
    row = sample().to_row()
    row["questions"][0].update(changes)
    return row


small = rle.encode(np.ones((2, 2), dtype=bool))
BAD_ROWS = {
    "too few <seg>": (
        changed(answer="A ball <seg> and a cube."),
        r"^a/a/0: 1 <seg> in the answer, 2 phrases, 2 masks",
    ),
    "too few phrases": (changed(phrases=["ball"]), "^a/a/0: 2 <seg> in the answer, 1 phrases"),
    "too few masks": (changed(masks=[]), "^a/a/0: .* 0 masks"),
    "mask of another size": (changed(masks=[small, small]), r"^a/a/0: mask 0: size \[2, 2\]"),
    "malformed mask": (changed(masks=[{"size": [6, 8], "counts": "1"}] * 2), "^a/a/0: mask 0: RLE counts: sum"),
    "blank question": (changed(question="  "), "^a/a/0: blank"),
    "mark in a question": (changed(question="Where is it <seg>?"), "^a/a/0: <seg> stands in the question"),
    "blank id": (changed(id=""), "^a/: blank"),
    "same id": (changed(id="a/1"), "^a/a/1: two questions"),
    "id is a number": (changed(id=7), "^a/7: 'id' must be text"),
    "phrase is a number": (changed(phrases=[1, 2]), "^a/a/0: 'phrases' must be a list of text"),
    "masks are text": (changed(masks=["x", "y"]), "^a/a/0: mask 0: RLE"),
    "no answer": (changed(answer=None), "^a/a/0: 'answer' is missing"),
    "ignore of another size": ({**sample().to_row(), "ignore": small}, "^a: ignore: size"),
    "no ignore": ({**sample().to_row(), "ignore": None}, "^a: column 'ignore'"),
    "no image": ({**sample().to_row(), "image": None}, "^a: column 'image'"),
    "CMYK image": ({**sample().to_row(), "image": Image.new("CMYK", (8, 6))}, "^a: CMYK"),
    "broken bytes": ({**sample().to_row(), "image": {"bytes": b"<html>"}}, "^a: not a picture"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_row_is_named_in_one_line(name):
    row, message = BAD_ROWS[name]
    with pytest.raises(DataError, match=message) as error:
        Sample.from_row(row)
    assert "\n" not in str(error.value)


def test_a_bad_row_leaves_the_earlier_split(tmp_path):
    write_dataset([sample("a")], tmp_path, "train")
    with pytest.raises(DataError, match=r"^row 1: a/a/0: blank"):
        write_dataset([sample("b"), changed(question="")], tmp_path, "train")
    with pytest.raises(DataError, match=r"^b/b/0: an earlier row"):
        write_dataset([sample("b"), sample("b")], tmp_path, "train")
    with pytest.raises(DataError, match="no questions to write"):
        write_dataset([], tmp_path, "train")
    assert os.listdir(tmp_path) == ["train"]
    assert load_split(tmp_path, "train")["image_id"][:] == ["a"]


@pytest.mark.parametrize("moved", ["train", "new"])  # the old split aside, the new one into its place
def test_a_refused_rename_leaves_the_earlier_split(tmp_path, monkeypatch, moved):
    write_dataset([sample("a")], tmp_path, "train")
    rename = os.rename

    def refusing(source, target):
        if os.path.basename(source) == moved:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(schema.os, "rename", refusing)
    with pytest.raises(StorageError, match=r"train: .*No space left.*earlier split is intact"):
        write_dataset([sample("b")], tmp_path, "train")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["train"]
    assert load_split(tmp_path, "train")["image_id"][:] == ["a"]


def test_a_disk_that_fills_up_leaves_the_earlier_split(tmp_path, monkeypatch):
    write_dataset([sample("a")], tmp_path, "train")

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets.arrow_writer.ArrowWriter, "finalize", full)
    with pytest.raises(StorageError, match=r"train: .*No space left.*earlier split is intact"):
        write_dataset([sample("b")], tmp_path, "train")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["train"]
    assert load_split(tmp_path, "train")["image_id"][:] == ["a"]


def test_an_error_of_the_rows_is_raised_as_it_is(tmp_path):
    def rows():
        yield sample("a")
        raise PermissionError("the rows' own")

    with pytest.raises(PermissionError, match="the rows' own"):
        write_dataset(rows(), tmp_path, "train")
    assert os.listdir(tmp_path) == []


def test_what_is_no_split_is_not_replaced(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="not a dataset split"):
        write_dataset([sample()], tmp_path, "train")
    for split in ("", "../train", "a/b", ".hidden"):
        with pytest.raises(DataError, match="split"):
            write_dataset([sample()], tmp_path, split)


def test_split_names(tmp_path):
    with pytest.raises(DataError, match="no such dataset folder"):
        split_names(tmp_path / "none")
    with pytest.raises(DataError, match="no split in it"):
        split_names(tmp_path)
    for split in ("val", "train"):
        write_dataset([sample()], tmp_path, split)
    (tmp_path / "notes").mkdir()
    assert split_names(tmp_path) == ["train", "val"]


def test_load_split_says_what_is_there(tmp_path):
    with pytest.raises(DataError, match="no such dataset folder"):
        load_split(tmp_path / "none", "train")
    write_dataset([sample()], tmp_path, "train")
    write_dataset([sample()], tmp_path, "val")
    with pytest.raises(DataError, match="no split 'dev'; there: train, val"):
        load_split(tmp_path, "dev")
    (tmp_path / "val" / "state.json").write_text("{")
    with pytest.raises(DataError, match="val: cannot be loaded"):
        load_split(tmp_path, "val")


@pytest.mark.parametrize(
    ("change", "column"),
    [
        (lambda data: data.remove_columns("ignore"), "ignore"),
        (lambda data: data.add_column("extra", [1]), "extra"),
        (lambda data: data.cast_column("objects", datasets.List(datasets.Value("large_string"))), "objects"),
    ],
)
def test_load_split_names_the_column_that_differs(tmp_path, change, column):
    change(write_dataset([sample()], tmp_path / "good", "train")).save_to_disk(str(tmp_path / "bad" / "train"))
    with pytest.raises(DataError, match=f"column '{column}'"):
        load_split(tmp_path / "bad", "train")


def test_ids_repeated_over_rows_are_named():
    rows = [sample("a").to_row(), sample("a").to_row()]
    with pytest.raises(DataError, match="'a/0' stands twice"):
        check_unique_ids(datasets.Dataset.from_list(rows, features=FEATURES))
