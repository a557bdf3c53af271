"""Adapters: what they train, that switched off they are the base, and that their files bring them back."""

import copy

import pytest
import torch
from peft import PeftModel

from popen.data.safe_io import DataError
from popen.data.scene_questions import sample
from popen.data.schema import write_dataset
from popen.lvlm.adapters import base_of
from popen.lvlm.loading import load_model
from popen.lvlm.packing import supervised_batch
from popen.training import SegmentationSFTTrainer, SFTArguments
from popen.training.callbacks import finish
from popen.training.lora import LoraArguments, with_lora

ASIDE = ("token_sequence", "sequence_row")
LOOKING = ("look_row", "look_column", "look_target")


@pytest.fixture
def base(tiny):
    return copy.deepcopy(tiny[0])


def trained(model) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in model.named_parameters() if p.requires_grad}


def test_what_is_trained(base):
    """q and v of the one layer, the mask parts in full, and of the words only the four `[SEG…]` rows."""
    parts = {
        name: base.get_submodule(name) for name in ("codebook", "mask_decoder", "pixel_fusion", "pixel_encoder.necks")
    }
    whole = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    model = with_lora(base, LoraArguments(use_peft=True, lora_r=2))
    found = trained(model)
    adapters = [name for name in found if "lora_" in name]
    assert len(adapters) == 4 and all("language_model" in name for name in adapters)
    tokens = [shape for name, shape in found.items() if "trainable_tokens" in name]
    assert tokens == [(4, 48)]  # the output layer shares them
    for part, size in whole.items():
        assert sum(shape.numel() for name, shape in found.items() if f".{part}." in name) == size
    still = ("vision_tower", "multi_modal_projector", "pixel_encoder.backbone", "preference_head")
    assert not any(part in name for name in found for part in still)


def test_an_unknown_layer_is_refused(base):
    with pytest.raises(DataError, match=r"lora_target_modules \['qkv'\]: no layer .* is called so"):
        with_lora(base, LoraArguments(use_peft=True, lora_target_modules=["qkv"]))


def test_training_moves_it_and_switched_off_it_is_the_base(base, tiny, samples, tmp_path):
    """Three steps of the trainer with accumulation and checkpointed activations; the adapter's files and no others."""
    rows = write_dataset((sample(seed) for seed in range(4)), tmp_path / "data", "train")
    inputs = {k: v for k, v in supervised_batch(tiny[1], samples[:2]).items() if k not in ASIDE}
    with torch.no_grad():
        before = base(**inputs).logps
    again = copy.deepcopy(base)
    model = with_lora(base, LoraArguments(use_peft=True, lora_dropout=0.0))
    args = SFTArguments(
        output_dir=str(tmp_path / "out"), max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        learning_rate=1e-2, gradient_checkpointing=True, report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = SegmentationSFTTrainer(model, args, train_dataset=rows, processor=tiny[1])
    trainer.train()
    finish(trainer)
    model.eval()
    with torch.no_grad():
        after = model(**inputs).logps
        assert (after - before).abs().max() > 0.01
        with model.disable_adapter():
            torch.testing.assert_close(model(**inputs).logps, before)
        written = {file.name for file in (tmp_path / "out").iterdir()}
        assert "adapter_model.safetensors" in written
        assert not {"model.safetensors", "training_args.bin"} & written
        loaded = PeftModel.from_pretrained(again, tmp_path / "out").merge_and_unload()
        torch.testing.assert_close(loaded(**inputs).logps, after, atol=1e-4, rtol=1e-4)


def test_a_folder_with_an_adapter_is_a_model(base, tiny, samples, tmp_path):
    """`load_model` finds the base by the name in the adapter and merges the two."""
    base.save_pretrained(tmp_path / "base")
    tiny[1].save_pretrained(tmp_path / "base")
    own, _ = load_model(tmp_path / "base")
    model = with_lora(own, LoraArguments(use_peft=True))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.eval().save_pretrained(tmp_path / "adapter")
    loaded, processor = load_model(tmp_path / "adapter")
    assert type(loaded) is type(own) and processor.prefix_ids == tiny[1].prefix_ids
    inputs = {k: v for k, v in supervised_batch(tiny[1], samples[:1]).items() if k not in (*ASIDE, *LOOKING)}
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**inputs).logps, model(**inputs).logps, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "config, message",
    [(None, "mine: no adapter_config.json with adapter_model"), ("{}", "mine: it does not name its base model")],
)
def test_adapters_that_are_not_whole(config, message, tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(DataError, match=message):
        base_of(tmp_path, "mine")
