"""popen-smol: SmolLM2-135M-Instruct that sees through SAM's TinyViT; and a cut of it for two CPU cores."""

import copy

import torch
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from popen.data.safe_io import DataError
from popen.lvlm.composing import compose
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.pixel_backbones import PixelWeights
from popen.lvlm.processing_popen import PopenProcessor
from popen.lvlm.tiny_vit import TinyVitBackbone, TinyVitConfig

PATCH = 16  # pixels of a picture token along a side
CHAT_TEMPLATE = (  # ChatML, as SmolLM2 was tuned on, with the picture in front of the user's words
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_smol(
    language: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    tiny_vit: TinyVitBackbone,
    image_size: int = 256,
    max_length: int = 512,
    layers: int | None = None,
    seed: int = 0,
) -> tuple[PopenForReasoningSegmentation, PopenProcessor]:
    """The model and its processor; words and TinyViT are trained, the rest is fresh.

    The language model's picture tokens are those of a small fresh vision tower plus TinyViT's features, averaged over
    each token's area.

    Args:
        image_size: side of the canvas and what TinyViT sees, a multiple of 16.
        layers: keep so many of the language model's layers, all but one from the front and the last; None keeps all.
    Raises:
        DataError: more layers than there are, or fewer than two.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.image_token = "<image>"
    language = cut(language, layers) if layers is not None else language
    pictures = CLIPImageProcessor(
        do_resize=False, do_center_crop=False, size={"height": image_size, "width": image_size},
        crop_size={"height": image_size, "width": image_size},
    )  # fmt: skip
    processor = LlavaProcessor(
        pictures, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=192, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4, image_size=image_size,
        patch_size=PATCH,
    )  # fmt: skip
    words = copy.deepcopy(language.config)
    words.__dict__.pop("quantization_config", None)  # a mark that widened GGUF weights keep; Trainers refuse it
    config = LlavaConfig(
        vision_config=vision, text_config=words, vision_feature_layer=-1,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=(image_size // PATCH) ** 2,
        tie_word_embeddings=language.config.tie_word_embeddings,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = LlavaForConditionalGeneration(config)
    backbone.model.language_model.load_state_dict(language.model.state_dict())
    backbone.lm_head.load_state_dict(language.lm_head.state_dict())
    pixels = PixelWeights(tiny_vit, TinyVitConfig(out_stages=tiny_vit.out_stages), image_size, [0.0] * 3, [1.0] * 3)
    return compose(
        backbone, processor, image_size, max_length, seed, pixels, tokens_per_scale=2,
        pixel_fusion=True, name_weight=0.5, decoder_dim=128, decoder_depth=1, decoder_heads=4, decoder_mlp_dim=256,
        dice_weight=1.0,
    )  # fmt: skip


def cut(language: LlamaForCausalLM, layers: int) -> LlamaForCausalLM:
    """The same weights with fewer layers: the first ones, and the last, which alone has learnt to speak (ours)."""
    have = len(language.model.layers)
    if not 2 <= layers <= have:
        raise DataError(f"layers: {layers} of {have}; keep 2 to {have}")
    config = copy.deepcopy(language.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = [*config.layer_types[: layers - 1], config.layer_types[-1]]
    shorter = LlamaForCausalLM(config).to(language.dtype)
    kept = nn.ModuleList([*language.model.layers[: layers - 1], language.model.layers[-1]])
    shorter.model.embed_tokens.load_state_dict(language.model.embed_tokens.state_dict())
    shorter.model.norm.load_state_dict(language.model.norm.state_dict())
    for own, trained in zip(shorter.model.layers, kept, strict=True):
        own.load_state_dict(trained.state_dict())
    shorter.lm_head.load_state_dict(language.lm_head.state_dict())
    return shorter
