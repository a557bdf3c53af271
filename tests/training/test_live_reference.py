"""The reference computed live against the numbers that mining wrote, for answers and for masks."""

import copy

import pytest
import torch

from popen.data.safe_io import DataError
from popen.lvlm.mining import load_mined
from popen.training import live_reference
from popen.training.live_reference import LiveReference, with_reference
from popen.training.lora import LoraArguments, with_lora
from popen.training.preference import MODEL_INPUTS, PreferenceArguments, PreferenceStreams, PreferenceTrainer
from tests.mined import mined_folder

CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # float32


@pytest.fixture(scope="module")
def streams(tmp_path_factory, taught, samples):
    root = tmp_path_factory.mktemp("live")
    rows = mined_folder(root, *taught, samples)
    text, seg, report = load_mined(root / "mined")
    assert report["model_name"] == "model"  # the folder's name, and nothing of this machine's folders
    return PreferenceStreams(text, seg, rows)


@pytest.fixture(params=["all weights", "LoRA"])
def trainer(request, taught, streams, tmp_path):
    """A trainer with a live reference, and its policy moved away from it."""
    model = copy.deepcopy(taught[0]).train()
    if request.param == "LoRA":
        model = with_lora(model, LoraArguments(use_peft=True, lora_dropout=0.0))  # two forwards are compared
    args = PreferenceArguments(
        output_dir=str(tmp_path), reference="live", max_steps=2, per_device_train_batch_size=2, use_cpu=True,
        report_to="none", disable_tqdm=True, logging_steps=1, save_strategy="no", learning_rate=1e-3,
    )  # fmt: skip
    built = PreferenceTrainer(model, args, train_dataset=streams, processor=taught[1])
    built.state.max_steps, built.state.global_step = 2, 1
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return built


def batch_of(trainer):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(3)])


def test_it_agrees_with_what_mining_wrote(trainer):
    """Token log-probabilities of both answers, logits in every region and embeddings, though the policy has moved."""
    batch = batch_of(trainer)
    live = with_reference(batch, trainer.live_reference.outputs(trainer.model, batch))
    texts = batch["token_sequence"] < 2 * len(batch["pairs"])
    assert texts.sum() > 10
    torch.testing.assert_close(live["ref_logps"][texts], batch["ref_logps"][texts], **CLOSE)
    assert len(batch["stage1_gap"]) and batch["stage1_region_signs"].any()
    for name in ("stage1_region_ref_logits", "stage2_region_ref_logits", "stage1_candidates", "stage2_candidates"):
        torch.testing.assert_close(live[name], batch[name], **CLOSE)
    policy = trainer.model(**{name: batch[name] for name in MODEL_INPUTS})
    assert (policy.logps[texts] - batch["ref_logps"][texts]).abs().max() > 1e-2


def test_the_loss_is_the_same_and_the_policy_is_left_alone(trainer):
    batch = batch_of(trainer)
    live = trainer.compute_loss(trainer.model, dict(batch))
    reference, trainer.live_reference = trainer.live_reference, None
    cached = trainer.compute_loss(trainer.model, dict(batch))
    torch.testing.assert_close(live, cached, **CLOSE)
    assert trainer.model.training and live.requires_grad
    if reference.copy is None:
        assert trainer.model.active_adapters == ["default"]
    else:
        assert not any(p.requires_grad for p in reference.copy.parameters())


def test_numbers_of_another_model_do_not_matter(trainer):
    """What is cached is not read: with it spoilt the loss stays as it was."""
    batch = batch_of(trainer)
    spoilt = dict(batch) | {"ref_logps": batch["ref_logps"] + 5}
    first, second = (trainer.compute_loss(trainer.model, dict(b)) for b in (batch, spoilt))
    torch.testing.assert_close(first, second, atol=0, rtol=0)


def test_training_with_it_is_training_without(taught, streams, tmp_path):
    """Two steps from the model that was mined: the same weights whichever reference is asked for."""
    weights = []
    for reference in ("cached", "live"):
        args = PreferenceArguments(
            output_dir=str(tmp_path), reference=reference, max_steps=2, per_device_train_batch_size=1, use_cpu=True,
            report_to="none", disable_tqdm=True, save_strategy="no", learning_rate=1e-4, optim="sgd",
        )  # fmt: skip
        model = copy.deepcopy(taught[0]).train()
        PreferenceTrainer(model, args, train_dataset=streams, processor=taught[1]).train()
        weights.append(model.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, **CLOSE, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_in_mixed_precision_the_reference_rounds_as_the_policy_does(taught, streams, tmp_path, monkeypatch, dtype):
    """Weights of either width: every margin is 0 before the first step, up to nothing."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # taken back afterwards: arguments set it for good
    args = PreferenceArguments(
        output_dir=str(tmp_path), reference="live", max_steps=1, per_device_train_batch_size=2, use_cpu=True,
        bf16=True, report_to="none", disable_tqdm=True, logging_steps=1, save_strategy="no",
    )  # fmt: skip
    model = copy.deepcopy(taught[0]).to(dtype).train()
    trainer = PreferenceTrainer(model, args, train_dataset=streams, processor=taught[1])
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["rewards/margins"] == first["seg/margins"] == 0


def test_pieces_cannot_be_copied(tiny, monkeypatch):
    monkeypatch.setattr(live_reference, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(DataError, match=r"^reference: live copies the model, and ZeRO-3 .*use_peft: true"):
        LiveReference(tiny[0], MODEL_INPUTS)
    LiveReference(with_lora(copy.deepcopy(tiny[0]), LoraArguments(use_peft=True)), MODEL_INPUTS)
