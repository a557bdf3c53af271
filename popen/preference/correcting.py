"""Text preferences: a model's own answer against a minimal correction of it, with the changed tokens marked."""

import difflib
from collections import Counter
from dataclasses import dataclass

CORRECT, PHRASES, REWRITTEN = "correct", "phrases", "rewritten"


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
