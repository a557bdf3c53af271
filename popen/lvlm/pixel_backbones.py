"""Encoders beside the vision tower: what transformers' `AutoBackbone` knows, SAM's image encoder, `open_clip` towers.

Each has `channels` and gives `feature_maps`, shallow first, as transformers' backbones do.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, SamVisionConfig, SamVisionModel
from transformers.modeling_outputs import BackboneOutput


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
        ValueError: neither SAM, open_clip nor known to `AutoBackbone`.
    """
    if isinstance(config, OpenClipVisionConfig):
        return OpenClipBackbone(config)
    if isinstance(config, SamVisionConfig):
        return SamBackbone(config)
    return AutoBackbone.from_config(config)


AutoConfig.register(OpenClipVisionConfig.model_type, OpenClipVisionConfig)
