"""The losses on labels and on pairs that a recipe can name, in the shape that `MedicalTrainer` takes."""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from popen.data.safe_io import DataError
from popen.medical.epsilon_constraint import EpsilonConstraint
from popen.medical.supervised import (
    Activation,
    Parts,
    cross_entropy_dice,
    fuzzy,
    geols,
    intuitionistic,
    pareto_guided,
    svls,
)
from popen.objectives.region_pairs import RegionObjective
from popen.preference.mask_objectives import LossOnMargin, MaskMargin, mask_objective

Supervised = Literal["cross_entropy_dice", "svls", "geols", "fuzzy", "intuitionistic", "pareto", "epsilon_constraint"]


@dataclass
class BandArguments:
    """How wide a boundary is to losses on labels that admit doubt, and the numbers of the ε-constraint."""

    band: float = field(
        default=3.0, metadata={"help": "Pixels to either side of a boundary that count as uncertain, 1.5 at least."}
    )
    interior_limit: float = field(
        default=0.05, metadata={"help": "ε of epsilon_constraint: what the interior may cost, in nats."}
    )
    multiplier_rate: float = field(
        default=0.1, metadata={"help": "η of epsilon_constraint; its λ starts at 1 and takes a step with every batch."}
    )

    def __post_init__(self):
        if not 1.5 <= self.band < math.inf:  # the pixels next to a boundary are 1 away from the other side
            raise DataError(f"band = {self.band}: narrower than 1.5 pixels it leaves every label hard; give more")
        if self.interior_limit < 0 or self.multiplier_rate <= 0:
            raise DataError(
                f"interior_limit = {self.interior_limit}, multiplier_rate = {self.multiplier_rate}: the limit cannot "
                "be negative, and the rate must be above 0"
            )


@dataclass
class LossArguments(BandArguments):
    """What is learned from labels, and what from pairs."""

    supervised: Supervised = field(default="cross_entropy_dice", metadata={"help": "The loss on labels."})
    margin: MaskMargin = field(
        default="region_mean", metadata={"help": "How the margin is normalised; region_mean is RN-DPO."}
    )
    alpha: float = field(
        default=0.5, metadata={"help": "α of power, the sum over |R|^α: 0 is the sum, 1 the mean over R."}
    )
    loss: LossOnMargin = field(default="sigmoid", metadata={"help": "On the margin."})
    beta: float = field(default=1.0, metadata={"help": "β of the margin."})
    label_smoothing: float = field(default=0.1, metadata={"help": "ε of cdpo and rdpo."})

    def __post_init__(self):
        super().__post_init__()
        objective_of(self)  # refuses what its margin and its loss cannot take

    @property
    def maps(self) -> dict[str, bool]:
        """Which maps `Prepared.example` must build for the loss on labels."""
        return maps_of(self.supervised)


def maps_of(name: Supervised) -> dict[str, bool]:
    """Which maps of `popen.medical.supervised.Labelled` a loss on labels asks for."""
    distance = name in ("fuzzy", "intuitionistic", "pareto", "epsilon_constraint")
    return {"distance": distance, "geodesic": name == "geols"}


def supervised_of(args: LossArguments, activation: Activation) -> partial[Parts]:
    """The loss on labels; that of `epsilon_constraint` has a multiplier, which all stages that share it go on with."""
    return named_supervised(args.supervised, args, activation)


def named_supervised(name: Supervised, args: BandArguments, activation: Activation) -> partial[Parts]:
    """A loss on labels by its name."""
    losses = {
        "cross_entropy_dice": cross_entropy_dice, "svls": svls, "geols": geols,
        "fuzzy": partial(fuzzy, band=args.band), "intuitionistic": partial(intuitionistic, band=args.band),
        "pareto": partial(pareto_guided, band=args.band),
        "epsilon_constraint": EpsilonConstraint(args.band, args.interior_limit, args.multiplier_rate),
    }  # fmt: skip
    return partial(losses[name], activation=activation)


def objective_of(args: LossArguments) -> RegionObjective:
    """The loss on a margin between masks."""
    numbers = {"alpha": args.alpha, "beta": args.beta, "label_smoothing": args.label_smoothing}
    return mask_objective(args.margin, args.loss, **numbers)
