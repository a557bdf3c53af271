"""Logits of a whole picture: patch by patch where it is larger than a patch, and averaged over mirrored views."""

import math
from collections.abc import Sequence
from itertools import chain, combinations

import torch
from monai.inferers.utils import sliding_window_inference
from torch import nn
from torch.nn import functional

from popen.medical.samplers import flip_hypotheses
from popen.medical.views import View

PATCHES_AT_ONCE = 4


@torch.no_grad()
def predict_logits(
    segmenter: nn.Module,
    picture: torch.Tensor,
    patch_size: Sequence[int],
    overlap: float = 0.5,
    flips: Sequence[int] = (),
    progress: bool = False,
) -> torch.Tensor:
    """Logits of a picture of any size.

    A picture of one patch goes through the network as it is. A larger one is cut into overlapping patches whose logits
    are averaged with Gaussian weights (MONAI's sliding window); a smaller one is padded with zeros and cut back.

    Args:
        segmenter: a Segmenter in eval mode, from (B, C, *spatial) to logits (B, K, *spatial).
        picture: float (C, *spatial).
        patch_size: size of a patch along each spatial axis.
        overlap: share of a patch that its neighbour covers too, 0 to 1 without 1.
        flips: spatial axes to mirror; n of them make 2^n views, whose probabilities are averaged and turned to logits.
        progress: show a bar over the patches of a larger picture.
    Returns:
        float (K, *spatial); under softmax with flips, log-probabilities.
    Raises:
        ValueError: sizes that do not fit, an axis that is none, or a segmenter in training mode.
    """
    dims = picture.ndim - 1
    if dims != len(patch_size) or not 0 <= overlap < 1:
        raise ValueError(f"picture {tuple(picture.shape)}, patch {tuple(patch_size)}, overlap {overlap}: do not fit")
    if len(set(flips)) != len(flips) or not all(0 <= axis < dims for axis in flips):
        raise ValueError(f"flips {tuple(flips)}: give spatial axes from 0 to {dims - 1}, each once")
    if segmenter.training:
        raise ValueError("the segmenter is in training mode, and its dropout would be at work; call eval()")
    views = chain.from_iterable(combinations(flips, count) for count in range(len(flips) + 1))
    logits = [_view_logits(segmenter, picture, tuple(patch_size), overlap, axes, progress) for axes in views]
    return logits[0] if len(logits) == 1 else mean_of_views(torch.stack(logits), segmenter.settings.activation)


def mean_of_views(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """Logits of the mean probability of several views; equal views give their own logits back.

    sigmoid: log Σ_v σ(z_v) − log Σ_v σ(−z_v).  softmax: log of the mean probability.

    Args:
        logits: float (V, K, *spatial).
    Returns:
        float (K, *spatial).
    """
    if len(logits) == 1:
        return logits[0]
    if activation == "sigmoid":
        return functional.logsigmoid(logits).logsumexp(0) - functional.logsigmoid(-logits).logsumexp(0)
    return logits.log_softmax(1).logsumexp(0) - math.log(len(logits))


@torch.no_grad()
def batch_logits(segmenter: nn.Module, pictures: torch.Tensor, views: Sequence[View] = ((),)) -> torch.Tensor:
    """Logits (B, K, *spatial) of a batch of pictures of the patch size, of the mean probability over views."""
    seen = flip_hypotheses(segmenter, pictures, views)
    return torch.stack([mean_of_views(own, segmenter.settings.activation) for own in seen.float()])


def _view_logits(
    segmenter: nn.Module,
    picture: torch.Tensor,
    patch_size: tuple[int, ...],
    overlap: float,
    axes: tuple[int, ...],
    progress: bool,
) -> torch.Tensor:
    dims = [axis + 2 for axis in axes]
    view = picture[None].flip(dims)
    if tuple(picture.shape[1:]) == patch_size:
        logits = segmenter(view)
    else:
        logits = sliding_window_inference(
            view, patch_size, PATCHES_AT_ONCE, segmenter, overlap, mode="gaussian", progress=progress
        )
    return logits.flip(dims)[0]
