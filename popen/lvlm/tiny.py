"""popen-tiny: the smallest real member of the family, built untrained for laptops and tests."""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    ConvNextConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from popen.lvlm.configuration_popen import PopenConfig
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.processing_popen import PopenProcessor

CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}USER: {{ part['text'] }}\n{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


# The libraries' initial σ of 0.02 is made for widths of 1,000 and more. Here it left the picture's signal so faint
# beside a constant offset that 1,000 steps did not teach the model to look (same loss with the pictures exchanged).
NARROW_STD = 0.06


def tiny_tokenizer(corpus: Iterable[str], vocab_size: int, codebook_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on `corpus`; any text can be written with it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>", "<image>", *(f"[SEG{i}]" for i in range(codebook_size))]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=special[3:],
        clean_up_tokenization_spaces=False,
    )


def tiny_processor(
    corpus: Iterable[str], image_size: int = 96, patch_size: int = 12, vocab_size: int = 640, codebook_size: int = 4
) -> PopenProcessor:
    """The processor of popen-tiny: 96-pixel canvas, 8×8 picture tokens, 4 `[SEG…]` tokens per target."""
    tokenizer = tiny_tokenizer(corpus, vocab_size, codebook_size)
    image_processor = CLIPImageProcessor(
        do_resize=False, do_center_crop=False, size={"height": image_size, "width": image_size},
        crop_size={"height": image_size, "width": image_size},
    )  # fmt: skip
    backbone = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return PopenProcessor(backbone, image_size, codebook_size, max_length=256)


def tiny_config(processor: PopenProcessor, patch_size: int = 12, width: int = 128, layers: int = 4) -> PopenConfig:
    """3.5 M parameters at the default width and depth; smaller ones serve the tests."""
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=width * 5 // 6 // 4 * 4,
        intermediate_size=width * 5 // 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=processor.image_size,
        patch_size=patch_size,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 5 // 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=processor.max_length,
        initializer_range=NARROW_STD,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    pixel = ConvNextConfig(
        patch_size=4,
        num_stages=2,
        hidden_sizes=[width // 4, width // 2],
        depths=[2, 2],
        out_features=["stage1", "stage2"],
        drop_path_rate=0.0,
        layer_scale_init_value=0.0,
        initializer_range=2 * NARROW_STD,
    )
    backbone = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=len(processor.prefix_ids),
        tie_word_embeddings=True,
    )
    return PopenConfig(
        backbone_config=backbone,
        pixel_config=pixel,
        image_size=processor.image_size,
        seg_token_ids=list(processor.seg_token_ids),
        tokens_per_scale=2,
        scales=2,
        decoder_dim=width * 3 // 64 * 8,  # 48 at the default width
        decoder_depth=1,
        decoder_heads=4,
        decoder_mlp_dim=width * 3 // 4,
        dice_weight=1.0,
        pixel_fusion=True,
        name_weight=0.5,
        look_weight=1.0,
        tie_word_embeddings=True,
    )


def build_tiny(corpus: Iterable[str], seed: int, **sizes) -> tuple[PopenForReasoningSegmentation, PopenProcessor]:
    """An untrained popen-tiny and its processor; the same seed and corpus give the same weights."""
    processor = tiny_processor(corpus)
    torch.manual_seed(seed)
    model = PopenForReasoningSegmentation(tiny_config(processor, **sizes))
    backbone = model.backbone.model
    with torch.no_grad():
        backbone.vision_tower.embeddings.position_embedding.weight.normal_(0, 0.3)
        for layer in (backbone.multi_modal_projector.linear_1, backbone.multi_modal_projector.linear_2):
            layer.weight.normal_(0, 1.5 / layer.in_features**0.5)
    return model, processor
