"""Pairs between two people, by hand: whose mask is chosen, by how much, and what is counted and left out."""

import pytest
import torch

from popen.data.safe_io import DataError
from popen.medical.annotators import annotated_examples, annotator_pairs
from popen.medical.cohort import Prepared
from popen.medical.segmenter import Segmenter, SegmenterConfig


def drawn(*rows):
    """A case of one row of pixels; the first mask is the senior annotator's."""
    first, *further = [torch.tensor([[row]]).bool() for row in rows]
    return Prepared("a", torch.arange(4.0)[None, None], first, (1.0, 1.0), "a", tuple(further))


def test_the_first_annotator_is_preferred_where_another_differs():
    """Dice of 2 and 1 pixels with 1 shared is 2/3; the third person agrees with the first, the last by a hair."""
    found = annotator_pairs(
        [drawn([1, 1, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]), drawn([1, 1, 1, 0], [1, 1, 0, 0])], 0.25, "sigmoid"
    )
    (chosen, rejected, gap), *others = found.pairs
    assert chosen.flatten().tolist() == [1, 1, 0, 0] and rejected.flatten().tolist() == [0, 1, 0, 0] and not others
    assert gap == pytest.approx(1 / 3) and found.rows == [0]
    assert found.reasons == {"kept": 1, "equal": 1, "tie": 1}
    summary = found.summary()
    assert summary["pairwise_iou"] == pytest.approx((1 / 2 + 1 + 2 / 3) / 3) and summary["region_share"] == 0.25


def test_of_classes_the_background_does_not_count():
    """The same people with a background beside each mask: as before, where it would add Dice 3/4 and IoU 3/5."""
    one = drawn([1, 1, 0, 0], [0, 1, 0, 0])
    masks, further = (torch.cat([~own, own]) for own in (one.masks, *one.further))
    found = annotator_pairs([Prepared("a", one.picture, masks, (1.0, 1.0), "a", (further,))], 0.25, "softmax")
    assert found.pairs[0][2] == pytest.approx(1 / 3) and torch.equal(found.pairs[0][0], masks)
    assert found.summary()["pairwise_iou"] == 0.5 and found.summary()["region_share"] == 0.25


def test_examples_hold_the_pair_and_no_labels():
    class Bright(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(()))

        def forward(self, pictures):
            return pictures * self.gain

    reference = Segmenter(SegmenterConfig("bright", 2, 1, ("vessel",), "sigmoid", (1, 4)), Bright()).eval()
    (example,), summary = annotated_examples(reference, [drawn([1, 1, 0, 0], [0, 1, 0, 1])], 0.02)
    assert example.masks is None and summary["reasons"] == {"kept": 1}
    assert example.pair.index.tolist() == [0, 3] and example.pair.sign.tolist() == [1, -1]
    assert example.pair.reference.tolist() == [[0, 3]] * 4  # brightness there, in every view


def test_what_gives_no_pair_is_said():
    with pytest.raises(DataError, match=r"a: masks of one annotator; pairs_from: annotators needs masks_2/ beside"):
        annotator_pairs([drawn([1, 1, 0, 0])], 0.02, "sigmoid")
    with pytest.raises(
        DataError, match=r"no pair between annotators in 1 pictures \(\{'tie': 1\}\); gaps .* lower le"
    ):
        annotator_pairs([drawn([1, 1, 0, 0], [0, 1, 0, 0])], 0.5, "sigmoid")
