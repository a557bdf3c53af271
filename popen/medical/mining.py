"""From hypotheses of each picture to preference pairs: sample, judge, choose, and count what was left out."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from tqdm.auto import tqdm

from popen.data.safe_io import DataError
from popen.medical.mask_pairs import region_share
from popen.medical.samplers import probabilities_of
from popen.medical.segmenter import Segmenter
from popen.preference.diversity import pairwise_iou
from popen.preference.mask_mining import EQUAL, KEPT, Mined, all_equal, gap_distribution


@dataclass(frozen=True)
class Candidates:
    """K hypotheses of one picture (C, *spatial): masks bool and probabilities (K, R, *spatial), and their mean.

    `name` is the picture's; a judge that knows more about it, such as the truth, finds it by name. Of classes
    (`activation` is softmax) R begins with the background, which is no region to judge: it is large, and every
    hypothesis has most of it right.
    """

    name: str
    picture: torch.Tensor
    masks: torch.Tensor
    probabilities: torch.Tensor
    consensus: torch.Tensor
    activation: str

    @property
    def first(self) -> int:
        """Where the regions to judge begin: 1 after the background of classes, else 0."""
        return 1 if self.activation == "softmax" else 0

    @property
    def regions(self) -> torch.Tensor:
        """The masks without the background of classes."""
        return self.masks[:, self.first :]


Sampler = Callable[[Segmenter, torch.Tensor, Sequence[str]], torch.Tensor]  # pictures (B, ...) to logits (B, K, ...)
Judge = Callable[[Candidates], torch.Tensor]  # (K,) qualities, higher is better
Strategy = Callable[[list[float], Candidates], Mined]


@dataclass
class MaskMining:
    """What was mined: per kept pair the picture's number, both masks and the gap; counts by reason; diversity.

    `flipped` is how many pairs were then turned the wrong way round on purpose; their gap is still what was judged.
    """

    rows: list[int] = field(default_factory=list)
    pairs: list[tuple[torch.Tensor, torch.Tensor, float]] = field(default_factory=list)
    reasons: Counter = field(default_factory=Counter)
    gaps: list[float] = field(default_factory=list)
    pairwise_ious: list[float] = field(default_factory=list)
    region_shares: list[float] = field(default_factory=list)
    flipped: int = 0

    def summary(self) -> dict:
        """Counts and means for the report."""
        count = max(len(self.pairwise_ious), 1)
        return {
            "pictures": sum(self.reasons.values()),
            "reasons": dict(self.reasons),
            "flipped": self.flipped,
            "pairwise_iou": sum(self.pairwise_ious) / count,
            "region_share": sum(self.region_shares) / max(len(self.region_shares), 1),
        }


@torch.no_grad()
def mine_masks(
    segmenter: Segmenter,
    pictures: Sequence[torch.Tensor],
    names: Sequence[str],
    sampler: Sampler,
    judge: Judge,
    strategy: Strategy,
    batch_size: int = 8,
) -> MaskMining:
    """At most one pair per picture.

    Raises:
        DataError: no picture gave a pair; says why and how large the gaps are.
    """
    segmenter.eval()
    found = MaskMining()
    device = next(segmenter.parameters()).device
    for start in tqdm(range(0, len(pictures), batch_size), desc="mining", unit=f"{batch_size} pictures"):
        batch = torch.stack(list(pictures[start : start + batch_size])).to(device)
        own = names[start : start + batch_size]
        for at, candidates in enumerate(candidates_of(segmenter, batch, own, sampler), start):
            _choose(found, at, candidates, judge, strategy)
    if found.reasons[EQUAL]:
        warnings.warn(
            f"{found.reasons[EQUAL]} of {len(pictures)} pictures have {EQUAL} hypotheses and give no pair; "
            "raise the dropout or take another sampler",
            stacklevel=2,
        )
    if not found.pairs:
        raise DataError(
            f"no pair in {len(pictures)} pictures ({dict(found.reasons)}); {gap_distribution(found.gaps)}; "
            "lower the margin or take a sampler with more diversity"
        )
    return found


def candidates_of(
    segmenter: Segmenter, pictures: torch.Tensor, names: Sequence[str], sampler: Sampler
) -> list[Candidates]:
    """The hypotheses of a batch of pictures, one entry per picture."""
    logits = sampler(segmenter, pictures, names).float()
    activation = segmenter.settings.activation
    probabilities = probabilities_of(logits, activation)
    masks = segmenter.masks_from(logits.flatten(0, 1)).unflatten(0, logits.shape[:2])
    return [
        Candidates(name, picture.cpu(), own.cpu(), p.cpu(), m.cpu(), activation)
        for name, picture, own, p, m in zip(names, pictures, masks, probabilities, probabilities.mean(1), strict=True)
    ]


def _choose(found: MaskMining, row: int, candidates: Candidates, judge: Judge, strategy: Strategy) -> None:
    masks = candidates.masks
    found.pairwise_ious.append(pairwise_iou(candidates.regions))
    if all_equal(masks):
        found.reasons[EQUAL] += 1
        return
    qualities = judge(candidates).tolist()
    found.gaps.append(max(qualities) - min(qualities))
    mined = strategy(qualities, candidates)
    if mined.pair is not None and bool((masks[mined.pair[0]] == masks[mined.pair[1]]).all()):
        mined = Mined(None, EQUAL)
    found.reasons[mined.reason] += 1
    if mined.reason == KEPT and mined.pair is not None:
        better, worse = mined.pair
        found.rows.append(row)
        found.pairs.append((masks[better], masks[worse], qualities[better] - qualities[worse]))
        found.region_shares.append(region_share(masks[better], masks[worse], candidates.activation))
