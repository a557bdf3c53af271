"""The ε-constraint as a supervised loss: the boundary is learned while the interior stays below a limit."""

import math

import torch
from torch import distributed

from popen.medical.supervised import Activation, Labelled, Parts, interior_boundary
from popen.objectives.pareto import constraint_multiplier


class EpsilonConstraint:
    """L = L_B + λ L_I + Dice, and after each training batch λ ← [λ + η (L_I − ε)]₊ (reconstruction).

    L_I, L_B and Dice are those of `popen.medical.supervised.interior_boundary`. λ belongs to this object: it goes on
    through all the stages that share it, and is no part of `MedicalTrainer`'s checkpoints, so a training that resumes
    from one begins with the first λ again. Processes that train together have one λ, from the mean of L_I over all
    their pictures; where none has one, λ stays.

    Args:
        band: pixels to either side of a boundary that count as uncertain. limit: ε >= 0 of L_I, in nats.
        rate: η > 0. multiplier: λ >= 0 to begin with; 1 is the plain sum.
    Raises:
        ValueError: a limit or multiplier below 0, or a rate that is not above 0.
    """

    def __init__(self, band: float, limit: float, rate: float, multiplier: float = 1.0):
        if limit < 0:
            raise ValueError(f"limit must be >= 0, got {limit}: the interior's cross-entropy is never below 0")
        self.band, self.limit, self.rate = band, limit, rate
        self.multiplier = constraint_multiplier(multiplier, limit, limit, rate)  # checks, and changes nothing

    def __call__(self, labelled: Labelled, activation: Activation) -> Parts:
        """The parts with the λ so far, which then takes its step; it takes none without gradients, as in validation.

        Raises:
            ValueError: the examples have no distances.
        """
        interior, boundary, dice = interior_boundary(labelled, activation, self.band)
        parts = {"interior": self.multiplier * interior, "boundary": boundary, "dice": dice}
        if interior.requires_grad:
            mean = _mean_over_processes(interior, len(labelled.masks))
            if mean is not None and math.isfinite(mean):  # the trainer leaves any other step out
                self.multiplier = constraint_multiplier(self.multiplier, mean, self.limit, self.rate)
        return parts


def _mean_over_processes(loss: torch.Tensor, pictures: int) -> float | None:
    """Of a loss that is the mean over this process's pictures; None without any on all of them."""
    total, count = loss.detach() * pictures, loss.new_tensor(pictures)
    if distributed.is_available() and distributed.is_initialized():
        both = torch.stack([total, count])
        distributed.all_reduce(both)
        total, count = both
    return float(total / count) if count > 0 else None
