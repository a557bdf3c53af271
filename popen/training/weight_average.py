"""An exponential moving average of the weights, which is what a finished training keeps."""

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback


class WeightAverage(TrainerCallback):
    """Averages after every step and writes the average into the model at the end.

    The last step of a small training is noisier than most effects one looks for; the average is not, and it is no
    choice of a checkpoint.

    Args:
        decay: of the average, 0..1; 0.99 remembers about 100 steps.
    """

    def __init__(self, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"average = {decay}: the decay of the weights' average lies between 0 and 1")
        self.decay, self.average = decay, None

    def on_train_begin(self, args, state, control, model: nn.Module, **kwargs):
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(self.decay))

    def on_step_end(self, args, state, control, model: nn.Module, **kwargs):
        self.average.update_parameters(model)

    def on_train_end(self, args, state, control, model: nn.Module, **kwargs):
        model.load_state_dict(self.average.module.state_dict())
        self.average = None
