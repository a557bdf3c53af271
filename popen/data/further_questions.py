"""Questions that take more than a name: what things are for, and where they are to each other."""

import random
from collections.abc import Collection, Sequence

import numpy as np

from popen.data.relations import relation_questions
from popen.data.schema import Question
from popen.data.uses import use_questions

MOST_USES, MOST_RELATIONS = 3, 2  # of one picture; the row is one training sequence


def further_questions(
    where: str,
    first: int,
    targets: Sequence[tuple[str, np.ndarray]],
    complete: bool,
    rng: random.Random,
    hardly_seen: Collection[str] = (),
) -> tuple[Question, ...]:
    """Ask about uses and relations of a picture's labelled things.

    Args:
        where: the questions get the ids "<where>/<first>" and so on.
        targets: name and mask, bool (H, W), of everything in the picture that can be answered with.
        complete: whether what has no label is certainly not there.
        rng: chooses among what can be asked.
        hardly_seen: names of what is there, but too small or too vague to answer with: nobody says there is none.
    """
    related = relation_questions(targets)
    drafts = use_questions(targets, complete, MOST_USES, rng, hardly_seen)
    drafts += rng.sample(related, min(len(related), MOST_RELATIONS))
    return tuple(Question(f"{where}/{first + index}", *draft) for index, draft in enumerate(drafts))
