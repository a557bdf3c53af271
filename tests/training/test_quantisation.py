"""QLoRA as far as a CPU goes: what is refused, which layers bitsandbytes would be given, and the preparation."""

import copy

import pytest
import torch
from torch import nn
from transformers.quantizers.quantizers_utils import should_convert_module

from popen.data.safe_io import DataError
from popen.lvlm.adapters import CONFIG
from popen.training import SFTArguments
from popen.training.lora import LoraArguments, with_lora
from popen.training.quantisation import (
    FULL_PRECISION,
    QuantisationArguments,
    bitsandbytes_config,
    check_quantisation,
    prepared,
    quantised_loading,
)

LORA = LoraArguments(use_peft=True)


@pytest.mark.parametrize("asked", ["load_in_4bit", "load_in_8bit"])
def test_without_cuda_it_is_refused_before_anything_is_loaded(asked, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DataError, match=f"^{asked}: no CUDA device is here; leave it out, use_peft alone trains"):
        check_quantisation(QuantisationArguments(**{asked: True}), LORA, "no/model")


def test_without_bitsandbytes_it_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"^load_in_4bit: bitsandbytes is missing; pip install 'popen-seg\[qlora\]'"):
        check_quantisation(QuantisationArguments(load_in_4bit=True), LORA, "no/model")


def test_without_adapters_or_on_one_it_is_refused(tmp_path):
    four = QuantisationArguments(load_in_4bit=True)
    with pytest.raises(DataError, match=r"load_in_4bit: quantised weights cannot be trained.*add use_peft: true"):
        check_quantisation(four, LoraArguments(), "no/model")
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(DataError, match="an adapter, and load_in_4bit quantises whole models; save"):
        check_quantisation(four, LORA, str(tmp_path))


def test_both_are_refused():
    with pytest.raises(ValueError, match=r"load_in_4bit and load_in_8bit: .* leave one out"):
        QuantisationArguments(load_in_4bit=True, load_in_8bit=True)


def test_nothing_asked_changes_nothing(tmp_path):
    check_quantisation(FULL_PRECISION, LoraArguments(), "no/model")
    assert quantised_loading(FULL_PRECISION, SFTArguments(output_dir=str(tmp_path), use_cpu=True)) == {}


def test_what_transformers_is_given(tmp_path):
    training = SFTArguments(output_dir=str(tmp_path), use_cpu=True, bf16=True)
    asked = QuantisationArguments(load_in_4bit=True, bnb_4bit_quant_type="fp4", use_bnb_nested_quant=True)
    given = quantised_loading(asked, training)
    config = given["quantization_config"]
    assert (config.load_in_4bit, config.load_in_8bit) == (True, False)
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("fp4", True)
    assert config.bnb_4bit_compute_dtype == given["dtype"] == torch.bfloat16
    assert given["device_map"] == {"": 0}
    plain = SFTArguments(output_dir=str(tmp_path), use_cpu=True)
    assert quantised_loading(QuantisationArguments(load_in_8bit=True), plain)["dtype"] == torch.float32


def test_only_the_language_model_is_quantised(tiny):
    """transformers' rule on every linear layer: seven in a layer of Llama are reached, none of our own parts."""
    skipped = bitsandbytes_config(QuantisationArguments(load_in_4bit=True), torch.float32).llm_int8_skip_modules
    linear = [name for name, module in tiny[0].named_modules() if type(module) is nn.Linear]
    reached = {name for name in linear if should_convert_module(name, skipped)}
    language = "backbone.model.language_model."
    assert reached == {name for name in linear if name.startswith(language)} and len(reached) == 7
    left = {name.split(".")[0] for name in set(linear) - reached}
    assert {"codebook", "mask_decoder", "pixel_encoder", "backbone"} <= left
    assert {"backbone.lm_head"} <= set(linear) - reached


def test_a_prepared_model_is_frozen_in_float32_and_takes_adapters(tiny):
    def trained(model):
        return {name for name, p in model.named_parameters() if p.requires_grad}

    base = prepared(copy.deepcopy(tiny[0]).to(torch.bfloat16))
    assert {p.dtype for p in base.parameters()} == {torch.float32} and not trained(base)
    assert trained(with_lora(base, LORA)) == trained(with_lora(copy.deepcopy(tiny[0]), LORA))
