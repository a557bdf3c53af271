"""A step with a NaN or an infinity in it is left out on every process, and three in a row end the training."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import TrainerCallback

from popen.data.safe_io import DataError

MOST = 3  # skipped steps in a row


class FiniteSteps(TrainerCallback):
    """Looks at the loss of every micro-batch and at the gradient before every step, and agrees on it over processes.

    A skipped step changes no parameter, no moment of the optimizer and no running statistic of a batch norm, and the
    learning rate stays where it is: nothing is multiplied by zero, which would leave a NaN a NaN and let momentum and
    weight decay act. DeepSpeed's engine has stepped by the time it can be asked, and leaves the step out itself; it
    sees gradients alone, so a loss that is not finite makes them so. FSDP2 shows nobody a gradient before the mean:
    then all ranks are named. In fp16 an infinite gradient is the loss scaler's to skip and is not counted.

    `skipped` counts since it was last set to 0.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.skipped = self._in_a_row = 0
        self._bad_losses: list[torch.Tensor] = []  # of this process, one per micro-batch
        self._bad_gradients: list[torch.Tensor] = []  # of this process, before the mean over processes
        self._hooks: list = []
        self._engine_steps = accelerator.distributed_type == DistributedType.DEEPSPEED
        self._statistics: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watch(self, loss: torch.Tensor) -> None:
        """Notes whether a training loss is finite; nothing is said before the step."""
        if not loss.requires_grad:
            return  # evaluation
        bad = ~torch.isfinite(loss.detach())
        self._bad_losses.append(bad)
        if self._engine_steps:  # a NaN in the loss need not reach the gradient
            loss.register_hook(lambda gradient: gradient.masked_fill(bad, float("nan")))

    def on_train_begin(self, args, state, control, optimizer, **kwargs):
        if self._engine_steps:
            engine = optimizer.optimizer
            if not hasattr(engine, "overflow"):
                raise DataError(
                    "deepspeed_config: zero_stage 0 steps on a NaN without a word; set zero_stage 1 or more, or "
                    "distributed_type: MULTI_GPU"
                )
            engine.check_grad_overflow = True  # otherwise ZeRO-2 in bf16 does, too

    def on_step_begin(self, args, state, control, model: nn.Module, **kwargs):
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self._statistics = [(kept, kept.clone()) for norm in norms for kept in norm.buffers()]

    def on_pre_optimizer_step(self, args, state, control, model: nn.Module, optimizer, **kwargs):
        scaled = self.accelerator.scaler is not None
        if self._engine_steps:
            scaled = getattr(optimizer.optimizer, "dynamic_loss_scale", False)
            finite = not optimizer.optimizer.overflow  # of the mean, on every process alike
        else:
            finite = scaled or _has_finite_gradients(model)
        found = self._over_processes(finite_gradients=scaled or finite)
        if not scaled:
            optimizer._is_overflow = any(found[:2])  # what accelerate calls it: the schedule then waits
        if not any(found[:2]):
            self._in_a_row = 0
            self._unhook()
            return
        self.skipped += 1
        self._in_a_row += 1
        for parameter in model.parameters():
            parameter.grad = None  # nothing to apply: neither momentum nor weight decay
        for statistic, before in self._statistics:
            statistic.copy_(before)
        if self._in_a_row >= MOST:
            raise FloatingPointError(_message(state.global_step, *found, self._in_a_row))
        self._hook(model)

    def on_train_end(self, args, state, control, **kwargs):
        self._unhook()

    def _over_processes(self, finite_gradients: bool) -> tuple[list[int], list[int], list[int]]:
        """Ranks whose loss is not finite, whose gradient after the mean is not, and whose own gradient is not."""
        device = self.accelerator.device
        flags = [
            torch.stack(own).any() if own else torch.tensor(False) for own in (self._bad_losses, self._bad_gradients)
        ]
        flags.insert(1, torch.tensor(not finite_gradients))
        self._bad_losses.clear()
        self._bad_gradients.clear()
        ranks = self.accelerator.gather(torch.stack([flag.to(device).float() for flag in flags])[None]).tolist()
        return tuple([rank for rank, own in enumerate(ranks) if own[which]] for which in range(3))

    def _hook(self, model: nn.Module) -> None:
        """Has gradients looked at before they are averaged, which tells where a NaN is from; only while there are."""
        if not self._hooks:
            note = lambda gradient: self._bad_gradients.append(~torch.isfinite(gradient).all())  # noqa: E731
            self._hooks = [p.register_hook(note) for p in model.parameters() if p.requires_grad]

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _has_finite_gradients(model: nn.Module) -> bool:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    return bool(torch.isfinite(norm.full_tensor() if isinstance(norm, DTensor) else norm))


def _message(step: int, losses: list[int], gradients: list[int], own: list[int], times: int) -> str:
    what = "the loss" if losses else "the gradient"
    where = ", ".join(map(str, losses or own or gradients))
    again = f", in the {times} last steps" if times > 1 else ""
    return (
        f"step {step}: {what} on rank {where} is not finite{again}; nothing was updated, "
        "lower learning_rate or check the data with the last checkpoint"
    )
