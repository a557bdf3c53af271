"""From hypotheses to pairs: judge and strategy by hand, reasons counted, bad judges and equal hypotheses told."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from popen.data.safe_io import DataError
from popen.medical.cohort import Prepared
from popen.medical.mining import Candidates, candidates_of, mine_masks
from popen.medical.pair_choices import PairArguments, judge_of, sampler_of, strategy_of
from popen.medical.pair_rounds import mined as mined_pairs
from popen.medical.pair_rounds import paired_examples, shown_winners, taught_judge, tried_judge
from popen.medical.samplers import threshold_hypotheses
from popen.medical.segmenter import Segmenter, SegmenterConfig


class Bright(torch.nn.Module):
    """The logit is the brightness; a parameter, for a device to be on."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))

    def forward(self, pictures):
        return pictures * self.gain


class Classes(Bright):
    """A background beside it, as likely as it is dark."""

    def forward(self, pictures):
        return torch.cat([-pictures, pictures], 1) * self.gain


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
        segmenter, pictures, names, sampler, judge_of(args, truths), strategy_of(args, 0)
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
    return [Prepared("0", PICTURES[0], masks, (1.0, 1.0), "p")]


def test_a_judge_is_tried_on_labelled_cases(segmenter):
    args = PairArguments(sampler="thresholds", threshold_offsets=[-0.75, 0.0, 0.75], judge="truth")
    tried = tried_judge(segmenter, prepared(TRUTH), args, 0)
    report = tried.report
    assert tried.weights is None and str(tried) == str(report)
    assert (report.pairs, report.pair_accuracy, report.correct_inside) == (1, 1.0, 1.0)


def test_a_judge_that_does_harm_is_refused(segmenter):
    """Agreement prefers the middle mask of two pixels to that of three, which is the truth."""
    args = PairArguments(sampler="thresholds", threshold_offsets=[-0.75, 0.0, 0.0, 0.75], judge="agreement")
    with pytest.raises(DataError, match=r"the judge is unfit on 1 labelled pairs: .*with unfit_judge: weight"):
        tried_judge(segmenter, prepared(torch.tensor([[[1, 0, 0, 0]]]).bool()), args, 0)


def pictures_of_two_kinds():
    """Two whose middle mask is the truth, one whose smallest is; agreement prefers the middle one in all.

    Masks of 1, 2, 2 and 3 pixels: the middle two agree, and the smallest is worst, 2·1/3 against 2·2/5.
    """
    truths = [torch.tensor([[row]]).bool() for row in ([1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0])]
    return [Prepared(str(i), PICTURES[0], truth, (1.0, 1.0), str(i)) for i, truth in enumerate(truths)]


BIASED = PairArguments(
    sampler="thresholds", threshold_offsets=[-0.75, 0.0, 0.0, 0.75], judge="agreement", unfit_judge="weight"
)


def test_an_unfit_judge_gets_weights_on_request(segmenter):
    """All three winners have grown by ln 2, on the one pixel of R two are right: p = (2 + 1) / (3 + 2), w = 0.2."""
    tried = tried_judge(segmenter, pictures_of_two_kinds(), replace(BIASED, most_bias=0.2), 0)
    assert tried.weights.weights == pytest.approx((0, 0, 0, 0, 0.2)) and tried.weights.pairs == (0, 0, 0, 0, 3)
    assert "unfit, its pairs get a weight by growth in log area: " in str(tried)
    examples, summary = paired_examples(
        segmenter, segmenter, pictures_of_two_kinds(), BIASED, 0, weights=tried.weights
    )
    assert [own.pair.weight for own in examples] == pytest.approx([0.2] * 3)
    assert summary["weightless"] == 0 and summary["weight"] == pytest.approx(0.2)


