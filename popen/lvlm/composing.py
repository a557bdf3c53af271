"""Builds a popen model around a pretrained vision-language backbone: tokens added, mask parts fresh."""

import torch
from transformers import PreTrainedModel, ProcessorMixin

from popen.data.safe_io import DataError
from popen.lvlm.configuration_popen import PopenConfig
from popen.lvlm.families import family_of
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.pixel_backbones import PixelWeights
from popen.lvlm.processing_popen import PopenProcessor


def compose(
    backbone: PreTrainedModel,
    backbone_processor: ProcessorMixin,
    image_size: int,
    max_length: int,
    seed: int = 0,
    pixel_encoder: PixelWeights | None = None,
    tokens_per_scale: int = 3,
    **settings,
) -> tuple[PopenForReasoningSegmentation, PopenProcessor]:
    """A popen model that speaks as its backbone does and whose mask parts are yet to be trained.

    The backbone is changed in place: it gets `[SEG…]` tokens, whose embeddings start at the mean of the others'.

    Args:
        backbone: any `AutoModelForImageTextToText` of a family that popen knows, with its processor.
        image_size: side of the square canvas in pixels. max_length: longest sequence in tokens.
        seed: of the fresh weights.
        pixel_encoder: a trained encoder beside the tower (`popen.lvlm.pixel_backbones.trained_encoder`); without one
            the backbone's own tower gives the pixels.
        settings: further fields of `PopenConfig`.
    Raises:
        DataError: popen does not know the family, or the tower does not fit the image size.
    """
    config = backbone.config
    problem = family_of(config.model_type).misfit(config, image_size)
    if problem is not None:
        raise DataError(f"backbone {config.model_type!r}: {problem}")
    tokenizer = backbone_processor.tokenizer
    scales = settings.get("scales", 2)
    tokenizer.add_tokens([f"[SEG{i}]" for i in range(tokens_per_scale * scales)])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if backbone.get_input_embeddings().num_embeddings < len(tokenizer):  # some come with rows to spare
        backbone.resize_token_embeddings(len(tokenizer))
    processor = PopenProcessor(
        backbone_processor, image_size, tokens_per_scale * scales, max_length, family=config.model_type
    )
    if pixel_encoder is not None:
        settings |= {
            "pixel_config": pixel_encoder.config,
            "pixel_size": pixel_encoder.side,
            "pixel_affine": affine_between(backbone_processor.image_processor, pixel_encoder),
        }
    config = PopenConfig(
        backbone_config=config,
        image_size=image_size,
        seg_token_ids=list(processor.seg_token_ids),
        tokens_per_scale=tokens_per_scale,
        tie_word_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        **settings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PopenForReasoningSegmentation(config).to(backbone.dtype)
    model.backbone.load_state_dict(backbone.state_dict())
    if pixel_encoder is not None:
        model.pixel_encoder.backbone.load_state_dict(pixel_encoder.module.state_dict())
    return model, processor


def affine_between(first, second) -> list[list[float]]:
    """[scale, shift] per channel from one normalisation of pixels to another; each has `image_mean` and `image_std`.

    x₂ = ((x₁ · σ₁ + μ₁) − μ₂) / σ₂ = x₁ · σ₁/σ₂ + (μ₁ − μ₂)/σ₂
    """
    channels = list(zip(first.image_mean, first.image_std, second.image_mean, second.image_std, strict=True))
    return [[s1 / s2 for _, s1, _, s2 in channels], [(m1 - m2) / s2 for m1, _, m2, s2 in channels]]
