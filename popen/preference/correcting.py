"""Text preferences: a model's own answer against a minimal correction of it, with the changed tokens marked."""

import difflib
from collections import Counter
from dataclasses import dataclass

from popen.data.schema import SEG, Question, Sample

CORRECT, PHRASES, REWRITTEN = "correct", "phrases", "rewritten"
REFUSED_SEG, REFUSED_WORDS = REFUSALS = "refused_seg", "refused_words"  # a proposed correction is not minimal
MOST_WORDS = 8  # of a replaced phrase


@dataclass(frozen=True)
class Correction:
    """A corrected answer and how it came about: "phrases" were replaced, or the sentence was "rewritten"."""

    text: str
    kind: str


def correct_with_truth(
    answer: str, phrases: tuple[str, ...], truth: str, true_phrases: tuple[str, ...], seg: str
) -> Correction | None:
    """Edits only the hallucinated phrases of an answer, from annotations (POPEN's corrector without a GPT; ours).

    Phrases that the truth also names are kept; the others are replaced in reading order by the true ones left over.
    Where the number of targets differs, or where words outside the phrases are wrong, the true answer is taken.

    Args:
        answer, truth: sentences with `seg` after each phrase. phrases, true_phrases: the phrases in order.
    Returns:
        None where the answer already says what the truth says.
    """
    if answer == truth or (
        Counter(phrases) == Counter(true_phrases) and _frame(answer, phrases, seg) == _frame(truth, true_phrases, seg)
    ):
        return None
    if len(phrases) != len(true_phrases) or not phrases:
        return Correction(truth, REWRITTEN)
    spare = list((Counter(true_phrases) - Counter(phrases)).elements())
    spare.sort(key=true_phrases.index)
    keep = Counter(true_phrases)
    pieces, said = answer.split(seg), []
    for i, phrase in enumerate(phrases):
        if keep[phrase] > 0:
            keep[phrase] -= 1
            said.append(phrase)
        elif phrase and spare and pieces[i].rstrip().endswith(phrase):
            head = pieces[i].rstrip()
            said.append(spare.pop(0))
            pieces[i] = head[: len(head) - len(phrase)] + said[-1] + pieces[i][len(head) :]
        else:
            return Correction(truth, REWRITTEN)
    corrected = seg.join(pieces)
    if _frame(corrected, tuple(said), seg) != _frame(truth, true_phrases, seg) or corrected == answer:
        return Correction(truth, REWRITTEN)
    return Correction(corrected, PHRASES)


def correct_all_with_truth(
    asked: list[tuple[Sample, Question, str, tuple[str, ...]]],
) -> list[Correction | str | None]:
    """`correct_with_truth` of each (sample, question, answer, phrases)."""
    return [correct_with_truth(text, phrases, q.answer, q.phrases, SEG) for _, q, text, phrases in asked]


def minimal_correction(answer: str, phrases: tuple[str, ...], proposed: str, seg: str) -> Correction | str | None:
    """Takes a correction that somebody proposed only where it replaces phrases and leaves all else alone.

    Args:
        answer: a sentence with `seg` after each phrase. phrases: these phrases in order. proposed: its correction.
    Returns:
        the correction; None where nothing was changed; or why it is refused: REFUSED_SEG where a `seg` is missing, new
        or without a phrase, REFUSED_WORDS where words around the phrases differ or a phrase grew to a sentence.
    """
    proposed = " ".join(proposed.split())
    if proposed == " ".join(answer.split()):
        return None
    own, other = answer.split(seg), proposed.split(seg)
    if len(own) != len(other) or not phrases:
        return REFUSED_SEG
    for piece, phrase, new in zip(own, phrases, other, strict=False):
        head = " ".join(piece.rstrip().removesuffix(phrase).split())
        words = " ".join(new.split())
        if not (words + " ").startswith(head + " " if head else ""):
            return REFUSED_WORDS
        said = words[len(head) :].split()
        if not said:
            return REFUSED_SEG
        if len(said) > MOST_WORDS:
            return REFUSED_WORDS
    if " ".join(own[-1].split()) != " ".join(other[-1].split()):
        return REFUSED_WORDS
    return Correction(proposed, PHRASES)


def changed_tokens(chosen: tuple[int, ...], rejected: tuple[int, ...]) -> tuple[list[bool], list[bool]]:
    """Which tokens differ between a corrected answer and the original: the index lists L_yc and L_y as masks."""
    matcher = difflib.SequenceMatcher(a=rejected, b=chosen, autojunk=False)
    changed_rejected, changed_chosen = [True] * len(rejected), [True] * len(chosen)
    for block in matcher.get_matching_blocks():
        for i in range(block.size):
            changed_rejected[block.a + i] = False
            changed_chosen[block.b + i] = False
    return changed_chosen, changed_rejected


def _frame(answer: str, phrases: tuple[str, ...], seg: str) -> tuple[str, ...]:
    """The answer's words around its phrases."""
    pieces = answer.split(seg)
    for i, phrase in enumerate(phrases[: len(pieces)]):
        if phrase and pieces[i].rstrip().endswith(phrase):
            pieces[i] = pieces[i].rstrip()[: -len(phrase)]
    return tuple(pieces)
