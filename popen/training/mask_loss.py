"""A segmenter's losses on labels for an LVLM's masks, in the place of the model's own cross-entropy and Dice."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from popen.data.safe_io import DataError, read_json, write_json
from popen.medical.boundary import geodesic_membership, signed_distance
from popen.medical.epsilon_constraint import EpsilonConstraint
from popen.medical.loss_choices import BandArguments, maps_of, named_supervised
from popen.medical.supervised import Labelled, Parts, SupervisedLoss

STEP = (1.0, 1.0)  # pixels of the canvas
MULTIPLIER = "mask_loss.json"  # of a checkpoint


@dataclass(frozen=True)
class MaskLoss:
    """A loss on labels, sigmoid, which maps of `Labelled` it asks for, and where its multiplier is if it has one."""

    loss: SupervisedLoss
    distance: bool = False
    geodesic: bool = False
    constraint: EpsilonConstraint | None = None

    def keep(self, checkpoint: Path) -> None:
        """Writes the multiplier into a checkpoint's folder; nothing without one."""
        if self.constraint is not None:
            write_json(checkpoint / MULTIPLIER, {"multiplier": self.constraint.multiplier})

    def resume(self, checkpoint: Path) -> None:
        """Goes on with the multiplier of a checkpoint.

        Raises:
            DataError: it has none, or one that is no number >= 0.
        """
        if self.constraint is None:
            return
        found = read_json(checkpoint / MULTIPLIER)
        value = found.get("multiplier") if isinstance(found, dict) else None
        if not isinstance(value, int | float) or value < 0:
            raise DataError(f"{checkpoint / MULTIPLIER}: multiplier {value!r} is no number >= 0; start anew")
        self.constraint.multiplier = float(value)


@dataclass
class MaskLossArguments(BandArguments):
    """The supervised loss on masks; bands are in pixels of the canvas, the square that the model sees."""

    mask_loss: Literal["bce_dice", "svls", "geols", "fuzzy", "intuitionistic", "pareto", "epsilon_constraint"] = field(
        default="bce_dice",
        metadata={
            "help": "PixelLM's cross-entropy and Dice with target refinement, or a loss on labels as in "
            "recipes/medical.py, without refinement; Dice weighs the model's dice_weight, the rest its bce_weight."
        },
    )


BCE_DICE = MaskLossArguments()


def mask_loss_of(args: MaskLossArguments) -> MaskLoss | None:
    """What is named, with a multiplier of its own where it has one; None is the model's own."""
    if args.mask_loss == "bce_dice":
        return None
    loss = named_supervised(args.mask_loss, args, "sigmoid")
    constraint = loss.func if isinstance(loss.func, EpsilonConstraint) else None
    return MaskLoss(loss, **maps_of(args.mask_loss), constraint=constraint)


def target_maps(
    wanted: MaskLoss, batch: dict[str, torch.Tensor], pictures: Sequence[Image.Image]
) -> dict[str, torch.Tensor]:
    """What a loss asks for beside the masks, `target_distance` and `target_geodesic`, float32 (T, side, side).

    Pixels of the canvas that do not count are on neither side of a boundary, and no path leads through them. GeoLS
    sees the picture with mean 0 and deviation 1 in each channel, as `recipes/medical.py` does by default.

    Args:
        batch: `target_masks`, binarised at ½, `target_row` and `valid`, as the model takes them.
        pictures: of each row, on its canvas.
    """
    masks, rows, valid = (batch[name].numpy() for name in ("target_masks", "target_row", "valid"))
    targets = list(zip(masks > 0.5, rows.tolist(), strict=True))
    maps: dict[str, list[np.ndarray]] = {}
    if wanted.distance:
        maps["target_distance"] = [signed_distance(own, STEP, valid[row]) for own, row in targets]
    if wanted.geodesic:
        seen = {row: _standardised(pictures[row], valid[row]) for _, row in targets}
        maps["target_geodesic"] = [
            geodesic_membership(seen[row], own[None], STEP, 0.5, valid[row])[0] for own, row in targets
        ]
    none = torch.zeros(masks.shape)
    return {name: torch.from_numpy(np.stack(own)) if own else none for name, own in maps.items()}


def mask_parts(loss: SupervisedLoss, mask_logits: torch.Tensor, batch: dict, progress: float) -> Parts:
    """Parts of a loss, each the mean over T targets and 0 without any, on mask logits (T, h, w) brought to the canvas.

    Args:
        batch: as `target_maps`, with its maps. progress: the share of the training that is done.
    """
    masks, valid = batch["target_masks"][:, None] > 0.5, batch["valid"][batch["target_row"]][:, None]
    logits = F.interpolate(mask_logits[:, None].float(), masks.shape[-2:], mode="bilinear")
    maps = (batch.get(name) for name in ("target_distance", "target_geodesic"))
    return loss(Labelled((logits,), masks, *(own if own is None else own[:, None] for own in maps), progress, valid))


def _standardised(picture: Image.Image, valid_HW: np.ndarray) -> np.ndarray:
    """Intensities (3, H, W) with mean 0 and deviation 1 in each channel over the pixels that count."""
    channels = np.asarray(picture.convert("RGB"), np.float32).transpose(2, 0, 1)
    if not valid_HW.any():
        return np.zeros_like(channels)
    counted = channels[:, valid_HW]
    mean, deviation = (own[:, None, None] for own in (counted.mean(1), counted.std(1)))
    return (channels - mean) / np.where(deviation > 0, deviation, 1)
