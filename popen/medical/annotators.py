"""Preference pairs between people who drew the same pictures: no judge, no sampler, and noise as people make it.

The first annotator, the senior one, is preferred wherever another drew something else. Such a pair says whose hand to
follow, and not that the other is wrong: both masks may be right within what the picture shows.
"""

from collections.abc import Sequence

import torch

from popen.data.safe_io import DataError
from popen.medical.cohort import Prepared
from popen.medical.examples import Example
from popen.medical.mask_pairs import region_share
from popen.medical.mining import MaskMining
from popen.medical.pair_rounds import examples_of
from popen.medical.segmenter import Segmenter
from popen.preference.diversity import pairwise_iou
from popen.preference.mask_judging import dice_with_truth
from popen.preference.mask_mining import EQUAL, KEPT, gap_distribution
from popen.preference.mining import TIE


def annotated_examples(
    reference: Segmenter, cases: Sequence[Prepared], least_gap: float
) -> tuple[list[Example], dict]:
    """Examples with a pair and without labels, and what was found; `reference` is in eval mode.

    Raises:
        DataError: as `annotator_pairs`.
    """
    found = annotator_pairs(cases, least_gap, reference.settings.activation)
    pairs = list(zip(found.rows, found.pairs, strict=True))
    return examples_of(pairs, reference, cases), found.summary()


def annotator_pairs(cases: Sequence[Prepared], least_gap: float, activation: str) -> MaskMining:
    """One pair per case and further annotator: the first one's masks are chosen, the other's rejected.

    The gap is 1 − Dice between them; of classes (softmax) the background does not count. Of a case cut into windows,
    those on which both agree are counted and left out.

    Raises:
        DataError: a case that one person drew, or no pair; says how large the gaps are.
    """
    found, first = MaskMining(), 1 if activation == "softmax" else 0
    for row, case in enumerate(cases):
        if case.masks is None or not case.further:
            raise DataError(
                f"{case.name}: masks of one annotator; pairs_from: annotators needs masks_2/ beside images/ and masks/"
            )
        for other in case.further:
            gap = 1 - float(dice_with_truth(other[None, first:], case.masks[first:])[0])
            reason = EQUAL if torch.equal(other, case.masks) else KEPT if gap >= least_gap else TIE
            found.reasons[reason] += 1
            found.gaps.append(gap)
            found.pairwise_ious.append(pairwise_iou(torch.stack([case.masks, other])[:, first:]))
            if reason == KEPT:
                found.rows.append(row)
                found.pairs.append((case.masks, other, gap))
                found.region_shares.append(region_share(case.masks, other, activation))
    if not found.pairs:
        raise DataError(
            f"no pair between annotators in {len(cases)} pictures ({dict(found.reasons)}); "
            f"{gap_distribution(found.gaps)}; lower least_gap"
        )
    return found
