"""Pictures of single cases: the true masks, the predicted ones, and where hypotheses do not agree."""

import numpy as np
from PIL import Image

from eval.medical_metrics import MedicalRow
from popen.overlay import draw_masks

SIDE = 320  # pixels of the shorter side, at least


def extreme_cases(rows: list[MedicalRow]) -> dict[str, str]:
    """The worst, the median and the best case by Dice, the mean over regions; equals in the order of their names.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("no rows to choose from; score at least one case")
    of_case: dict[str, list[float]] = {}
    for row in rows:
        of_case.setdefault(row.case, []).append(row.dice)
    ordered = sorted(of_case, key=lambda case: (np.mean(of_case[case]), case))
    return {"worst": ordered[0], "median": ordered[(len(ordered) - 1) // 2], "best": ordered[-1]}


def case_picture(
    image: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    spacing: tuple[float, ...],
    variance: np.ndarray | None = None,
) -> Image.Image:
    """Both sets of masks over the picture, a colour per region; of a volume the axial slice with most of them.

    With a variance, a third picture beside them: white where it is 0.25, which is as often in a mask as not.

    A 2-D picture of three channels is taken for colours from 0 to 255; of others the first channel is shown in grey,
    from its 1st to its 99th percentile. Volumes lie in RAS+ order and are seen from the feet.

    Args:
        image: float (C, *spatial). truth, predicted: bool (K, *spatial). spacing: mm; pixels come out square.
        variance: float (*spatial) in 0..0.25.
    Raises:
        ValueError: sizes differ.
    """
    if not image.shape[1:] == truth.shape[1:] == predicted.shape[1:]:
        raise ValueError(f"picture {image.shape}, truth {truth.shape} and predicted {predicted.shape} differ in size")
    if variance is not None and variance.shape != image.shape[1:]:
        raise ValueError(f"variance {variance.shape}, and the picture is {image.shape[1:]}")
    disagreement = None if variance is None else variance[None]
    colours = image.ndim == 3 and len(image) == 3
    if image.ndim == 4:
        most = int((truth | predicted).sum((0, 1, 2)).argmax())
        image, truth, predicted, disagreement = (
            None if volume is None else volume[..., most][:, ::-1, ::-1].swapaxes(1, 2)
            for volume in (image, truth, predicted, disagreement)
        )
        spacing = (spacing[1], spacing[0])
    scale = SIDE / min(n * s for n, s in zip(image.shape[1:], spacing, strict=True))
    size = tuple(max(2, round(n * s * scale)) for n, s in zip(image.shape[1:], spacing, strict=True))[::-1]
    plain = Image.fromarray(_colours(image) if colours else _grey(image[0])).resize(size, Image.Resampling.BICUBIC)
    parts = []
    for masks in (truth, predicted):
        grown = [np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)) for mask in masks]
        parts.append(np.asarray(draw_masks(plain, grown)))
    if disagreement is not None:
        grey = Image.fromarray((4 * 255 * disagreement[0]).round().astype(np.uint8))
        parts.append(np.asarray(grey.resize(size, Image.Resampling.NEAREST).convert("RGB")))
    return Image.fromarray(np.concatenate(parts, 1))


def _colours(image_CHW: np.ndarray) -> np.ndarray:
    return image_CHW.clip(0, 255).round().astype(np.uint8).transpose(1, 2, 0)


def _grey(image_HW: np.ndarray) -> np.ndarray:
    low, high = np.percentile(image_HW, [1, 99])
    return (255 * ((image_HW - low) / max(high - low, 1e-6)).clip(0, 1)).round().astype(np.uint8)
