"""MUSE's text gate, optional: does what an answer says fit what it outlines? A model behind an endpoint is the judge.

PixelLM's figure shows it: the masks of an answer are replaced by descriptions of the true things they match, and a
language model says whether the sentence fits. Its script, its prompt and its threshold were never released; the prompt
here is ours, and the least score is whoever runs it to choose.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from eval.metrics import MaskCounts
from eval.muse_metrics import MuseCounts
from popen.data.schema import SEG

NOTHING = "nothing"
LOWEST, HIGHEST = 1, 10
INSTRUCTIONS = (
    "You check answers about pictures. In the answer, what stands in brackets behind a phrase describes what was "
    f"really outlined for it. Rate for each bracket how well it fits the phrase, from {LOWEST} (another thing) to "
    f"{HIGHEST} (the same thing). Reply with a JSON list of whole numbers, one per bracket, and nothing else."
)


def described(answer: str, matched: list[str | None]) -> str:
    """The answer with each `<seg>` replaced by the description of what its mask matches.

    Args:
        matched: one per `<seg>`; None where the mask matches nothing.
    Raises:
        ValueError: their number differs.
    """
    pieces = answer.split(SEG)
    if len(pieces) != len(matched) + 1:
        raise ValueError(f"{len(pieces) - 1} {SEG} in the answer and {len(matched)} descriptions; give one each")
    brackets = [f"({NOTHING if words is None else words})" for words in matched]
    return "".join(piece + bracket for piece, bracket in zip(pieces, [*brackets, ""], strict=True))


def messages(question: str, text: str) -> list[Any]:
    """What the judge is asked about one answer."""
    user = f"Question: {question}\nAnswer: {text}"
    return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": user}]


def read_scores(reply: str, count: int) -> list[int] | None:
    """The first JSON list in the reply; None where it is not `count` whole numbers in LOWEST..HIGHEST."""
    found = re.search(r"\[[\d,\s]*\]", reply)
    try:
        scores = json.loads(found.group()) if found else []
    except json.JSONDecodeError:
        return None
    return scores if len(scores) == count and all(LOWEST <= s <= HIGHEST for s in scores) else None


def gated(counts: MuseCounts, scores: list[int], least: int) -> MuseCounts:
    """Pairs whose words score below `least` share nothing: their intersection is 0.

    Args:
        scores: one per pair.
    Raises:
        ValueError: their number differs.
    """
    judged = zip(counts.pairs, scores, strict=True)
    return replace(counts, pairs=tuple(p if score >= least else MaskCounts(0, p.union) for p, score in judged))


def judge(asked: list[tuple[str, str, int]], replies: Callable) -> list[list[int] | None]:
    """Scores of each (question, described answer, number of brackets); None where the reply cannot be read.

    Args:
        replies: of an `EndpointChat`.
    """
    texts = replies(asked, lambda one: messages(one[0], one[1]))
    return [read_scores(text, count) for text, (_, _, count) in zip(texts, asked, strict=True)]
