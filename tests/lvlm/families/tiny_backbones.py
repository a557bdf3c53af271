"""Random backbones of the real classes, ten to a hundred thousand parameters each, with processors made offline."""

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from popen.lvlm.tiny import tiny_tokenizer

WIDTHS = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CLIP = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def tokenizer(corpus: list[str], **named: str) -> PreTrainedTokenizerFast:
    """A tokenizer with a family's own tokens, each an attribute of it."""
    plain = tiny_tokenizer(corpus, 340, 0)
    return PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        clean_up_tokenization_spaces=False, extra_special_tokens=named,
    )  # fmt: skip


def template(picture: str) -> str:
    return (
        "{% for message in messages %}{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{picture}{{% else %}}USER: {{{{ part['text'] }}}}\n{{% endif %}}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
    )


def text(words: PreTrainedTokenizerFast, config=LlamaConfig, **extra):
    return config(
        vocab_size=len(words), max_position_embeddings=512, pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, initializer_range=0.1, **WIDTHS, **extra,
    )  # fmt: skip


def llava(corpus):
    words = tokenizer(corpus, image_token="<image>")
    pictures = CLIPImageProcessor(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}, do_resize=False, do_center_crop=False
    )
    processor = LlavaProcessor(
        pictures, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )  # fmt: skip
    return 32, processor, LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=32, patch_size=8, **CLIP), text_config=text(words),
        image_token_index=words.image_token_id, vision_feature_layer=-1, image_seq_length=16,
    )  # fmt: skip


def llava_next(corpus):
    """64 pixels in tiles of 32: 16 tokens for the whole, 8 lines of 8 and their ends for the tiles."""
    words = tokenizer(corpus, image_token="<image>")
    pictures = LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=[[32, 64], [64, 64]]
    )
    processor = LlavaNextProcessor(
        pictures, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )  # fmt: skip
    return 64, processor, LlavaNextConfig(
        vision_config=CLIPVisionConfig(image_size=32, patch_size=8, **CLIP), text_config=text(words),
        image_token_index=words.image_token_id, vision_feature_layer=-1, image_grid_pinpoints=[[32, 64], [64, 64]],
    )  # fmt: skip


def qwen_words(corpus):
    return tokenizer(
        corpus, image_token="<|image_pad|>", video_token="<|video_pad|>", vision_start="<|vision_start|>",
        vision_end="<|vision_end|>",
    )  # fmt: skip


def qwen_ids(words):
    ids = words.convert_tokens_to_ids
    return {
        "image_token_id": ids("<|image_pad|>"), "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"), "vision_end_token_id": ids("<|vision_end|>"),
    }  # fmt: skip


def qwen2_5_vl(corpus):
    """80 pixels: 10 × 10 patches, 5 × 5 picture tokens, windows of 2 × 2 tokens that do not divide them."""
    words = qwen_words(corpus)
    pictures = Qwen2VLImageProcessor(patch_size=8, merge_size=2)
    processor = Qwen2_5_VLProcessor(
        pictures, words, Qwen2VLVideoProcessor(patch_size=8),
        chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32, "patch_size": 8,
        "window_size": 32, "fullatt_block_indexes": [1],
    }  # fmt: skip
    own = text(words, Qwen2Config).to_dict() | {
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    }
    own.pop("model_type")
    return 80, processor, Qwen2_5_VLConfig(vision_config=vision, text_config=own, **qwen_ids(words))


def qwen3_vl(corpus):
    """64 pixels: 8 × 8 patches, 4 × 4 picture tokens; the first layer gets the tower's first block too."""
    words = qwen_words(corpus)
    pictures = Qwen2VLImageProcessor(patch_size=8, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = Qwen3VLProcessor(
        pictures, words, Qwen3VLVideoProcessor(patch_size=8),
        chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32, "patch_size": 8,
        "deepstack_visual_indexes": [0], "num_position_embeddings": 64,
    }  # fmt: skip
    own = text(words, Qwen2Config, head_dim=8).to_dict() | {
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    }
    own.pop("model_type")
    return 64, processor, Qwen3VLConfig(vision_config=vision, text_config=own, **qwen_ids(words))


def smolvlm(corpus):
    """32 pixels: 4 × 4 patches, 2 × 2 picture tokens."""
    words = tokenizer(
        corpus, image_token="<image>", fake_image_token="<fake_token_around_image>", global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>", video_token="<video>",
    )  # fmt: skip
    pictures = SmolVLMImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 32})
    processor = SmolVLMProcessor(
        pictures, words, SmolVLMVideoProcessor(), image_seq_len=4, chat_template=template("<image>")
    )
    vision = {**CLIP, "image_size": 32, "patch_size": 8}
    return 32, processor, SmolVLMConfig(
        vision_config=vision, text_config=text(words), image_token_id=words.image_token_id, scale_factor=2,
        pad_token_id=words.pad_token_id,
    )  # fmt: skip


def internvl(corpus):
    """32 pixels: 4 × 4 patches, 2 × 2 picture tokens."""
    words = tokenizer(
        corpus, start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )  # fmt: skip
    pictures = GotOcr2ImageProcessor(size={"height": 32, "width": 32})
    processor = InternVLProcessor(
        pictures, words, InternVLVideoProcessor(), image_seq_length=4, chat_template=template("<IMG_CONTEXT>")
    )
    vision = InternVLVisionConfig(**CLIP, image_size=[32, 32], patch_size=[8, 8])
    return 32, processor, InternVLConfig(
        vision_config=vision, text_config=text(words, Qwen2Config), image_token_id=words.context_image_token_id,
        image_seq_length=4,
    )  # fmt: skip


BACKBONES = {
    maker.__name__: maker for maker in (internvl, llava, llava_next, qwen2_5_vl, qwen3_vl, smolvlm)
}  # by the `model_type` of each


def tiny_backbone(name: str, corpus: list[str]):
    """The canvas side, a random backbone of the family, and its processor."""
    side, processor, config = BACKBONES[name](corpus)
    torch.manual_seed(0)
    return side, AutoModelForImageTextToText.from_config(config).eval(), processor