def test_winners_are_shown_as_labels_light_ones_less_often(segmenter):
    args = replace(BIASED, winners_per_pair=3)
    examples, _ = paired_examples(segmenter, segmenter, pictures_of_two_kinds(), args, 0)
    winners, pairs = examples[:9], examples[9:]
    assert len(pairs) == 3 and all(own.pair is not None and own.masks is None for own in pairs)
    assert all(own.pair is None and own.masks is pairs[at // 3].pair.chosen for at, own in enumerate(winners))
    light = replace(pairs[0], pair=replace(pairs[0].pair, weight=0.5))
    assert len(shown_winners([light], 3)) == 2 and not shown_winners(pairs, 0)
    with pytest.raises(DataError, match="winners_per_pair = -1: 0 shows none"):
        PairArguments(winners_per_pair=-1)


def test_weightless_pairs_are_dropped_and_none_left_is_an_error(segmenter):
    nothing = tried_judge(segmenter, pictures_of_two_kinds()[2:], BIASED, 0).weights
    with pytest.raises(
        DataError, match=r"nothing for any of 3 pairs \(weight by growth .*\); take another judge or sampler, or"
    ):
        paired_examples(segmenter, segmenter, pictures_of_two_kinds(), BIASED, 0, weights=nothing)
    grown_only = replace(nothing, weights=(0.0, 0.0, 0.0, 0.0, 0.5))
    quiet = Prepared("quiet", torch.tensor([[[1.0, -0.5, -0.6, -1.0]]]), None, (1.0, 1.0), "q")
    examples, summary = paired_examples(
        segmenter, segmenter, [*pictures_of_two_kinds(), quiet], BIASED, 0, weights=grown_only
    )
    assert len(examples) == 3 and summary["weightless"] == 1 and summary["weight"] == 0.5


def test_flips_exchange_the_orders_and_are_counted(segmenter):
    cases = [Prepared(str(i), PICTURES[0], TRUTH, (1.0, 1.0), str(i)) for i in range(40)]
    args = PairArguments(sampler="thresholds", threshold_offsets=[-0.75, 0.0, 0.75], judge="truth")
    straight, wrong, some = (
        mined_pairs(segmenter, cases, replace(args, flip_rate=rate), 0) for rate in (0.0, 1.0, 0.3)
    )
    assert straight.summary()["flipped"] == 0 and wrong.summary()["flipped"] == 40
    for (chosen, rejected, gap), (other, another, same) in zip(straight.pairs, wrong.pairs, strict=True):
        assert torch.equal(chosen, another) and torch.equal(rejected, other) and gap == same
    exchanged = [own[0].sum() < own[1].sum() for own in some.pairs]
    assert sum(exchanged) == some.flipped and 5 <= some.flipped <= 19
    again = mined_pairs(segmenter, cases[::-1], replace(args, flip_rate=0.3), 0)
    assert [bool(own[0].sum() < own[1].sum()) for own in again.pairs][::-1] == [bool(own) for own in exchanged]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"flip_rate": 1.5}, "flip_rate = 1.5: a share of the judge's orders lies in 0..1"),
        ({"regressor_steps": 0}, "regressor_steps = 0: a judge needs at least one to learn"),
    ],
)
def test_arguments_out_of_range_are_named(wrong, message):
    with pytest.raises(DataError) as error:
        PairArguments(**wrong)
    assert str(error.value) == message


def test_a_regressor_is_tried_on_what_it_has_not_seen(segmenter):
    args = PairArguments(sampler="thresholds", threshold_offsets=[-0.75, 0.75], judge="regressor", regressor_steps=2)
    regressor, unseen = taught_judge(segmenter, pictures_of_two_kinds(), args, 0)
    assert {own.name for own in unseen} < {"0", "1", "2"}
    args = replace(args, least_gap=0.0)
    examples, _ = paired_examples(segmenter, segmenter, pictures_of_two_kinds(), args, 0, regressor)
    assert len(examples) == 3
    assert taught_judge(segmenter, pictures_of_two_kinds(), BIASED, 0)[0] is None
    with pytest.raises(ValueError, match="judge: regressor, and none was handed in"):
        paired_examples(segmenter, segmenter, pictures_of_two_kinds(), args, 0)


def test_the_area_of_classes_is_that_without_the_background():
    """Of one-hot masks the background grows by what the rest loses: with it no judge would be biased."""
    config = SegmenterConfig("bright", 2, 1, ("background", "disc"), "softmax", (1, 4))
    two = Segmenter(config, Classes()).eval()
    truths = [torch.cat([~own.masks, own.masks]) for own in pictures_of_two_kinds()]
    cases = [Prepared(str(i), PICTURES[0], own, (1.0, 1.0), str(i)) for i, own in enumerate(truths)]
    args = replace(BIASED, threshold_offsets=[-1.5, 0.0, 0.0])
    tried = tried_judge(two, cases, args, 0)
    assert tried.report.area_bias == pytest.approx(2 / 3 * math.log(2))  # right in two, in one the wrong way
    assert tried.weights.pairs == (0, 0, 0, 0, 3)


def one_hot(*discs):
    """Candidates of classes, bool (K, 2, 1, width): the background beside each row of the disc's pixels."""
    found = torch.tensor(discs)[:, None].bool()
    return torch.stack([~found, found], 1)


def of_classes(*discs, probabilities=None):
    masks = one_hot(*discs)
    probabilities = masks.float() if probabilities is None else probabilities
    return Candidates("0", torch.zeros(1, 1, masks.shape[-1]), masks, probabilities, probabilities.mean(0), "softmax")


