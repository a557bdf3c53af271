"""One round of preferences between a segmenter's own masks: the judge is tried, pairs are mined, examples built."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from popen.data.safe_io import DataError
from popen.medical.cohort import Prepared
from popen.medical.examples import Example
from popen.medical.mask_pairs import with_reference
from popen.medical.mining import Judge, MaskMining, mine_masks
from popen.medical.pair_choices import PairArguments, judge_of, sampler_of, strategy_of
from popen.medical.quality_regressor import QualityRegressor, halves, train_quality_regressor
from popen.medical.segmenter import Segmenter
from popen.medical.views import flip_views
from popen.preference.judge_report import JudgeReport, judge_report, log_growth, right_inside, why_unfit
from popen.preference.judge_weights import GrowthWeights, growth_weights
from popen.preference.mask_judging import flips
from popen.preference.sampling import item_seed


@dataclass(frozen=True)
class Tried:
    """What a judge is worth, and the weights of its pairs where they must be weighed, else None."""

    report: JudgeReport
    weights: GrowthWeights | None

    def __str__(self) -> str:
        return f"{self.report}" if self.weights is None else f"{self.report}; unfit, its pairs get a {self.weights}"


def steps_of_rounds(max_steps: int, rounds: int) -> list[int]:
    """The steps of each round, as equal as they come and together `max_steps`.

    Raises:
        DataError: no round, or one without a step.
    """
    if not 1 <= rounds <= max_steps:
        raise DataError(f"rounds = {rounds}, max_steps = {max_steps}: each round needs a step; change one of them")
    return [max_steps * (n + 1) // rounds - max_steps * n // rounds for n in range(rounds)]


def taught_judge(
    segmenter: Segmenter, labelled: Sequence[Prepared], args: PairArguments, seed: int
) -> tuple[QualityRegressor | None, Sequence[Prepared]]:
    """The regressor of `judge: regressor`, and the labelled cases to try a judge on: those that it has not seen.

    A regressor learns on the cases of one half of the patients and is tried on the other's; judges that learn nothing
    are tried on all.

    Raises:
        DataError: one patient is no two halves.
    """
    if args.judge != "regressor":
        return None, labelled
    known, unseen = halves(labelled, seed)
    settings = segmenter.settings
    sampler = sampler_of(args, settings.spatial_dims, settings.dropout, seed)
    return train_quality_regressor(segmenter, known, sampler, args.regressor_steps, seed), unseen


def mined(
    segmenter: Segmenter,
    cases: Sequence[Prepared],
    args: PairArguments,
    seed: int,
    regressor: QualityRegressor | None = None,
    judge: Judge | None = None,
) -> MaskMining:
    """Pairs of a segmenter's hypotheses on prepared cases, `flip_rate` of them the wrong way round.

    `judge` stands in for the one that `args` names.
    """
    settings = segmenter.settings
    truths = {case.name: case.masks for case in cases if case.masks is not None}
    found = mine_masks(
        segmenter,
        [case.picture for case in cases],
        [case.name for case in cases],
        sampler_of(args, settings.spatial_dims, settings.dropout, seed),
        judge or judge_of(args, truths, regressor),
        strategy_of(args, seed),
    )
    names = [cases[row].name for row in found.rows]
    wrong = [flips(1, args.flip_rate, item_seed(seed, "flip", name))[0] for name in names]
    pairs = [(b, a, gap) if flip else (a, b, gap) for (a, b, gap), flip in zip(found.pairs, wrong, strict=True)]
    return replace(found, pairs=pairs, flipped=sum(wrong))


def tried_judge(
    segmenter: Segmenter,
    labelled: Sequence[Prepared],
    args: PairArguments,
    seed: int,
    regressor: QualityRegressor | None = None,
) -> Tried:
    """What the judge is worth on labelled cases; an unfit one is refused or gets weights, as `unfit_judge` says.

    Raises:
        DataError: it is right on too few pixels, or prefers masks by their size; says which, and the way out.
    """
    found = mined(segmenter, labelled, args, seed, regressor)
    report = report_on(found, segmenter, labelled)
    unfit = why_unfit(report, args.least_correct, args.most_bias)
    if unfit is None:
        return Tried(report, None)
    if args.unfit_judge == "refuse":
        raise DataError(
            f"{unfit}; take another judge or sampler, raise least_gap, set least_correct and most_bias, or weigh its "
            "pairs with unfit_judge: weight"
        )
    chosen, rejected = _sides(found, segmenter)
    right = right_inside(chosen, rejected, _truths(found, segmenter, labelled))
    return Tried(report, growth_weights(log_growth(chosen, rejected), right))


def paired_examples(
    segmenter: Segmenter,
    reference: Segmenter,
    cases: Sequence[Prepared],
    args: PairArguments,
    seed: int,
    regressor: QualityRegressor | None = None,
    weights: GrowthWeights | None = None,
) -> tuple[list[Example], dict]:
    """Examples with a pair and without labels, their winners as labels, and what was mined.

    Pictures without a pair are left out.

    Raises:
        DataError: `weights` leave no pair.
    """
    found = mined(segmenter, cases, args, seed, regressor)
    chosen, rejected = _sides(found, segmenter)
    heavy = weights.of(log_growth(chosen, rejected)) if weights else torch.ones(len(found.pairs))
    kept = [(row, pair, w) for row, pair, w in zip(found.rows, found.pairs, heavy.tolist(), strict=True) if w > 0]
    if not kept:
        raise DataError(
            f"the judge's word counts nothing for any of {len(found.pairs)} pairs ({weights}); take another judge or "
            "sampler, or label more"
        )
    examples = examples_of([(row, pair) for row, pair, _ in kept], reference, cases)
    summary = found.summary()
    if weights:
        summary |= {"weightless": len(found.pairs) - len(kept), "weight": sum(w for *_, w in kept) / len(kept)}
    weighed = zip(examples, (w for *_, w in kept), strict=True)
    examples = [replace(example, pair=replace(example.pair, weight=w)) for example, w in weighed]
    return shown_winners(examples, args.winners_per_pair) + examples, summary


def shown_winners(examples: Sequence[Example], times: int) -> list[Example]:
    """The winners of pairs as labels, each so many times; that of a light pair less often, as its weight says.

    A pair is seen in flipped views alone, where the reference's logits are known; its winner is augmented like any
    label, and most of what winners are worth comes from there (`docs/results/medical.md`).
    """
    found = []
    for example in examples:
        if example.pair is not None:
            found += [Example(example.picture, example.pair.chosen)] * round(times * example.pair.weight)
    return found


def examples_of(
    pairs: Sequence[tuple[int, tuple[torch.Tensor, torch.Tensor, float]]],
    reference: Segmenter,
    cases: Sequence[Prepared],
) -> list[Example]:
    """An example per pair of a case's number, with what the reference says where its masks differ, without labels."""
    pictures = [cases[row].picture for row, _ in pairs]
    views, activation = flip_views(reference.settings.spatial_dims), reference.settings.activation
    found = with_reference(reference, activation, pictures, [pair for _, pair in pairs], views)
    return [Example(picture, None, pair) for picture, pair in zip(pictures, found, strict=True)]


def report_on(found: MaskMining, segmenter: Segmenter, cases: Sequence[Prepared]) -> JudgeReport:
    """What the judge of these pairs was worth, by the cases' truth."""
    return judge_report(*_sides(found, segmenter), _truths(found, segmenter, cases))


def _sides(found: MaskMining, segmenter: Segmenter) -> tuple[torch.Tensor, torch.Tensor]:
    """Winners and losers, bool (N, regions, *spatial)."""
    chosen, rejected, _ = zip(*found.pairs, strict=True)
    return _foreground(torch.stack(chosen), segmenter), _foreground(torch.stack(rejected), segmenter)


def _truths(found: MaskMining, segmenter: Segmenter, cases: Sequence[Prepared]) -> torch.Tensor:
    return _foreground(torch.stack([cases[row].masks for row in found.rows]), segmenter)


def _foreground(masks: torch.Tensor, segmenter: Segmenter) -> torch.Tensor:
    """Without the background of classes, with which all masks would have the same area."""
    return masks[:, 1:] if segmenter.settings.activation == "softmax" else masks
