"""Out of memory in any part of a training is one line with a way out; what is said to fit is what was counted."""

import copy

import pytest
import torch

from popen.data.safe_io import DataError
from popen.data.schema import write_dataset
from popen.lvlm import label_logps
from popen.lvlm.out_of_memory import questions_at_a_time
from popen.training import SegmentationSFTTrainer, SFTArguments, out_of_memory
from popen.training import callbacks as trainers
from popen.training.activations import Activations, activations
from popen.training.out_of_memory import smaller_batch

SAID = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 80 GiB"


def full(*_, **__):
    raise torch.OutOfMemoryError(SAID)


@pytest.fixture
def trainer(tiny, samples, tmp_path):
    """Of the tiny model on four rows at a time, three times for a step, with an evaluation after it."""
    rows = write_dataset(samples, tmp_path / "data", "train")

    def made(**options):
        given = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 2} | options
        args = SFTArguments(
            output_dir=str(tmp_path / "out"), max_steps=1, gradient_accumulation_steps=3, report_to="none",
            use_cpu=True, disable_tqdm=True, save_strategy="no", eval_strategy="steps", eval_steps=1, **given,
        )  # fmt: skip
        model = copy.deepcopy(tiny[0]).train()
        return SegmentationSFTTrainer(model, args, train_dataset=rows, eval_dataset=rows, processor=tiny[1])

    return made


def refused(trainer):
    with pytest.raises(DataError) as refusal:
        trainer.train()
    assert "\n" not in str(refusal.value) and "(CUDA out of memory)" in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    "room, way_out",
    [
        (3.5, "set per_device_train_batch_size: 3 and gradient_accumulation_steps: 4, the same global batch, which is "
         "predicted to fit"),
        (0.5, "not even one is predicted to fit: set bf16, gradient_checkpointing or use_peft, or split the model "
         "over devices (ZeRO-3)"),
    ],
)  # fmt: skip
def test_a_micro_step_names_the_batch(trainer, monkeypatch, room, way_out):
    """For a device with room for so many rows, measured on the real model: beside weights, as many gradients and
    twice as many moments, a fourth of the peak of four rows for each. The model itself is left as it is."""
    own = trainer()
    whole = sum(p.numel() * p.element_size() for p in own.model.parameters())
    fixed = 4 * whole + sum(b.numel() * b.element_size() for b in own.model.buffers())
    batch = own.model_inputs(next(iter(own.get_train_dataloader())))
    row = activations(copy.deepcopy(own.model), None, batch, None).peak / 4
    monkeypatch.setattr(trainers, "device_memory", lambda device: int((fixed + room * row) / 0.9))
    monkeypatch.setattr(own, "compute_loss", full)
    assert refused(own) == f"step 0: no memory for 4 rows at a time (CUDA out of memory); {way_out}"
    assert all(type(p) is torch.nn.Parameter for p in own.model.parameters())


def test_fewer_rows_need_as_many_logits_at_once(trainer, monkeypatch):
    """A piece of ten tokens takes a hundred times what a row does: beside it, 2.5 rows' room is for two rows, where
    shares of the whole would make it three."""
    own = trainer()
    words = own.model.config.get_text_config().vocab_size
    monkeypatch.setattr(label_logps, "LOGITS_AT_ONCE", 10 * words)
    piece = 16 * 10 * words
    row = piece // 100
    batch = own.model_inputs(next(iter(own.get_train_dataloader())))
    assert len(batch["token_labels"]) > 40
    monkeypatch.setattr(out_of_memory, "activations", lambda *_: Activations(4 * row, piece + 4 * row))
    whole = sum(p.numel() * p.element_size() for p in own.model.parameters())
    fixed = 4 * whole + sum(b.numel() * b.element_size() for b in own.model.buffers())
    for rows, found in ((2.5, 2), (4.5, 4), (0.5, 0)):
        memory = int((fixed + piece + rows * row) / 0.9)
        assert out_of_memory.rows_that_fit(own.model, batch, 4, own.args, memory) == found


@pytest.mark.parametrize("counted", [None, 4, 9])
def test_what_no_calculation_tells_is_not_said_to_fit(trainer, monkeypatch, counted):
    """Nor what it gets wrong: it says that so many fit, and the device refused four."""
    own = trainer()
    monkeypatch.setattr(own, "_rows_that_fit", lambda inputs: counted)
    monkeypatch.setattr(own, "compute_loss", full)
    assert refused(own).endswith(
        "set per_device_train_batch_size: 2 and gradient_accumulation_steps: 6, the same global batch, which is half, "
        "not known to fit: ask popen plan"
    )


def test_a_single_row_without_room_needs_another_way(trainer, monkeypatch):
    own = trainer(per_device_train_batch_size=1)
    monkeypatch.setattr(own, "compute_loss", full)
    assert refused(own) == (
        "step 0: no memory for 1 rows at a time (CUDA out of memory); set bf16, gradient_checkpointing or use_peft, "
        "or split the model over devices (ZeRO-3)"
    )


def test_the_optimizers_first_step_is_no_matter_of_the_batch(trainer, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    said = refused(trainer())
    assert said.startswith("step 0: no memory for weights, gradients and states of adamw_torch")
    assert "whatever the micro-batch" in said and "per_device" not in said


@pytest.mark.parametrize("rows, way_out", [(2, "try per_device_eval_batch_size: 1"), (1, "set eval_strategy: no")])
def test_an_evaluation_has_a_batch_of_its_own(trainer, monkeypatch, rows, way_out):
    own = trainer(per_device_eval_batch_size=rows)
    monkeypatch.setattr(own, "prediction_step", full)
    assert (
        refused(own) == f"evaluation after step 1: no memory for {rows} rows at a time (CUDA out of memory); {way_out}"
    )


def test_a_trainer_that_looks_for_a_batch_itself_is_left_alone(trainer, monkeypatch):
    own = trainer(auto_find_batch_size=True)
    monkeypatch.setattr(own, "compute_loss", full)
    with pytest.raises(RuntimeError, match="No executable batch size found"):
        own.train()


@pytest.mark.parametrize(
    "rows, accumulated, most, smaller",
    [(8, 1, 4, (4, 2)), (3, 1, 1, (1, 3)), (6, 1, 5, (3, 2)), (7, 2, 3, (2, 7)), (2, 5, 1, (1, 10))],
)
def test_the_global_batch_stays(rows, accumulated, most, smaller):
    assert smaller_batch(rows, accumulated, most) == smaller and rows * accumulated == smaller[0] * smaller[1]


def test_questions_are_asked_in_smaller_batches():
    with pytest.raises(DataError) as refusal, questions_at_a_time("--batch-size ", 64, "rows are kept"):
        full()
    said = (
        "no memory for 64 questions at a time (CUDA out of memory); try --batch-size 32, then half of that; rows are"
    )
    assert str(refusal.value) == said + " kept"
    with pytest.raises(DataError, match="a single question does not fit"), questions_at_a_time("batch_size: ", 1):
        full()
