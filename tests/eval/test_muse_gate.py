"""The text gate: what is asked, what is read from replies, and what it does to the counts."""

import sys

import pytest

from eval import muse
from eval.metrics import MaskCounts
from eval.muse_gate import described, gated, judge, messages, read_scores
from eval.muse_metrics import MuseCounts
from popen.preference.endpoint import Endpoint, EndpointChat

TWO = "The dog <seg> and the cat <seg>."


def test_masks_become_descriptions():
    assert described(TWO, ["a brown dog", None]) == "The dog (a brown dog) and the cat (nothing)."
    with pytest.raises(ValueError, match="2 <seg> in the answer and 1 descriptions"):
        described(TWO, ["a dog"])
    assert messages("Who?", "The dog (x).")[1]["content"] == "Question: Who?\nAnswer: The dog (x)."


@pytest.mark.parametrize(
    "reply, scores",
    [
        ("[9, 2]", [9, 2]),
        ("Here: ```json\n[10,1]\n```", [10, 1]),
        ("[9]", None),
        ("[9, 11]", None),
        ("[0, 5]", None),
        ("[9,, 1]", None),
        ("both fit", None),
    ],
)
def test_scores_are_read_or_refused(reply, scores):
    assert read_scores(reply, 2) == scores


def test_words_that_do_not_fit_cost_the_intersection():
    counts = MuseCounts((MaskCounts(4, 5), MaskCounts(3, 6)), (7,), (8,), (1,))
    assert gated(counts, [5, 4], least=5) == MuseCounts((MaskCounts(4, 5), MaskCounts(0, 6)), (7,), (8,), (1,))
    with pytest.raises(ValueError):
        gated(counts, [5], least=5)


def row(number, pairs, paired, predicted):
    """A row of `eval.muse` with `predicted` masks, of which `paired` have a pair."""
    surplus = predicted - len(pairs)
    said = {
        "pairs": pairs, "missed": [], "surplus": [2] * surplus, "surplus_band": [0] * surplus, "paired": paired,
        "predicted": predicted, "asked": "Who?", "described": f"{number}: " + "(x) " * predicted,
    }  # fmt: skip
    where = {"id": f"q{number}", "picture": "p", "item": "i", "kind": "k", "targets": len(pairs)}
    return where | {"arms": {"single": said}}


def test_rows_are_judged_by_the_endpoint(chat_server, tmp_path):
    """Scores go to predictions: the second answer's only pair is its second mask. The third reply is unreadable."""
    rows = [row(0, [[4, 4]], [0], 1), row(1, [[5, 5]], [1], 2), row(2, [[6, 6]], [0], 1), row(3, [], [], 0)]
    chat_server.replies = [(200, "[2]"), (200, "[1, 8]"), (200, "fine")]
    url = f"http://127.0.0.1:{chat_server.server_port}/v1"
    chat = EndpointChat(Endpoint(url, "small", workers=1, retries=0), tmp_path)
    kept, unreadable = muse.gated_rows(rows, chat, least=5)
    assert [r["arms"]["single"]["pairs"] for r in kept] == [[[0, 4]], [[5, 5]], [[6, 6]], []] and unreadable == 1
    assert rows[0]["arms"]["single"]["pairs"] == [[4, 4]], "the rows themselves stay"
    assert len(chat_server.seen) == 3 and chat.counts["asked"] == 3
    assert judge([("Who?", "0: (x) ", 1)], chat.replies) == [[2]] and chat.counts["cached"] == 1


def test_a_gate_is_given_whole(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["eval.muse", "--model", "m", "--data", "d", "--gate-url", "u"])
    with pytest.raises(SystemExit):
        muse.options()
    assert "belong together" in capsys.readouterr().err
