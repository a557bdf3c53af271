"""Preference margins on the region R where two masks differ, from the values on R alone.

Reference logits are needed on R only, so they are stored sparsely and no second model stays in memory. A region is a
row of *entries*: places in the flattened (K · pixels) logits with a sign, padded with sign 0 to the longest row.

What counts as one disagreement is one variable of the mask policy whose two outcomes differ:

* independent regions (sigmoid): every (region, pixel) is a variable, one entry each, so |R| = Σ|s|;
* one-hot classes (softmax): every pixel is a variable with two entries, +1 at the chosen and −1 at the rejected
  class, so |R| = Σ|s| / 2. Signs stay ±1, for then Σ s (z − zʳᵉᶠ) is the log-ratio itself: log-partitions cancel.

`Regions.entries` is that 1 or 2, and the m of the equations below. The dense forms are in `popen.objectives.scores`.
"""

import math
from dataclasses import dataclass

import torch

from popen.objectives.shapes import check_bool, check_same_shape, full_precision


@dataclass(frozen=True)
class Regions:
    """Where the masks of N pairs differ, padded to R entries.

    `index` int64 (N, R) into the flattened (K · pixels) logits, 0 on padding; `sign` int8 (N, R), +1 where only the
    chosen mask is on, −1 where only the rejected one is, 0 on padding; `classes` int64 (N, R) for
    `region_margin_class_mean`, 0 on padding; `entries` per disagreement, 1 or 2.
    """

    index: torch.Tensor
    sign: torch.Tensor
    classes: torch.Tensor
    entries: int


