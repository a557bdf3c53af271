"""Encoders beside the vision tower: what transformers' `AutoBackbone` knows, SAM, TinyViT, `open_clip` towers.

Each has `channels` and gives `feature_maps`, shallow first, as transformers' backbones do.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    PreTrainedConfig,
    SamConfig,
    SamVisionConfig,
    SamVisionModel,
)
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import cached_file

from popen.data.safe_io import DataError, read_json
from popen.lvlm.tiny_vit import TinyVitBackbone, TinyVitConfig


@strict
class OpenClipVisionConfig(PreTrainedConfig):
    """An `open_clip` vision transformer, read at several depths.

    Args:
        architecture: a name of `open_clip.list_models()`, such as ViT-B-16 or ViT-L-14-336.
        image_size: pixels along a side that it is built for, a multiple of its patch size; larger than the published
            one, the position embedding is stretched when weights are loaded.
        out_indices: blocks whose states are given, shallow first.
    """

    model_type = "open_clip_vision"

    architecture: str = "ViT-B-16"
    image_size: int = 448
    out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.out_indices = self.out_indices or [-6, -1]


class OpenClipBackbone(nn.Module):
    """Patch states of an `open_clip` vision transformer as maps; all have one resolution.

    Raises:
        ImportError: open_clip is not installed.
    """

    def __init__(self, config: OpenClipVisionConfig):
        super().__init__()
        try:
            import open_clip
        except ImportError as error:
            raise ImportError(
                "pixel_config asks for open_clip, which is missing: pip install popen-seg[clip]"
            ) from error
        whole = open_clip.create_model(config.architecture, force_image_size=config.image_size)
        self.visual, self.out_indices = whole.visual, list(config.out_indices)
        self.channels = [self.visual.conv1.out_channels] * len(self.out_indices)

    def forward(self, pictures: torch.Tensor) -> BackboneOutput:
        """Pictures (B, 3, S, S) to maps (B, C, h, w)."""
        found = self.visual.forward_intermediates(
            pictures, indices=self.out_indices, intermediates_only=True, output_fmt="NCHW"
        )
        return BackboneOutput(feature_maps=tuple(found["image_intermediates"]))


class SamBackbone(nn.Module):
    """SAM's image encoder: the states halfway and the output of its neck; both have one resolution."""

    def __init__(self, config: SamVisionConfig):
        super().__init__()
        self.sam = SamVisionModel(config)
        self.channels = [config.hidden_size, config.output_channels]

    def forward(self, pictures: torch.Tensor) -> BackboneOutput:
        """Pictures (B, 3, S, S) of SAM's own size to maps (B, C, h, w)."""
        seen = self.sam(pictures, output_hidden_states=True, return_dict=True)
        halfway = seen.hidden_states[len(seen.hidden_states) // 2].permute(0, 3, 1, 2)
        return BackboneOutput(feature_maps=(halfway, seen.last_hidden_state))


ONE_RESOLUTION = (OpenClipBackbone, SamBackbone)  # every level after the first is doubled by its neck


def pixel_backbone(config: PreTrainedConfig) -> nn.Module:
    """The untrained encoder of a `pixel_config`.

    Raises:
        ValueError: neither SAM, TinyViT, open_clip nor known to `AutoBackbone`.
    """
    if isinstance(config, OpenClipVisionConfig):
        return OpenClipBackbone(config)
    if isinstance(config, SamVisionConfig):
        return SamBackbone(config)
    if isinstance(config, TinyVitConfig):
        return TinyVitBackbone(config)
    return AutoBackbone.from_config(config)


@dataclass(frozen=True)
class PixelWeights:
    """A trained encoder: the module and its configuration, the side it takes, and what it was normalised with."""

    module: nn.Module
    config: PreTrainedConfig
    side: int | None
    image_mean: list[float]
    image_std: list[float]


def trained_encoder(name_or_path: str, architecture: str | None = None, image_size: int | None = None) -> PixelWeights:
    """A pretrained encoder from a folder or the Hub, safetensors only.

    Args:
        name_or_path: a SAM model, any model of `AutoBackbone`, or an `open_clip` one (`open_clip_model.safetensors`).
        architecture: `open_clip`'s name of the model, for one of these. image_size: pixels to build that for.
    Raises:
        DataError: an open_clip model without safetensors, or one of another activation than the architecture's.
    """
    if architecture is not None:
        return _trained_open_clip(name_or_path, architecture, image_size or OpenClipVisionConfig.image_size)
    processor = AutoImageProcessor.from_pretrained(name_or_path)
    mean, std = list(processor.image_mean), list(processor.image_std)
    config = AutoConfig.from_pretrained(name_or_path)
    if isinstance(config, SamConfig | SamVisionConfig):
        sam = SamVisionModel.from_pretrained(name_or_path, use_safetensors=True)
        module = SamBackbone(sam.config)
        module.sam.load_state_dict(sam.state_dict())
        return PixelWeights(module, sam.config, sam.config.image_size, mean, std)
    config = AutoConfig.from_pretrained(name_or_path, out_indices=(-2, -1))
    with torch.device("meta"):
        kind = type(AutoBackbone.from_config(config))  # whose own from_pretrained asks the Hub even of a folder
    encoder = kind.from_pretrained(name_or_path, config=config, use_safetensors=True)
    return PixelWeights(encoder, encoder.config, None, mean, std)


def _trained_open_clip(name_or_path: str, architecture: str, image_size: int) -> PixelWeights:
    name, folder = "open_clip_model.safetensors", Path(name_or_path)
    if folder.is_dir() and not (folder / name).is_file():
        raise DataError(f"{folder}: no {name} in it; popen reads safetensors only")
    file = folder / name if folder.is_dir() else hf_hub_download(name_or_path, name)
    open_clip, config = _open_clip(), OpenClipVisionConfig(architecture=architecture, image_size=image_size)
    _check_activation(open_clip, name_or_path, architecture)
    whole = open_clip.create_model(architecture, force_image_size=image_size)
    open_clip.load_checkpoint(whole, str(file))  # stretches the position embedding
    module = OpenClipBackbone(config)
    module.visual.load_state_dict(whole.visual.state_dict())
    normalised = open_clip.get_model_preprocess_cfg(whole)
    return PixelWeights(module, config, image_size, list(normalised["mean"]), list(normalised["std"]))


def _check_activation(open_clip, name_or_path: str, architecture: str) -> None:
    """Compares with the model's own configuration, where there is one: weights fit either activation, one is wrong."""
    file = cached_file(name_or_path, "open_clip_config.json", _raise_exceptions_for_missing_entries=False)
    known = open_clip.get_model_config(architecture)
    if file is None or known is None:
        return
    own = bool(read_json(file).get("model_cfg", {}).get("quick_gelu"))
    if own != bool(known.get("quick_gelu")):
        plain = architecture.removesuffix("-quickgelu")
        raise DataError(
            f"{name_or_path}: its activation is {'QuickGELU' if own else 'GELU'}, that of {architecture} is another; "
            f"give the architecture {plain}{'-quickgelu' if own else ''}"
        )


def _open_clip():
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(
            "this pixel encoder needs open_clip, which is missing: pip install popen-seg[clip]"
        ) from error
    return open_clip


AutoConfig.register(OpenClipVisionConfig.model_type, OpenClipVisionConfig)
AutoConfig.register(TinyVitConfig.model_type, TinyVitConfig)
