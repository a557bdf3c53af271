"""Visual instructions as LLaVA has them (llava_instruct_150k.json): talk about a picture, without masks.

A record has an `image` and `conversations`, in which a human and the model take turns. Each turn of the human's is one
question with the answer that follows; it is asked on its own, as every question in popen's schema is.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from popen.data.conversion import Converted
from popen.data.safe_io import DataError, inside, read_image, read_json
from popen.data.schema import SEG, Question, Sample, empty_ignore

PICTURE = "<image>"  # stands in the first turn, where the picture is shown


@dataclass(frozen=True)
class InstructedPicture:
    """A picture by its file, and all (question, answer) about it."""

    file: str
    turns: tuple[tuple[str, str], ...]


def read_instructions(path: str | Path) -> tuple[list[InstructedPicture], Counter[str]]:
    """Read and check a file of visual instructions; records of one picture are joined.

    Returns:
        The pictures in the order of the file, and what was left out, by reason.
    Raises:
        DataError: names file and record: not such a file, turns that do not alternate, blank or marked text.
    """
    data = read_json(path)
    if not isinstance(data, list):
        raise DataError(f"{path}: not visual instructions: expected a list of records; fetch it again")
    left_out: Counter[str] = Counter()
    turns: dict[str, dict[tuple[str, str], None]] = {}
    for index, record in enumerate(data):
        where = f"{path}: record {index}"
        if not isinstance(record, Mapping) or not isinstance(record.get("conversations"), list):
            raise DataError(f"{where}: no list of conversations; fetch the file again")
        if "image" not in record:
            left_out["records without a picture"] += 1
            continue
        if not isinstance(record["image"], str):
            raise DataError(f"{where}: image must be the name of a file; correct it")
        known = turns.setdefault(record["image"], {})
        for turn in _turns(record["conversations"], where):
            left_out["questions listed twice"] += turn in known
            known[turn] = None
    return [InstructedPicture(file, tuple(known)) for file, known in turns.items()], +left_out


def _turns(said: list, where: str) -> list[tuple[str, str]]:
    words = []
    for number, turn in enumerate(said):
        speaker = ("human", "gpt")[number % 2]
        if not isinstance(turn, Mapping) or turn.get("from") != speaker or not isinstance(turn.get("value"), str):
            raise DataError(f"{where}: turn {number} is not text from {speaker!r}; correct or remove the record")
        text = turn["value"].replace(PICTURE, " ").strip() if speaker == "human" else turn["value"].strip()
        if not text or SEG in text:
            raise DataError(f"{where}: turn {number} is blank or has {SEG} in it; correct or remove the record")
        words.append(text)
    if len(words) % 2 or not words:
        raise DataError(f"{where}: {len(words)} turns; each question needs its answer")
    return list(zip(words[::2], words[1::2], strict=True))


def instructed_row(picture: InstructedPicture, images: str | Path, split: str, max_pixels: int) -> Converted:
    """Make the row of one picture under `images`: kind "vqa", no targets, and nothing known of what is visible.

    Raises:
        DataError: a broken or missing picture.
    """
    file = inside(images, picture.file)
    image = read_image(file, max_pixels)
    where = f"vqa/{split}/{Path(picture.file).with_suffix('').as_posix()}"
    questions = tuple(
        Question(f"{where}/{number}", "vqa", question, answer, (), ())
        for number, (question, answer) in enumerate(picture.turns)
    )
    row = Sample(image, where, (), empty_ignore(image.size[1], image.size[0]), questions).to_row()
    return Converted({**row, "image": {"bytes": file.read_bytes(), "path": None}})
