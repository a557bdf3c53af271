"""From hypotheses to pairs: judge and strategy by hand, reasons counted, bad judges and equal hypotheses told."""

from functools import partial

import pytest
import torch

from popen.data.safe_io import DataError
from popen.medical.cohort import Prepared
from popen.medical.mining import mine_masks
from popen.medical.pair_choices import PairArguments, judge_of, sampler_of, strategy_of
from popen.medical.pair_rounds import paired_examples, tried_judge
from popen.medical.samplers import threshold_hypotheses
from popen.medical.segmenter import Segmenter, SegmenterConfig


class Bright(torch.nn.Module):
    """The logit is the brightness; a parameter, for a device to be on."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))

    def forward(self, pictures):
        return pictures * self.gain


@pytest.fixture
def segmenter():
    config = SegmenterConfig("bright", 2, 1, ("disc",), "sigmoid", (1, 4))
    return Segmenter(config, Bright()).eval()


PICTURES = [torch.tensor([[[1.0, 0.5, -0.5, -1.0]]]), torch.tensor([[[5.0, 5.0, -5.0, -5.0]]])]
TRUTH = torch.tensor([[[1, 1, 1, 0]]]).bool()
SAMPLER = partial(threshold_hypotheses, offsets=(-0.75, 0.0, 0.75), activation="sigmoid")


def sampler(model, pictures, names):
    return SAMPLER(model, pictures)


def mined(segmenter, pictures, least_gap=0.02, judge="truth"):
    args = PairArguments(judge=judge, least_gap=least_gap)
    names = [str(i) for i in range(len(pictures))]
    truths = dict.fromkeys(names, TRUTH)
    return mine_masks(
        segmenter, pictures, names, sampler, judge_of(args, truths, "sigmoid"), strategy_of(args, 0)
    )  # fmt: skip


def test_best_against_worst_by_hand(segmenter):
    """Masks of 1, 2 and 3 pixels against a truth of 3: Dice 1/2, 4/5, 1."""
    found = mined(segmenter, PICTURES[:1])
    chosen, rejected, gap = found.pairs[0]
    assert chosen.flatten().tolist() == [True, True, True, False] and rejected.sum() == 1
    assert gap == pytest.approx(0.5) and found.reasons == {"kept": 1}
    summary = found.summary()
    assert summary["pairwise_iou"] == pytest.approx((1 / 2 + 1 / 3 + 2 / 3) / 3)
    assert summary["region_share"] == 0.5


def test_equal_hypotheses_are_counted_and_warned_of_once(segmenter):
    with pytest.warns(UserWarning, match="1 of 2 pictures have equal hypotheses") as caught:
        found = mined(segmenter, PICTURES)
    assert len(caught) == 1 and found.rows == [0] and found.reasons == {"kept": 1, "equal": 1}


def test_a_margin_that_leaves_no_pair_shows_the_gaps(segmenter):
    with pytest.raises(DataError, match=r"no pair in 1 pictures \(\{'tie': 1\}\); gaps .* largest 0\.500; lower"):
        mined(segmenter, PICTURES[:1], least_gap=0.9)


def test_agreement_and_certainty_need_no_truth(segmenter):
    """The consensus of three cuts is the middle mask."""
    chosen, _, _ = mined(segmenter, PICTURES[:1], judge="agreement").pairs[0]
    assert chosen.sum() == 2
    assert mined(segmenter, PICTURES[:1], judge="certainty", least_gap=1e-4).pairs


def prepared(masks):
    return [Prepared("0", PICTURES[0], masks, (1.0, 1.0))]


def test_a_judge_is_tried_on_labelled_cases(segmenter):
    args = PairArguments(sampler="thresholds", threshold_offsets=[-0.75, 0.0, 0.75], judge="truth")
    report = tried_judge(segmenter, prepared(TRUTH), args, 0)
    assert (report.pairs, report.pair_accuracy, report.correct_inside) == (1, 1.0, 1.0)


def test_a_judge_that_does_harm_is_refused(segmenter):
    """Agreement prefers the middle mask of two pixels to that of three, which is the truth."""
    args = PairArguments(sampler="thresholds", threshold_offsets=[-0.75, 0.0, 0.0, 0.75], judge="agreement")
    with pytest.raises(DataError, match=r"the judge is unfit on 1 labelled pairs: .*set least_correct and most_bias"):
        tried_judge(segmenter, prepared(torch.tensor([[[1, 0, 0, 0]]]).bool()), args, 0)


def test_examples_of_a_round_carry_no_labels(segmenter):
    args = PairArguments(sampler="thresholds", threshold_offsets=[-0.75, 0.0, 0.75], judge="truth")
    examples, summary = paired_examples(segmenter, segmenter, prepared(TRUTH), args, 0)
    assert examples[0].masks is None and examples[0].pair.reference.shape[0] == 4 and summary["pictures"] == 1


def test_dropout_is_asked_of_a_network_that_has_some():
    with pytest.raises(DataError, match="sampler: dropout, and the network has none; set dropout above 0"):
        sampler_of(PairArguments(sampler="dropout"), 2, 0.0, 0)
