"""Builds a popen model around a pretrained vision-language backbone: tokens added, mask parts fresh."""

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from popen.data.safe_io import DataError, read_json
from popen.lvlm.configuration_popen import PopenConfig
from popen.lvlm.families import RELEASED_PIXELLM, family_of
from popen.lvlm.loading import find_file
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.pickled_weights import pickled_weights, way_out
from popen.lvlm.pixel_backbones import PixelWeights
from popen.lvlm.processing_popen import PopenProcessor


def load_backbone(name_or_path: str, dtype: torch.dtype) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A pretrained vision-language model and its processor, from a folder or the Hub; weights from safetensors only.

    Raises:
        DataError: it is missing, of a family that popen does not know, a released PixelLM, or its weights are pickled.
    """
    file = find_file(name_or_path, "config.json", {})
    config = {} if file is None else read_json(file)
    if not isinstance(config, dict) or "model_type" not in config:
        raise DataError(f"{name_or_path}: no config.json with a model_type; give a model that save_pretrained wrote")
    if config.get("architectures") == [RELEASED_PIXELLM]:
        raise DataError(
            f"{name_or_path}: a released PixelLM, not a backbone; convert it: "
            f"popen convert-pixellm {name_or_path} NEW_FOLDER"
        )
    family_of(str(config["model_type"]))
    folder = Path(name_or_path)
    if folder.is_dir() and not list(folder.glob("*.safetensors")) and (pickled := pickled_weights(folder)):
        raise DataError(f"{folder}: {pickled[0].name} is pickled, and pickles are never loaded; {way_out(folder)}")
    try:
        model = AutoModelForImageTextToText.from_pretrained(name_or_path, dtype=dtype, use_safetensors=True)
        return model, AutoProcessor.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{name_or_path}: cannot be loaded ({reason}); if its weights are pickled (.bin, .pt), fetch it into a "
            f"folder and {way_out('FOLDER')}"
        ) from error


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
