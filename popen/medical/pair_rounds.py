"""One round of preferences between a segmenter's own masks: the judge is tried, pairs are mined, examples built."""

from collections.abc import Sequence

import torch

from popen.data.safe_io import DataError
from popen.medical.cohort import Prepared
from popen.medical.examples import Example
from popen.medical.mask_pairs import with_reference
from popen.medical.mining import MaskMining, mine_masks
from popen.medical.pair_choices import PairArguments, judge_of, sampler_of, strategy_of
from popen.medical.segmenter import Segmenter
from popen.medical.views import flip_views
from popen.preference.judge_report import JudgeReport, judge_report, why_unfit


def mined(segmenter: Segmenter, cases: Sequence[Prepared], args: PairArguments, seed: int) -> MaskMining:
    """Pairs of a segmenter's hypotheses on prepared cases."""
    settings = segmenter.settings
    truths = {case.name: case.masks for case in cases if case.masks is not None}
    return mine_masks(
        segmenter,
        [case.picture for case in cases],
        [case.name for case in cases],
        sampler_of(args, settings.spatial_dims, settings.dropout, seed),
        judge_of(args, truths, settings.activation),
        strategy_of(args, seed),
    )


def tried_judge(segmenter: Segmenter, labelled: Sequence[Prepared], args: PairArguments, seed: int) -> JudgeReport:
    """What the judge is worth on labelled cases.

    Raises:
        DataError: it is right on too few pixels, or prefers masks by their size; says which, and the way out.
    """
    found = mined(segmenter, labelled, args, seed)
    chosen, rejected, _ = zip(*found.pairs, strict=True)
    truths = [labelled[row].masks for row in found.rows]
    report = judge_report(torch.stack(chosen), torch.stack(rejected), torch.stack(truths))
    unfit = why_unfit(report, args.least_correct, args.most_bias)
    if unfit is not None:
        raise DataError(f"{unfit}; take another judge or sampler, raise least_gap, or set least_correct and most_bias")
    return report


def paired_examples(
    segmenter: Segmenter, reference: Segmenter, cases: Sequence[Prepared], args: PairArguments, seed: int
) -> tuple[list[Example], dict]:
    """Examples with a pair and without labels, and what was mined; pictures without a pair are left out."""
    found = mined(segmenter, cases, args, seed)
    return examples_of(found, reference, cases), found.summary()


def examples_of(found: MaskMining, reference: Segmenter, cases: Sequence[Prepared]) -> list[Example]:
    """An example per pair, with what the reference says where its masks differ, and without labels."""
    kept = [cases[row] for row in found.rows]
    views = flip_views(reference.settings.spatial_dims)
    pictures = [case.picture for case in kept]
    pairs = with_reference(reference, reference.settings.activation, pictures, found.pairs, views)
    return [Example(case.picture, None, pair) for case, pair in zip(kept, pairs, strict=True)]
