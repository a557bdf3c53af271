"""The samplers, judges and strategies that a recipe can name, in the shape that `mine_masks` takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from popen.data.safe_io import DataError
from popen.medical.dropout import dropout_hypotheses
from popen.medical.inference import mean_of_views
from popen.medical.mining import Candidates, Judge, Sampler, Strategy
from popen.medical.quality_regressor import QualityRegressor
from popen.medical.samplers import (
    checkpoint_hypotheses,
    checkpoints_like,
    flip_hypotheses,
    threshold_hypotheses,
)
from popen.medical.segmenter import Segmenter
from popen.medical.views import flip_views
from popen.preference.mask_judging import agreement, certainty, dice_with_truth
from popen.preference.mask_mining import (
    any_beyond_margin,
    best_against_bottom,
    best_against_random,
    best_against_worst,
    most_disagreement,
    quantiles,
    random_ordered,
)
from popen.preference.sampling import item_seed


@dataclass
class PairArguments:
    """Where preference pairs come from: hypotheses, a judge, and which two it is asked about."""

    sampler: Literal[
        "dropout", "flips", "dropout_and_flips", "thresholds", "checkpoints", "checkpoints_and_flips"
    ] = field(default="dropout", metadata={"help": "Where the K hypotheses of a picture come from."})  # fmt: skip
    dropout_rates: list[float] = field(
        default_factory=lambda: [0.1, 0.2, 0.3, 0.4, 0.5], metadata={"help": "One hypothesis per rate."}
    )
    threshold_offsets: list[float] = field(
        default_factory=lambda: [-0.85, -0.4, 0.0, 0.4], metadata={"help": "Added to the logits, one each."}
    )
    consensus: bool = field(
        default=False, metadata={"help": "What the hypotheses agree on, their mean probability, is one more of them."}
    )
    checkpoints: list[str] = field(
        default_factory=list, metadata={"help": "Folders of saved segmenters, one hypothesis each (and per flip)."}
    )
    judge: Literal["truth", "agreement", "certainty", "regressor"] = field(
        default="agreement",
        metadata={"help": "truth is Dice with the labels (MAPO), regressor learns on half of the labelled cases."},
    )
    regressor_steps: int = field(default=1000, metadata={"help": "Steps that judge: regressor learns for."})
    flip_rate: float = field(
        default=0.0, metadata={"help": "Share of the judge's orders that are exchanged, to see what it does, 0..1."}
    )
    unfit_judge: Literal["refuse", "weight"] = field(
        default="refuse",
        metadata={"help": "An unfit judge is an error, or its pairs weigh as much as labelled ones were right."},
    )
    strategy: Literal[
        "best_against_worst", "best_against_random", "best_against_bottom", "random_ordered", "any_beyond_margin",
        "quantiles", "most_disagreement",
    ] = field(default="best_against_worst", metadata={"help": "Which two hypotheses make a pair."})  # fmt: skip
    winners_per_pair: int = field(
        default=0, metadata={"help": "How often a winner is shown as a label, augmented, for each time its pair is."}
    )
    least_gap: float = field(default=0.02, metadata={"help": "τ, the least gap in the judge's quality."})
    least_correct: float = field(
        default=0.6, metadata={"help": "A judge right on a smaller share of the pixels in R is refused, 0..1."}
    )
    most_bias: float = field(
        default=0.1, metadata={"help": "A judge that prefers large or small masks by more is refused, in log area."}
    )

    def __post_init__(self):
        if not 0 <= self.flip_rate <= 1:
            raise DataError(f"flip_rate = {self.flip_rate}: a share of the judge's orders lies in 0..1")
        if self.winners_per_pair < 0:
            raise DataError(f"winners_per_pair = {self.winners_per_pair}: 0 shows none; a count is at least that")
        if self.regressor_steps < 1:
            raise DataError(f"regressor_steps = {self.regressor_steps}: a judge needs at least one to learn")


def sampler_of(args: PairArguments, spatial_dims: int, dropout: float, seed: int) -> Sampler:
    """Raises DataError where dropout is asked of a network without any."""
    if "dropout" in args.sampler and not dropout:
        raise DataError("sampler: dropout, and the network has none; set dropout above 0 or take sampler: flips")
    views = flip_views(spatial_dims)
    networks: list[Segmenter] = []

    def sample(segmenter, pictures: torch.Tensor, names) -> torch.Tensor:
        if "checkpoints" in args.sampler:
            networks[:] = networks or checkpoints_like(segmenter, args.checkpoints)
            if args.sampler == "checkpoints":
                return checkpoint_hypotheses(networks, pictures)
            return torch.cat([flip_hypotheses(network, pictures, views) for network in networks], dim=1)
        if args.sampler == "thresholds":
            return threshold_hypotheses(segmenter, pictures, args.threshold_offsets, segmenter.settings.activation)
        found = []
        if "flips" in args.sampler:
            found.append(flip_hypotheses(segmenter, pictures, views))
        if "dropout" in args.sampler:
            found.append(dropout_hypotheses(segmenter, pictures, args.dropout_rates, seed, names))
        return torch.cat(found, dim=1)

    def sample_with_consensus(segmenter, pictures: torch.Tensor, names) -> torch.Tensor:
        logits = sample(segmenter, pictures, names)
        mean = torch.stack([mean_of_views(own.float(), segmenter.settings.activation) for own in logits])
        return torch.cat([logits.float(), mean[:, None]], dim=1)

    return sample_with_consensus if args.consensus else sample


def judge_of(
    args: PairArguments,
    truths: Mapping[str, torch.Tensor],
    regressor: QualityRegressor | None = None,
) -> Judge:
    """The judge; `truths` by name are looked at by `truth` alone, and `regressor` is what `regressor` has learned.

    None looks at the background of classes: with it, masks that share nothing would be nearly alike.

    Raises:
        ValueError: `judge: regressor` without one.
    """
    if args.judge == "regressor":
        if regressor is None:
            raise ValueError("judge: regressor, and none was handed in; train_quality_regressor makes one")
        return regressor.judge

    def by_truth(candidates: Candidates) -> torch.Tensor:
        return dice_with_truth(candidates.regions, truths[candidates.name][candidates.first :])

    def by_agreement(candidates: Candidates) -> torch.Tensor:
        mean = candidates.consensus
        agreed = mean > 0.5 if candidates.activation == "sigmoid" else _one_hot(mean)
        return agreement(candidates.regions, agreed[candidates.first :])

    def by_certainty(candidates: Candidates) -> torch.Tensor:
        return certainty(candidates.probabilities[:, candidates.first :], candidates.regions)

    return {"truth": by_truth, "agreement": by_agreement, "certainty": by_certainty}[args.judge]


def strategy_of(args: PairArguments, seed: int) -> Strategy:
    """The strategy, random ones seeded by picture."""
    seeded = {
        "best_against_random": best_against_random, "best_against_bottom": best_against_bottom,
        "random_ordered": random_ordered, "any_beyond_margin": any_beyond_margin,
    }  # fmt: skip

    def choose(qualities: list[float], candidates: Candidates):
        if args.strategy in seeded:
            return seeded[args.strategy](qualities, args.least_gap, item_seed(seed, candidates.name))
        if args.strategy == "most_disagreement":
            return most_disagreement(qualities, args.least_gap, candidates.masks)
        plain = best_against_worst if args.strategy == "best_against_worst" else quantiles
        return plain(qualities, args.least_gap)

    return choose


def _one_hot(probabilities: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(probabilities, dtype=torch.bool).scatter_(0, probabilities.argmax(0, keepdim=True), True)
