"""The threshold of a segmenter, found on cases that are neither trained on nor reported.

Preferences between masks shift the bias of the foreground, so two models compare only at thresholds of their own.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from popen.medical.cohort import Prepared
from popen.medical.configuration import SegmenterConfig
from popen.medical.inference import batch_logits
from popen.medical.segmenter import Segmenter
from popen.medical.views import View, flip_views
from popen.preference.mask_judging import dice_with_truth

THRESHOLDS = torch.linspace(-3, 3, 25).tolist()


@torch.no_grad()
def calibrate_threshold(
    segmenter: Segmenter, cases: Sequence[Prepared], views: Sequence[View] = ((),), batch_size: int = 8
) -> tuple[float, float]:
    """The logit with the best mean Dice over cases and regions, the one nearest to 0 of equal ones, and that Dice.

    Predictions are averaged over `views`: flips at inference have a threshold of their own.

    The background of softmax classes does not count.

    Raises:
        ValueError: no cases.
    """
    if not cases:
        raise ValueError("no cases to calibrate on; give a dev split")
    segmenter.eval()
    device = next(segmenter.parameters()).device
    first = 1 if segmenter.settings.activation == "softmax" else 0
    at = {threshold: replace(segmenter.settings, threshold=threshold) for threshold in THRESHOLDS}
    sums, own = dict.fromkeys(THRESHOLDS, 0.0), segmenter.settings
    for start in range(0, len(cases), batch_size):
        batch = cases[start : start + batch_size]
        logits = batch_logits(segmenter, torch.stack([case.picture for case in batch]).to(device), views).cpu()
        for threshold, settings in at.items():
            segmenter.settings = settings
            for case, masks in zip(batch, segmenter.masks_from(logits), strict=True):
                sums[threshold] += float(dice_with_truth(masks[None, first:], case.masks[first:])[0])
    segmenter.settings = own
    best = max(THRESHOLDS, key=lambda threshold: (round(sums[threshold], 9), -abs(threshold)))
    return best, sums[best] / len(cases)


def calibrated(segmenter: Segmenter, cases: Sequence[Prepared]) -> tuple[SegmenterConfig, str]:
    """The settings with a threshold for single predictions and one for those averaged over flips, and what was found.

    Raises:
        ValueError: no cases.
    """
    settings = segmenter.settings
    single, dice = calibrate_threshold(segmenter, cases)
    flips, flips_dice = calibrate_threshold(segmenter, cases, flip_views(settings.spatial_dims))
    told = f"threshold {single:+.2f}, with flips {flips:+.2f}; dev Dice {dice:.4f}, with flips {flips_dice:.4f}"
    return replace(settings, threshold=single, flips_threshold=flips), told
