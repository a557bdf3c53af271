"""A judge that learns on the labelled few: it sees a picture with a mask and says what the mask's Dice would be.

It learns on hypotheses of the model and on masks damaged on purpose, each beside its mirror image of
`popen.medical.damaged_masks`, so that it cannot win by preferring large masks. It knows the pictures that it learned
on: try it on others. The model has learned on all labelled pictures, so its hypotheses of them are better than those
of new ones; the damaged masks are there for the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from popen.data.patient_splits import split_by_patient
from popen.data.safe_io import DataError
from popen.medical.augmentation import augmented
from popen.medical.boundary import signed_distance
from popen.medical.cohort import Prepared
from popen.medical.damaged_masks import damage_order, damaged, drawn_damage, mirrored, one_hot
from popen.medical.mining import Candidates, Sampler, candidates_of
from popen.medical.segmenter import Segmenter
from popen.medical.views import flip_views, flipped
from popen.preference.mask_judging import dice_with_truth
from popen.preference.sampling import item_seed

WIDTHS = (16, 32, 64, 64)


class QualityRegressor(nn.Module):
    """From pictures (B, C, *spatial) and masks (B, K, *spatial) to the logit of each mask's Dice, (B,), the mean over
    regions; the background of classes does not count."""

    def __init__(self, spatial_dims: int, in_channels: int, regions: int):
        super().__init__()
        convolution = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        widths = [in_channels + regions, *WIDTHS]
        blocks: list[nn.Module] = []
        for before, after in pairwise(widths):
            blocks += [convolution(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.ReLU()]
        self.features = nn.Sequential(*blocks)
        self.head = nn.Linear(WIDTHS[-1], 1)
        self.views = flip_views(spatial_dims)

    def forward(self, pictures: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Raises ValueError where pictures and masks do not lie on one grid."""
        if len(pictures) != len(masks) or pictures.shape[2:] != masks.shape[2:]:
            raise ValueError(f"pictures {tuple(pictures.shape)}, masks {tuple(masks.shape)}: not on the same grid")
        signs = 2 * masks.to(pictures.dtype) - 1
        return self.head(self.features(torch.cat([pictures, signs], 1)).flatten(2).mean(2))[:, 0]

    @torch.no_grad()
    def judge(self, candidates: Candidates) -> torch.Tensor:
        """The expected Dice of K candidates, (K,) float64 in 0..1, the mean over flips."""
        self.eval()
        device = self.head.weight.device
        masks = candidates.masks.to(device)
        pictures = candidates.picture.to(device).expand(len(masks), *candidates.picture.shape)
        seen = [self(flipped(pictures, view), flipped(masks, view)).sigmoid() for view in self.views]
        return torch.stack(seen).double().mean(0).cpu()


@dataclass(frozen=True)
class Lesson:
    """A labelled case and N masks of it to learn from, bool (N, K, *spatial), whose regions begin at `first`."""

    case: Prepared
    masks: torch.Tensor
    first: int


def halves(labelled: Sequence[Prepared], seed: int) -> tuple[list[Prepared], list[Prepared]]:
    """Labelled cases to train a judge on, and those of other patients to try it on.

    Raises:
        DataError: fewer than two patients.
    """
    if len({case.patient for case in labelled}) < 2:
        raise DataError(
            "judge: regressor learns on half of the labelled patients and is tried on the others, and there is only "
            "one; label more, or take judge: agreement"
        )
    split = split_by_patient([case.patient for case in labelled], {"train": 0.5, "try": 0.5}, seed)
    return [labelled[i] for i in split["train"]], [labelled[i] for i in split["try"]]


