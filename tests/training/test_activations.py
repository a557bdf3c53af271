"""Bytes that are predicted without weights, against those that autograd really keeps in a trainer's step."""

import copy

import pytest
import torch

from popen.data.schema import write_dataset
from popen.lvlm import label_logps
from popen.lvlm.tiny import build_tiny
from popen.training import SegmentationSFTTrainer, SFTArguments
from popen.training.activations import LiveStorages, activations, kept_for_backward, without_memory
from popen.training.preference import MODEL_INPUTS, PreferenceArguments, PreferenceTrainer
from tests.training.step_batches import empty_copy, step_batch


@pytest.fixture(scope="module")
def models(tiny, samples):
    """popen-tiny's layout at two sizes: one layer of width 48, and two of width 96."""
    corpus = [text for s in samples for q in s.questions for text in (q.question, q.answer)]
    small, large = (copy.deepcopy(tiny[0]), tiny[1]), build_tiny(corpus, seed=0, width=96, layers=2)
    for model, _ in (small, large):
        model.set_attn_implementation("eager")
        model.train()
    return {"tiny": small, "larger": large}


def trainer_of(kind, model, processor, samples, folder):
    options = {"output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 2}
    trainer, arguments = {
        "SFT": (SegmentationSFTTrainer, SFTArguments), "preference": (PreferenceTrainer, PreferenceArguments),
    }[kind]  # fmt: skip
    rows = write_dataset(samples, folder / "data", "train")
    trainer = trainer(model, arguments(**options), processor=processor, train_dataset=rows)
    trainer.state.max_steps, trainer.state.global_step = 2, 1
    return trainer


def measured(loss_of, model):
    """Written apart from what is tested: bytes of every storage that autograd saves, weights and buffers left out."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    found = sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in own)
    loss.backward()
    return found


@pytest.mark.parametrize(
    "size, kind, checkpointed, piece",
    [
        ("tiny", "SFT", False, None), ("tiny", "SFT", True, None), ("tiny", "SFT", True, 20),
        ("larger", "preference", False, None), ("larger", "preference", True, None),
    ],
)  # fmt: skip
def test_predicted_is_what_a_trainers_step_keeps(
    models, samples, size, kind, checkpointed, piece, tmp_path, monkeypatch
):
    """Within 2 %: the trainer's own losses save a little beside the model's. With logits in pieces, too."""
    if piece:
        words = models[size][0].config.get_text_config().vocab_size
        monkeypatch.setattr(label_logps, "LOGITS_AT_ONCE", piece * words)
    model, processor = copy.deepcopy(models[size][0]), models[size][1]
    batch = step_batch(kind, model, processor, samples[:2])
    trainer, empty = trainer_of(kind, model, processor, samples[:2], tmp_path), empty_copy(model)
    if checkpointed:
        model.activation_checkpointing_enable()
        empty.activation_checkpointing_enable()
    found = measured(lambda: trainer.compute_loss(trainer.model, dict(batch)), model)
    names = MODEL_INPUTS if kind == "preference" else batch.keys() - {"token_sequence", "sequence_row"}
    inputs = {name: batch[name] for name in names}
    predicted = activations(*without_memory(empty), inputs, None)
    assert predicted.kept == pytest.approx(found, rel=0.02)
    assert predicted.peak > predicted.kept
    if size == "tiny":  # the peak, too, of a real step of the model
        assert predicted.peak == pytest.approx(activations(model, None, inputs, None).peak, rel=0.005)


def test_mixed_precision(models, samples):
    """Within 2 % on a CPU, whose layer norms keep statistics in float32; without a GPU there is none to compare."""
    model, processor = copy.deepcopy(models["tiny"][0]), models["tiny"][1]
    batch = {
        name: value
        for name, value in step_batch("SFT", model, processor, samples[:1]).items()
        if name not in ("token_sequence", "sequence_row")
    }
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    with torch.autocast("cpu", torch.bfloat16):
        real, _ = kept_for_backward(lambda: model(**batch).loss, own)
    predicted = activations(*without_memory(empty_copy(model)), batch, torch.bfloat16)
    assert predicted.kept == pytest.approx(real, rel=0.02)
    assert predicted.kept < 0.8 * activations(*without_memory(empty_copy(model)), batch, None).kept


def test_kept_by_hand():
    """exp saves its result, 4 · 6 bytes, and so does the square, its input, which is that; the weight is left out."""
    weight = torch.ones(6, requires_grad=True)
    kept, loss = kept_for_backward(lambda: (weight.exp() ** 2).sum(), {weight.untyped_storage()._cdata})
    assert kept == 24
    kept, loss = kept_for_backward(lambda: (weight**2).sum(), {weight.untyped_storage()._cdata})
    assert kept == 0 and loss == 6


def test_a_peak_by_hand():
    """Two tensors of 400 bytes live at once, then a third takes the place of the first: never three."""
    with LiveStorages(None, set()) as live:
        first = torch.zeros(100)
        second = torch.zeros(100)
        del first
        third = torch.zeros(100)
        assert (live.now, live.peak) == (800, 800)
        del second, third
    assert (live.now, live.peak) == (0, 800)


def test_nothing_is_left_in_the_model(models, samples):
    model, processor = copy.deepcopy(models["tiny"][0]), models["tiny"][1]
    batch = step_batch("SFT", model, processor, samples[:1])
    batch = {name: value for name, value in batch.items() if name not in ("token_sequence", "sequence_row")}
    activations(model, None, batch, None)
    assert all(p.grad is None for p in model.parameters())
    model(**batch).loss.backward()
    assert any(p.grad is not None for p in model.parameters())
