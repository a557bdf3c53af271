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
from popen.training.memory import (
    GIB,
    MASTER_AND_MOMENTS,
    Shape,
    footprint,
    mining_bytes,
    mining_seconds,
    quantised_footprint,
    step_seconds,
)
from popen.training.quantisation import QuantisationArguments, bitsandbytes_config

RECIPES = Path(__file__).parent.parent.parent / "recipes"
PEAK = {"H100": 989e12, "A100": 312e12}  # bfloat16 operations per second, dense, by their data sheets
BANDWIDTH = {"H100": 3.35e12, "A100": 2.04e12}  # bytes per second, of 80 GB with NVLink


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


@pytest.fixture(scope="module")
def tuning(setting):
    """The setting's preference recipe and its header, whose model is the supervised recipe's."""
    file = RECIPES / f"preference_{setting[0]}_7b.yaml"
    recipe = yaml.safe_load(file.read_text())
    assert {recipe[key] for key in ("lora_r", "lora_alpha", "use_peft")} == {8, 16, True}
    return recipe, "\n".join(line for line in file.read_text().splitlines() if line.startswith("#"))


def test_memory_of_preferences(setting, tuning):
    """Each item of a micro-batch is two packed rows: a text pair, and a picture with its questions."""
    (name, _, _, _, model), (recipe, header) = setting, tuning
    parameters, trained = counts(model)
    said = re.search(r"([\d.]+) G parameters, ([\d.]+) M trained", header)
    assert [float(part) for part in said.groups()] == [round(parameters / 1e9, 2), round(trained / 1e6, 1)]
    said = re.search(
        r"one GPU ([\d.]+) GiB; eight with ZeRO-2 ([\d.]+) GiB; eight with ZeRO-3 .*? ([\d.]+) GiB", header
    )
    shape, rows = shape_of(model.config, SETTINGS[name][1]), 2 * recipe["per_device_train_batch_size"]
    for number, (devices, stage) in zip(said.groups(), ((1, 2), (8, 2), (8, 3)), strict=True):
        found = footprint(parameters, trained, shape, rows, devices, stage)
        assert float(number) == round(found.total / GIB, 1)
        assert found.optimizer == MASTER_AND_MOMENTS * trained // devices


def test_time_of_preferences(setting, tuning):
    recipe, header = tuning
    pairs, accumulated = recipe["per_device_train_batch_size"], recipe["gradient_accumulation_steps"]
    said = re.search(
        r"of (\d+) pairs and (\d+) pictures .*?H100 ([\d.]+) s, A100 ([\d.]+) s; ([\d,]+) steps "
        r"in ([\d.]+) and ([\d.]+) hours",
        header,
    )  # fmt: skip
    assert int(said[1]) == int(said[2]) == pairs * accumulated
    assert int(said[5].replace(",", "")) == recipe["max_steps"]
    for seconds, hours, card in ((said[3], said[6], "H100"), (said[4], said[7], "A100")):
        found = step_seconds(SETTINGS[setting[0]][3], 1024, 2 * pairs, accumulated, PEAK[card], 0.4)
        assert float(seconds) == round(found, 1)
        assert float(hours) == round(found * recipe["max_steps"] / 3600, 1)


def test_memory_and_time_of_mining(setting):
    """Read to answer and for the reference's numbers, and of the first pictures once more for candidate masks."""
    name, _, _, _, model = setting
    file = RECIPES / f"mine_{name}_7b.yaml"
    recipe, header = yaml.safe_load(file.read_text()), file.read_text()
    text = model.config.get_text_config()
    width = text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    parameters, shape = counts(model)[0], shape_of(model.config, SETTINGS[name][1])
    said = re.search(r"(\d+) questions of 1,024 tokens at a time: ([\d.]+) GiB", header)
    assert int(said[1]) == recipe["batch_size"]
    assert float(said[2]) == round(mining_bytes(parameters, shape, width, recipe["batch_size"]) / GIB, 1)
    said = re.search(
        r"([\d,]+) pictures with four .*? to (\d+) tokens.*?H100 at most ([\d.]+) hours.*?A100 ([\d.]+);",
        header, re.DOTALL,
    )  # fmt: skip
    assert (int(said[1].replace(",", "")), int(said[2])) == (recipe["max_rows"], recipe["max_new_tokens"])
    reads = 2 + recipe["seg_pictures"] / recipe["max_rows"]
    for hours, card in ((said[3], "H100"), (said[4], "A100")):
        found = mining_seconds(
            SETTINGS[name][3], 1024, recipe["max_new_tokens"], 4 * recipe["max_rows"], recipe["batch_size"], reads,
            PEAK[card], BANDWIDTH[card], 0.4,
        )  # fmt: skip
        assert float(hours) == round(found / 3600, 1)


def test_both_steps_read_the_same_rows():
    """Mining and tuning name the same data sets at the same rates, and ReasonSeg's 239 pictures are not repeated."""
    for name in SETTINGS:
        mining, tuning = (
            yaml.safe_load((RECIPES / f"{step}_{name}_7b.yaml").read_text()) for step in ("mine", "preference")
        )
        assert all(mining[key] == tuning[key] for key in ("dataset", "rates", "split"))
        assert mining["max_rows"] * mining["rates"][-1] / sum(mining["rates"]) + len(mining["rates"]) <= 239


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
