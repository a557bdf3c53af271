"""Whether questions and answers fit a model's context: told before the first step or the first answer."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from popen.data.safe_io import DataError
from popen.data.sample import SEG
from popen.lvlm.processing_popen import PopenProcessor

if TYPE_CHECKING:
    import datasets


def true_answer(answer: str) -> str:
    """The answer as it stands in the data: what training and teacher forcing read."""
    return answer


def no_answer(answer: str) -> None:
    """Nothing: in free generation an answer ends where the context does."""


def check_lengths(
    processor: PopenProcessor,
    rows: "datasets.Dataset",
    words: Callable[[str], str | None] = true_answer,
    quiet: bool = False,
) -> None:
    """Check that every question of the rows fits the context together with the picture and what will follow it.

    Args:
        rows: of the schema; pictures stay encoded.
        words: from the true answer to the words that will be read after the question; None for none.
        quiet: without a progress bar, as on all but the first of several processes.
    Raises:
        DataError: names picture and question of the longest that does not fit, how many there are, and the way out;
            or what `question_ids` and `answer_ids` refuse.
    """
    too_long: list[tuple[int, str, int]] = []
    shown = rows.select_columns(["image_id", "questions"])
    for row in tqdm(shown, desc="lengths", unit="picture", delay=2, disable=quiet):
        for question in row["questions"]:
            name, answer = f"{row['image_id']}/{question['id']}", words(question["answer"])
            if processor.most_tokens(question["question"], (answer or "") + SEG) <= processor.max_length:
                continue  # most are far from it, and counting takes longer than reading
            tokens = len(processor.prefix_ids) + len(processor.question_ids(question["question"], name))
            tokens += 0 if answer is None else len(processor.answer_ids(answer, name))
            if tokens > processor.max_length:
                too_long.append((tokens, name, (answer or "").count(SEG)))
    if too_long:
        tokens, name, targets = max(too_long)
        raise DataError(
            f"{name}: {tokens} tokens with picture and answer ({targets} targets), the context holds "
            f"{processor.max_length}; {len(too_long)} questions do not fit, this one is the longest: set max_length "
            f"in the model's popen_processor.json to {tokens} or more, or take them out of the data"
        )