ONE_OF_99 = [[1] + [0] * 98, [0, 1] + [0] * 97]  # two discs of a pixel that share none, in a picture of 99


@pytest.mark.parametrize(
    ("judge", "qualities"),
    [
        ("truth", [1.0, 0.0]),
        ("agreement", [0.0, 0.0]),  # one half is not more than the background's half, so nothing is agreed on
    ],
)
def test_judges_of_classes_leave_the_background_out(judge, qualities):
    """With it, discs that share nothing would score a mean of ½ and 98/99."""
    truths = {"0": one_hot(ONE_OF_99[0])[0]}
    assert judge_of(PairArguments(judge=judge), truths)(of_classes(*ONE_OF_99)).tolist() == qualities


def test_certainty_of_classes_leaves_the_background_out():
    """A disc of p = ½ and a sure background elsewhere: −ln 2 on the pixel where any candidate is on, 0 for the other;
    over the whole picture it would be a third of that."""
    disc = torch.tensor([[0.5, 0.0, 0.0], [1.0, 0.0, 0.0]])[:, None]
    own = of_classes([1, 0, 0], [1, 0, 0], probabilities=torch.stack([1 - disc, disc], 1))
    found = judge_of(PairArguments(judge="certainty"), {})(own)
    assert found.tolist() == pytest.approx([-math.log(2), 0.0], abs=1e-9)


def test_diversity_of_classes_leaves_the_background_out():
    """Cuts of 1, 2 and 3 of 4 pixels as for one region: the background would add 1/3, 2/3 and 1/2."""
    config = SegmenterConfig("bright", 2, 1, ("background", "disc"), "softmax", (1, 4))
    two = Segmenter(config, Classes()).eval()
    cut = partial(threshold_hypotheses, offsets=(-1.5, 0.0, 1.5), activation="softmax")
    args = PairArguments(judge="truth")
    judge = judge_of(args, {"0": torch.cat([~TRUTH, TRUTH])})
    found = mine_masks(
        two, PICTURES[:1], ["0"], lambda model, pictures, _: cut(model, pictures), judge, strategy_of(args, 0)
    )
    summary = found.summary()
    assert summary["pairwise_iou"] == pytest.approx((1 / 2 + 1 / 3 + 2 / 3) / 3)
    assert summary["region_share"] == 0.5 and found.pairs[0][2] == pytest.approx(0.5)
    assert (found.pairs[0][0].sum(0) == 1).all()  # the pair itself keeps its background


def test_a_pixel_that_changes_its_class_is_one_disagreement():
    """Of 4 classes one of 4 pixels differs: a quarter, though of 16 entries two differ."""
    labels = torch.tensor([[1, 2, 3, 0], [2, 2, 3, 0]])
    logits = 9.0 * torch.nn.functional.one_hot(labels, 4).movedim(-1, 1)[:, :, None]
    config = SegmenterConfig("bright", 2, 1, ("background", "a", "b", "c"), "softmax", (1, 4))
    four = Segmenter(config, Bright()).eval()
    args = PairArguments(judge="truth")
    judge = judge_of(args, {"0": logits[0] > 0})
    found = mine_masks(four, PICTURES[:1], ["0"], lambda *_: logits[None], judge, strategy_of(args, 0))
    assert found.summary()["region_share"] == 0.25
    assert found.pairs[0][2] == pytest.approx(1 - (0 + 2 / 3 + 1) / 3)


def test_candidates_know_where_their_regions_begin(segmenter):
    config = SegmenterConfig("bright", 2, 1, ("background", "disc"), "softmax", (1, 4))
    two = Segmenter(config, Classes()).eval()
    for model, first in ((segmenter, 0), (two, 1)):
        (own,) = candidates_of(model, PICTURES[0][None], ["0"], lambda m, pictures, _: m(pictures)[:, None])
        assert own.first == first and own.regions.shape == (1, 1, 1, 4)


def test_examples_of_a_round_carry_no_labels(segmenter):
    args = PairArguments(sampler="thresholds", threshold_offsets=[-0.75, 0.0, 0.75], judge="truth")
    examples, summary = paired_examples(segmenter, segmenter, prepared(TRUTH), args, 0)
    assert examples[0].masks is None and examples[0].pair.reference.shape[0] == 4 and summary["pictures"] == 1


def test_dropout_is_asked_of_a_network_that_has_some():
    with pytest.raises(DataError, match="sampler: dropout, and the network has none; set dropout above 0"):
        sampler_of(PairArguments(sampler="dropout"), 2, 0.0, 0)