@torch.no_grad()
def lessons(segmenter: Segmenter, labelled: Sequence[Prepared], sampler: Sampler, seed: int) -> list[Lesson]:
    """Per case K hypotheses, as many damaged masks, and the mirror image of each.

    Raises:
        ValueError: a case without masks.
    """
    segmenter.eval()
    device = next(segmenter.parameters()).device
    classes = segmenter.settings.activation == "softmax"
    found = []
    for case in tqdm(labelled, desc="masks for the judge to learn from", unit="picture"):
        if case.masks is None:
            raise ValueError(f"{case.name}: no masks; a judge learns on labelled cases")
        generator = torch.Generator().manual_seed(item_seed(seed, "lesson", case.name))
        depths = torch.from_numpy(signed_distance(case.masks.numpy(), case.spacing))
        hypotheses = candidates_of(segmenter, case.picture[None].to(device), [case.name], sampler)[0].masks
        made = [_mirror(own, case, depths, generator) for own in hypotheses]
        for _ in hypotheses:
            drawn = [drawn_damage(generator) for _ in case.masks]
            made += [_damage(case, depths, [(side * g, dice) for g, dice in drawn], generator) for side in (1, -1)]
        masks = list(hypotheses) + [_classes(own, generator) if classes else own for own in made]
        found.append(Lesson(case, torch.stack(masks), 1 if classes else 0))
    return found


def train_quality_regressor(
    segmenter: Segmenter,
    labelled: Sequence[Prepared],
    sampler: Sampler,
    steps: int,
    seed: int,
    learning_rate: float = 2e-3,
    pictures: int = 4,
    masks: int = 6,
) -> QualityRegressor:
    """A judge that has learned on these cases alone, the same for the same seed; cross-entropy with the Dice, AdamW.

    Args:
        sampler: where the segmenter's hypotheses come from. pictures, masks: of each step, and of each picture in it;
            moved and recoloured as in training.
    Raises:
        ValueError: no cases, one without masks, or no steps.
    """
    if not labelled or steps < 1:
        raise ValueError(f"{len(labelled)} labelled cases, {steps} steps: a judge needs one or more of both to learn")
    settings = segmenter.settings
    learnt = lessons(segmenter, labelled, sampler, seed)
    device = next(segmenter.parameters()).device
    with torch.random.fork_rng():  # augmentation draws from torch's own generator
        torch.manual_seed(item_seed(seed, "quality regressor"))
        regressor = QualityRegressor(settings.spatial_dims, settings.in_channels, len(settings.regions)).to(device)
        optimizer = torch.optim.AdamW(regressor.parameters(), learning_rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
        for _ in tqdm(range(steps), desc="the judge learns", unit="step"):
            seen = [
                _shown(learnt[i], masks, regressor.views) for i in torch.randint(len(learnt), (pictures,)).tolist()
            ]
            own, candidates, dice = (torch.cat(part).to(device) for part in zip(*seen, strict=True))
            loss = F.binary_cross_entropy_with_logits(regressor(own, candidates), dice)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return regressor.eval()


def _mirror(masks: torch.Tensor, case: Prepared, depths: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    rows = zip(masks, case.masks, depths, strict=True)
    return torch.stack([mirrored(m, t, damage_order(d, case.spacing, generator)) for m, t, d in rows])


def _damage(case: Prepared, depths: torch.Tensor, wanted, generator: torch.Generator) -> torch.Tensor:
    rows = zip(case.masks, depths, wanted, strict=True)
    return torch.stack([damaged(t, damage_order(d, case.spacing, generator), *own) for t, d, own in rows])


def _classes(masks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return one_hot(masks, (1 + torch.randperm(len(masks) - 1, generator=generator)).tolist())


def _shown(lesson: Lesson, count: int, views) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Some masks of a lesson on its picture, moved and recoloured together, and their Dice as they are shown.

    The background's Dice is no mirror image: it is higher where a mask is too small.
    """
    drawn = lesson.masks[torch.randint(len(lesson.masks), (count,))]
    view = views[int(torch.randint(len(views), ()))]
    picture, moved = augmented(lesson.case.picture, torch.cat([lesson.case.masks[None], drawn]).flatten(0, 1))
    picture, moved = flipped(picture, view), flipped(moved.unflatten(0, (1 + count, -1)), view)
    dice = dice_with_truth(moved[1:, lesson.first :], moved[0, lesson.first :]).float()
    return picture.expand(count, *picture.shape), moved[1:], dice
