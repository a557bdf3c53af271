"""An exponential moving average of the weights, which is what a finished training keeps."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import TrainerCallback


class WeightAverage(TrainerCallback):
    """Averages after every step and writes the average into the model at the end.

    The last step of a small training is noisier than most effects one looks for; the average is not, and it is no
    choice of a checkpoint. At first the average forgets faster, d_n = min(d, (1 + n) / (10 + n)) after n steps, or a
    short training would keep most of the weights that it began with.

    Args:
        decay: d of the average, 0..1; 0.99 remembers about 100 steps.
    Raises:
        ValueError: a decay out of range.
    """

    def __init__(self, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"average = {decay}: the decay of the weights' average lies between 0 and 1")
        self.decay = decay
        self.average: AveragedModel | None = None

    @property
    def kept(self) -> nn.Module | None:
        """What would be kept if training ended now; None outside of training."""
        return None if self.average is None else self.average.module

    def on_train_begin(self, args, state, control, model: nn.Module, **kwargs):
        self.average = AveragedModel(model, avg_fn=self._averaged)

    def on_step_end(self, args, state, control, model: nn.Module, optimizer=None, **kwargs):
        if not getattr(optimizer, "step_was_skipped", False):
            self.average.update_parameters(model)

    def on_train_end(self, args, state, control, model: nn.Module, **kwargs):
        model.load_state_dict(self.average.module.state_dict())
        self.average = None

    def _averaged(self, average: torch.Tensor, weight: torch.Tensor, seen) -> torch.Tensor:
        decay = min(self.decay, (1 + int(seen)) / (10 + int(seen)))
        return decay * average + (1 - decay) * weight
