"""TinyViT as SAM's image encoder was distilled into it (MobileSAM, LiteMedSAM): four stages and SAM's neck."""

import re
from collections.abc import Mapping

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BackboneOutput


@strict
class TinyVitConfig(PreTrainedConfig):
    """TinyViT of 5 M parameters with a stem that keeps the resolution and a last stage that does too.

    Args:
        out_stages: which of the four stages are given as maps, shallow first; strides are 1, 2, 4, 4.
        image_size: pixels that the weights were trained on; others are fine, windows are padded.
    """

    model_type = "popen_tiny_vit"

    out_stages: list[int] | None = None
    image_size: int = 256

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.out_stages = self.out_stages or [1, 3]


class TinyVitBackbone(nn.Module):
    """timm's TinyViT with LiteMedSAM's stem of two 1 × 1 convolutions and its last merge at stride 1.

    The deepest map is the neck's output (256 channels), what SAM's mask decoder reads.

    Raises:
        ImportError: timm is not installed.
    """

    def __init__(self, config: TinyVitConfig):
        super().__init__()
        try:
            from timm.models.tiny_vit import ConvNorm, TinyVit
        except ImportError as error:
            raise ImportError(
                "pixel_config asks for TinyViT, which needs timm: pip install popen-seg[clip]"
            ) from error
        widths = (64, 128, 160, 320)
        trunk = TinyVit(
            num_classes=0, embed_dims=widths, depths=(2, 2, 6, 2), num_heads=(2, 4, 5, 10), window_sizes=(7, 7, 14, 7),
            drop_path_rate=0.0,
        )  # fmt: skip
        trunk.patch_embed.conv1 = ConvNorm(3, 32, 1, 1, 0)
        trunk.patch_embed.conv2 = ConvNorm(32, 64, 1, 1, 0)
        trunk.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.stem, self.stages = trunk.patch_embed, trunk.stages
        self.neck = nn.Sequential(
            nn.Conv2d(320, 256, 1, bias=False), _ChannelNorm(256),
            nn.Conv2d(256, 256, 3, padding=1, bias=False), _ChannelNorm(256),
        )  # fmt: skip
        self.out_stages = list(config.out_stages)
        self.channels = [256 if stage == 3 else widths[stage] for stage in self.out_stages]

    def train(self, mode: bool = True) -> "TinyVitBackbone":
        """Batch statistics stay those of the distillation: a step's few pictures would give others."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, pictures: torch.Tensor) -> BackboneOutput:
        """Pictures (B, 3, S, S) in 0..1 to maps (B, C, h, w)."""
        x, maps = self.stem(pictures), {}
        for index, stage in enumerate(self.stages):
            x = stage(x)
            maps[index] = x
        maps[3] = self.neck(x)
        return BackboneOutput(feature_maps=tuple(maps[stage] for stage in self.out_stages))


def window_offsets(resolution: tuple[int, int]) -> torch.Tensor:
    """Which attention bias two pixels of a window take, int64 (N, N) with N = H W: |Δrow| W + |Δcolumn|.

    timm computes this buffer when a network is built and saves it nowhere; transformers builds without memory and
    leaves such buffers undefined, so loading has to fill it again.
    """
    height, width = resolution
    row, column = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    return (row[:, None] - row).abs() * width + (column[:, None] - column).abs()


class _ChannelNorm(nn.Module):
    """SAM's LayerNorm over channels, under the names of its checkpoints."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return self.weight[:, None, None] * scaled + self.bias[:, None, None]


def from_lite_medsam(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The image encoder of a LiteMedSAM state dict under the names of `TinyVitBackbone`; the rest is left out.

    A stage's merge stands at its own beginning here and at the end of the stage before it there.
    """
    found = {}
    for name, tensor in weights.items():
        if not name.startswith("image_encoder.") or name.endswith("attention_bias_idxs"):
            continue
        name = name.removeprefix("image_encoder.")
        name = name.replace("patch_embed.seq.0.", "stem.conv1.").replace("patch_embed.seq.2.", "stem.conv2.")
        name = re.sub(r"^layers\.(\d)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.", name)
        name = re.sub(r"^layers\.", "stages.", name)
        found[re.sub(r"\.c\.", ".conv.", name)] = tensor
    return found
