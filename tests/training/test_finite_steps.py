"""A step that is not finite leaves everything as it was, wherever in it the NaN was; three in a row are the end."""

import hashlib

import pytest
import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from popen.training.callbacks import PartLossTrainer
from popen.training.weight_average import WeightAverage


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.linear = nn.BatchNorm1d(3), nn.Linear(3, 1)

    def forward(self, pixels):
        return self.linear(self.norm(pixels))[:, 0]


class LineTrainer(PartLossTrainer):
    """Spoils what `bad` names: (step, micro-step) -> a kind of fault."""

    bad: dict = {}  # noqa: RUF012
    micro = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        at = (self.state.global_step, self.micro % self.args.gradient_accumulation_steps)
        fault = self.bad.get(at) if model.training else "nan"
        self.micro += model.training
        out = model(inputs["pixels"] * (float("inf") if fault == "activation" else 1))
        if fault == "gradient":
            out.register_hook(lambda gradient: gradient * float("inf"))
        loss = out.square().mean()
        loss = loss * float(fault) if fault in ("nan", "inf") else loss
        self.watch(loss)
        self.note(out=out.mean())
        return (loss, out) if return_outputs else loss


class States(TrainerCallback):
    """The digest of all that a step may change, before every step and after it, and the learning rates."""

    def __init__(self, average):
        self.average, self.before, self.after, self.rates = average, [], [], []

    def digest(self, model, optimizer):
        moments = [value for own in optimizer.state.values() for value in own.values()]
        tensors = [*model.state_dict().values(), *self.average.kept.state_dict().values(), *moments]
        return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()

    def on_step_begin(self, args, state, control, model, optimizer, lr_scheduler, **kwargs):
        self.before.append(self.digest(model, optimizer))
        self.rates.append(lr_scheduler.get_last_lr()[0])

    def on_step_end(self, args, state, control, model, optimizer, **kwargs):
        self.after.append(self.digest(model, optimizer))


@pytest.fixture
def trained(tmp_path):
    def train(bad, accumulated=1, rows_each=4, **options):
        args = TrainingArguments(
            output_dir=str(tmp_path), max_steps=5, per_device_train_batch_size=rows_each, logging_steps=1,
            gradient_accumulation_steps=accumulated, save_strategy="no", report_to="none", use_cpu=True,
            learning_rate=1e-2, weight_decay=0.1, remove_unused_columns=False, logging_nan_inf_filter=False,
            disable_tqdm=True, **options,
        )  # fmt: skip
        rows = [{"pixels": row} for row in torch.randn(64, 3, generator=torch.Generator().manual_seed(1))]
        average = WeightAverage(0.9)
        states = States(average)
        trainer = LineTrainer(
            Line(), args, train_dataset=rows, eval_dataset=rows[:8], callbacks=[average, states],
            data_collator=lambda items: {"pixels": torch.stack([item["pixels"] for item in items])},
        )  # fmt: skip
        trainer.bad = bad
        trainer.train()
        return trainer, states, [entry for entry in trainer.state.log_history if "loss" in entry]

    return train


@pytest.mark.parametrize("fault", ["nan", "inf", "activation", "gradient"])
@pytest.mark.parametrize("accumulated, micro", [(1, 0), (3, 0), (3, 1), (3, 2)])
def test_a_step_that_is_not_finite_changes_nothing(trained, fault, accumulated, micro):
    trainer, states, logs = trained({(2, micro): fault}, accumulated)
    unchanged = [before == after for before, after in zip(states.before, states.after, strict=True)]
    assert unchanged == [False, False, True, False, False]
    assert states.rates[3] == states.rates[2] > states.rates[4]
    assert [entry.get("skipped_steps") for entry in logs] == [None, None, 1, None, None]
    assert all(parameter.isfinite().all() for parameter in trainer.model.state_dict().values())
    assert all(torch.tensor(entry["loss"]).isfinite() for entry in logs)


def test_without_a_fault_no_step_is_left_out(trained):
    _, states, logs = trained({})
    assert not set(states.before) & set(states.after[-1:]) and len({*states.before, *states.after}) == 6
    assert not any("skipped_steps" in entry for entry in logs)


@pytest.mark.parametrize("fault, what", [("nan", "the loss"), ("gradient", "the gradient")])
def test_three_in_a_row_end_the_training(trained, fault, what):
    with pytest.raises(FloatingPointError, match=f"^step 3: {what} on rank 0 is not finite, in the 3 last") as end:
        trained({(step, 0): fault for step in (1, 2, 3)})
    assert "\n" not in str(end.value) and "lower learning_rate" in str(end.value)


def test_four_that_are_not_in_a_row_do_not(trained):
    _, _, logs = trained({(step, 0): "nan" for step in (0, 1, 3, 4)})
    assert [entry.get("skipped_steps") for entry in logs] == [1, 1, None, 1, 1]


def test_an_evaluation_leaves_no_step_out(trained):
    """Its losses, NaN in this trainer, are none to step on."""
    _, _, logs = trained({}, eval_strategy="steps", eval_steps=1)
    assert len(logs) == 5 and not any("skipped_steps" in entry for entry in logs)