def independent_regions(chosen: torch.Tensor, rejected: torch.Tensor) -> Regions:
    """Entries on which masks of independent regions differ (sigmoid logits).

    R_n = {(k, i) : y⁺_ki ≠ y⁻_ki}; the class of an entry is its channel k. Pixels that shall not count are given the
    same value in both masks.

    Args:
        chosen, rejected: bool (N, K, *spatial), 2-D or 3-D.
    Raises:
        ValueError: the shapes differ, a mask is not bool, or there is no axis for K and pixels.
    """
    _check_masks(chosen, rejected)
    pixels = chosen[0, 0].numel() if chosen.numel() else 1
    index, sign = _entries(chosen, rejected)
    return Regions(index, sign, index // pixels, entries=1)


def one_hot_regions(chosen: torch.Tensor, rejected: torch.Tensor) -> Regions:
    """Entries on which one-hot masks differ (softmax logits): two for each pixel.

    R_n = {i : class y⁺_i ≠ class y⁻_i}; the class of both entries of a pixel is the one that the chosen mask gives it.
    They share it because weights that differ within a pixel would make a margin out of a constant added to its logits.

    Args, Raises: as `independent_regions`; also ValueError: a pixel is not on in exactly one channel.
    """
    _check_masks(chosen, rejected)
    for name, mask in (("chosen", chosen), ("rejected", rejected)):
        if not (mask.sum(1) == 1).all():
            raise ValueError(f"{name} must be one-hot over axis 1: every pixel on in exactly one channel")
    pixels = chosen[0, 0].numel() if chosen.numel() else 1
    index, sign = _entries(chosen, rejected)
    label = chosen.flatten(2).to(torch.uint8).argmax(1)  # (N, pixels)
    classes = label.gather(1, index % pixels) if index.numel() else index
    return Regions(index, sign, classes.masked_fill(sign == 0, 0), entries=2)


def gather_region(logits: torch.Tensor, index_NR: torch.Tensor) -> torch.Tensor:
    """Logits (N, K, *spatial) at the entries of `Regions.index`, (N, R); padding reads entry 0.

    Raises:
        ValueError: logits and index have different N.
    """
    if logits.shape[:1] != index_NR.shape[:1]:
        raise ValueError(f"logits {tuple(logits.shape)} and index {tuple(index_NR.shape)} differ in their first axis")
    return logits.flatten(1).gather(1, index_NR)


def region_margin_sum(logits_NR: torch.Tensor, ref_logits_NR: torch.Tensor, sign_NR: torch.Tensor) -> torch.Tensor:
    """`mask_margin_sum` from the values on R alone: DPO on masks, exactly.

    h_n = Σ_r s_nr (z_nr − zʳᵉᶠ_nr)

    Args:
        logits_NR, ref_logits_NR: float (N, R), gathered on the pair's region; padding may hold any finite value.
        sign_NR: (N, R), +1 where only the chosen mask is on, −1 where only the rejected one is, 0 on padding.
    Returns:
        (N,) margins in nats; 0 for a pair that is all padding.
    Raises:
        ValueError: the three shapes differ.
    """
    return _gain(logits_NR, ref_logits_NR, sign_NR).sum(1)


def region_margin_image_mean(
    logits_NR: torch.Tensor, ref_logits_NR: torch.Tensor, sign_NR: torch.Tensor, pixels: torch.Tensor | float
) -> torch.Tensor:
    """`mask_margin_image_mean` from the values on R alone: the dead variant, kept as a control.

    h_n = 1/|Ω_n| · Σ_r s_nr (z_nr − zʳᵉᶠ_nr)

    Args:
        logits_NR, ref_logits_NR, sign_NR: as `region_margin_sum`.
        pixels: |Ω| > 0, the policy's variables in an image: its pixels for one mask or for one-hot masks, K times as
            many for K independent regions; a number, or (N,) for images of several sizes.
    Returns:
        (N,) margins in nats per pixel.
    Raises:
        ValueError: the three shapes differ, or pixels is neither a number > 0 nor (N,).
    """
    total = region_margin_sum(logits_NR, ref_logits_NR, sign_NR)
    if isinstance(pixels, torch.Tensor):
        check_same_shape(pixels=pixels, margins=total)
        return total / full_precision(pixels)
    if not (math.isfinite(pixels) and pixels > 0):
        raise ValueError(f"pixels must be a finite number > 0, got {pixels}")
    return total / pixels


def region_margin(
    logits_NR: torch.Tensor, ref_logits_NR: torch.Tensor, sign_NR: torch.Tensor, entries: int = 1
) -> torch.Tensor:
    """Mean margin over the disagreements, `mask_margin_region_mean` for one mask (RN-DPO; equation reconstructed).

    h_n = 1/|R_n| · Σ_r s_nr (z_nr − zʳᵉᶠ_nr),   |R_n| = Σ_r |s_nr| / m

    Args:
        logits_NR, ref_logits_NR, sign_NR: as `region_margin_sum`.
        entries: m, the entries of one disagreement: 1, or 2 for one-hot masks.
    Returns:
        (N,) margins in nats per disagreement; 0 for a pair that is all padding.
    Raises:
        ValueError: the three shapes differ, or entries is neither 1 nor 2.
    """
    return region_margin_power(logits_NR, ref_logits_NR, sign_NR, alpha=1.0, entries=entries)


def region_margin_power(
    logits_NR: torch.Tensor, ref_logits_NR: torch.Tensor, sign_NR: torch.Tensor, alpha: float, entries: int = 1
) -> torch.Tensor:
    """Margins between DPO's sum and RN-DPO's mean: how much the size of a disagreement counts (reconstruction).

    h_n = 1/|R_n|^α · Σ_r s_nr (z_nr − zʳᵉᶠ_nr)

    The gradient of a pair grows as |R|^(1 − α).

    Args:
        logits_NR, ref_logits_NR, sign_NR, entries: as `region_margin`.
        alpha: α in 0..1; 0 is `region_margin_sum`, 1 is `region_margin`.
    Returns, Raises: as `region_margin`; also ValueError: alpha is out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0..1, got {alpha}")
    _check_entries(entries)
    gain = _gain(logits_NR, ref_logits_NR, sign_NR)
    size = full_precision(sign_NR).abs().to(gain.dtype).sum(1) / entries
    return gain.sum(1) / size.clamp(min=1) ** alpha


def region_margin_class_mean(
    logits_NR: torch.Tensor,
    ref_logits_NR: torch.Tensor,
    sign_NR: torch.Tensor,
    class_NR: torch.Tensor,
    entries: int = 1,
) -> torch.Tensor:
    """Mean over the classes in R of the mean margin over their pixels, so that a large organ cannot drown a small one
    (RLPO's score; on R and on logits a reconstruction).

    h_n = 1/|U_n| · Σ_{c∈U_n} 1/|R_nc| · Σ_{r∈R_nc} s_nr (z_nr − zʳᵉᶠ_nr),   U_n = the classes in R_n

    RLPO weighs each mask by its own labels; here both entries of a pixel have one class, see `one_hot_regions`.

    Args:
        logits_NR, ref_logits_NR, sign_NR, entries: as `region_margin`.
        class_NR: int64 (N, R), ids >= 0; anything >= 0 on padding.
    Returns:
        (N,) margins in nats per disagreement; `region_margin` where R has one class, 0 for all padding.
    Raises:
        ValueError: as `region_margin`, the shape of the classes differs too, or an id is negative.
    """
    _check_entries(entries)
    check_same_shape(logits=logits_NR, classes=class_NR)
    gain = _gain(logits_NR, ref_logits_NR, sign_NR)
    least, most = (int(bound) for bound in class_NR.aminmax()) if class_NR.numel() else (0, -1)
    if least < 0:
        raise ValueError(f"classes must be >= 0, got {least}")
    per_class = gain.new_zeros(len(gain), most + 1)
    total = per_class.scatter_add(1, class_NR, gain)
    size = per_class.scatter_add(1, class_NR, full_precision(sign_NR).abs().to(gain.dtype)) / entries
    return (total / size.clamp(min=1)).sum(1) / (size > 0).sum(1).clamp(min=1)


def _gain(logits: torch.Tensor, ref_logits: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    check_same_shape(logits=logits, ref_logits=ref_logits, sign=sign)
    return full_precision(sign) * (full_precision(logits) - full_precision(ref_logits))


def _check_entries(entries: int) -> None:
    if entries not in (1, 2):
        raise ValueError(f"entries must be 1, or 2 for one-hot masks, got {entries}")


def _check_masks(chosen: torch.Tensor, rejected: torch.Tensor) -> None:
    check_same_shape(chosen=chosen, rejected=rejected)
    check_bool(chosen=chosen, rejected=rejected)
    if chosen.dim() < 3:
        raise ValueError(f"masks must be (N, K, *spatial), got {tuple(chosen.shape)}")


def _entries(chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat places and signs of the differing entries, ascending in each row, both (N, R)."""
    chosen, rejected = chosen.flatten(1), rejected.flatten(1)
    row, place = (chosen ^ rejected).nonzero(as_tuple=True)
    counts = row.bincount(minlength=len(chosen))
    slot = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    width = int(counts.max()) if len(counts) else 0
    index = place.new_zeros(len(chosen), width)
    sign = torch.zeros(len(chosen), width, dtype=torch.int8, device=row.device)
    index[row, slot] = place
    sign[row, slot] = chosen[row, place].to(torch.int8) * 2 - 1
    return index, sign
