"""The recipes for 7 B parameters on the meta device: sizes, trained share and memory are those in their headers."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    Qwen2_5_VLConfig,
)
from transformers.quantizers.quantizers_utils import should_convert_module

from popen.lvlm.configuration_popen import PopenConfig
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.training.lora import LoraArguments, with_lora
from popen.training.memory import GIB, MASTER_AND_MOMENTS, Shape, footprint, quantised_footprint, step_seconds
from popen.training.quantisation import QuantisationArguments, bitsandbytes_config

RECIPES = Path(__file__).parent.parent.parent / "recipes"
PEAK = {"H100": 989e12, "A100": 312e12}  # bfloat16 operations per second, dense, by their data sheets


def llava() -> LlavaConfig:
    """llava-hf/llava-1.5-7b-hf."""
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=4096, rms_norm_eps=1e-5,
    )  # fmt: skip
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000, vision_feature_layer=-2)


def qwen() -> Qwen2_5_VLConfig:
    """Qwen/Qwen2.5-VL-7B-Instruct."""
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
        "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    text = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 128000,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    }  # fmt: skip
    return Qwen2_5_VLConfig(vision_config=vision, text_config=text)


# backbone, canvas, parameters of the published backbone, of these the language model's
SETTINGS = {"llava": (llava, 336, 7_063_427_072, 6_738_939_904), "qwen": (qwen, 448, 8_292_166_656, 7_615_616_512)}


@pytest.fixture(scope="module", params=SETTINGS)
def setting(request):
    """Name, recipe, its header, the backbone and the model with adapters, all without memory."""
    name = request.param
    made, side, _, _ = SETTINGS[name]
    file = RECIPES / f"sft_{name}_7b.yaml"
    config, recipe = made(), yaml.safe_load(file.read_text())
    words = config.get_text_config().vocab_size
    with torch.device("meta"):
        backbone = AutoModelForImageTextToText.from_config(config)
        own = PopenConfig(backbone_config=config, image_size=side, seg_token_ids=list(range(words - 6, words)))
        model = PopenForReasoningSegmentation(own)
    lora = LoraArguments(**{key: recipe[key] for key in ("use_peft", "lora_r", "lora_alpha", "lora_dropout")})
    header = "\n".join(line for line in file.read_text().splitlines() if line.startswith("#"))
    return name, recipe, header, backbone, with_lora(model, lora)


def counts(model) -> tuple[int, int]:
    parameters = list(model.parameters())
    assert {p.device.type for p in parameters} == {"meta"}
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def shape_of(config, side: int) -> Shape:
    """The header's row: 1,024 tokens, of which 256 are answers with six targets."""
    text = config.get_text_config()
    return Shape(
        text.num_hidden_layers, text.hidden_size, text.intermediate_size, text.vocab_size, 1024, 256, 6, side, 256
    )


def test_the_backbone_has_the_published_size(setting):
    name, _, _, backbone, _ = setting
    _, _, whole, language = SETTINGS[name]
    assert counts(backbone)[0] == whole
    named = backbone.named_parameters()
    assert sum(p.numel() for n, p in named if "language_model" in n or "lm_head" in n) == language


def test_parameters_and_trained_share(setting):
    """Adapters of rank 8 on q and v of every layer, mask parts, six rows of the words in and six out."""
    _, _, header, _, model = setting
    parameters, trained = counts(model)
    said = re.search(r"([\d.]+) G parameters, ([\d.]+) M trained \(([\d.]+) %\)", header)
    assert float(said[1]) == round(parameters / 1e9, 2)
    assert float(said[2]) == round(trained / 1e6, 1)
    assert float(said[3]) == round(100 * trained / parameters, 2)
    text = model.config.get_text_config()
    head = text.hidden_size // text.num_attention_heads
    outputs = (text.num_attention_heads + text.num_key_value_heads) * head  # of q and v
    adapters = text.num_hidden_layers * 8 * (2 * text.hidden_size + outputs)
    named = [(n, p.numel()) for n, p in model.named_parameters() if p.requires_grad]
    assert sum(size for n, size in named if "lora_" in n) == adapters
    assert sum(size for n, size in named if "trainable_tokens" in n) == 2 * 6 * text.hidden_size


def test_memory(setting):
    name, recipe, header, _, model = setting
    parameters, trained = counts(model)
    shape = shape_of(model.config, SETTINGS[name][1])
    rows = recipe["per_device_train_batch_size"]
    said = re.search(
        r"one GPU ([\d.]+) GiB; eight with ZeRO-2 ([\d.]+) GiB; eight with ZeRO-3 .*? ([\d.]+) GiB", header
    )
    for number, (devices, stage) in zip(said.groups(), ((1, 2), (8, 2), (8, 3)), strict=True):
        found = footprint(parameters, trained, shape, rows, devices, stage)
        assert float(number) == round(found.total / GIB, 1)
        assert found.optimizer == MASTER_AND_MOMENTS * trained // devices
    assert footprint(parameters, trained, shape, rows, 1, 0).optimizer < 0.5 * GIB  # adapters: the point of them


def test_time(setting):
    name, recipe, header, _, _ = setting
    rows, accumulated = recipe["per_device_train_batch_size"], recipe["gradient_accumulation_steps"]
    said = re.search(r"H100 ([\d.]+) s, A100 ([\d.]+) s; ([\d,]+) steps in ([\d.]+) and ([\d.]+) hours", header)
    assert int(said[3].replace(",", "")) == recipe["max_steps"]
    for seconds, hours, peak in ((said[1], said[4], PEAK["H100"]), (said[2], said[5], PEAK["A100"])):
        found = step_seconds(SETTINGS[name][3], 1024, rows, accumulated, peak, 0.4)
        assert float(seconds) == round(found, 1)
        assert float(hours) == pytest.approx(float(seconds) * recipe["max_steps"] / 3600, abs=0.05)


def test_memory_in_four_bits():
    """Of LLaVA-1.5-7B: 32 layers of four attention and three MLP matrices are quantised, by transformers' own rule."""
    file = RECIPES / "sft_qlora_llava_7b.yaml"
    recipe = yaml.safe_load(file.read_text())
    asked = QuantisationArguments(**{key: recipe[key] for key in ("load_in_4bit", "use_bnb_nested_quant")})
    skipped = bitsandbytes_config(asked, torch.bfloat16).llm_int8_skip_modules
    config = llava()
    with torch.device("meta"):
        model = PopenForReasoningSegmentation(
            PopenConfig(backbone_config=config, image_size=336, seg_token_ids=list(range(32058, 32064)))
        )
    quantised = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and should_convert_module(name, skipped)
    )
    assert quantised == 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    parameters, trained = counts(with_lora(model, LoraArguments(use_peft=True)))
    found = quantised_footprint(
        parameters, trained, quantised, shape_of(config, 336), 2, recipe["use_bnb_nested_quant"]
    )
    said = re.search(
        r"([\d.]+) G parameters, ([\d.]+) G of them in 4 bits, ([\d.]+) M trained.*?two at a time: ([\d.]+) GiB",
        file.read_text(), re.DOTALL,
    )  # fmt: skip
    sizes = (round(parameters / 1e9, 2), round(quantised / 1e9, 2), round(trained / 1e6, 1))
    assert tuple(float(part) for part in said.groups()) == (*sizes, round(found.total / GIB, 1))
