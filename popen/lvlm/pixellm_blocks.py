"""PixelLM's projectors, neck, prompt encoder and mask decoder as released (their maths, not their training).

Facts about the release: docs/pixellm.md. What the released forward never reads (point and mask prompts, the IoU head,
the hypernetworks of three of the four mask tokens) has no module here.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import SamMaskDecoderConfig, SamVisionConfig
from transformers.models.sam.modeling_sam import SamFeedForward, SamPositionalEmbedding, SamTwoWayTransformer

from popen.lvlm.configuration_popen import PopenConfig
from popen.lvlm.pixel_encoder import LayerNorm2d

MASK_TOKENS = 4  # SAM's four; all of them are read by the transformer, the first one draws the mask
SAM_EPS, TORCH_EPS = 1e-6, 1e-5  # of SAM's channel norms, and of its transformers' norms


class PixelLMProjector(nn.Sequential):
    """Linear(C, 2H) · GELU · Linear(2H, H) over the last axis; there is one for words and one for pixels."""

    def __init__(self, channels: int, hidden_size: int):
        super().__init__(nn.Linear(channels, 2 * hidden_size), nn.GELU(), nn.Linear(2 * hidden_size, hidden_size))


class PixelLMEncoder(nn.Module):
    """The tower's maps at two depths, each through one projector and one neck of their own; both keep their size."""

    def __init__(self, config: PopenConfig):
        super().__init__()
        channels, hidden = config.backbone_config.vision_config.hidden_size, config.get_text_config().hidden_size
        dim = config.decoder_dim
        self.backbone, self.layers = None, tuple(config.pixel_layers)
        self.project = PixelLMProjector(channels, hidden)
        self.neck = nn.Sequential(
            nn.Conv2d(hidden, dim, 1, bias=False),
            LayerNorm2d(dim, eps=SAM_EPS),
            nn.Conv2d(dim, dim, 3, padding=1, bias=False),
            LayerNorm2d(dim, eps=SAM_EPS),
        )

    def forward(self, pictures: torch.Tensor | None, tower_maps: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The tower's maps (B, C, h, w), deep first, to as many maps (B, D, h, w); `pictures` are not looked at."""
        return tuple(self.neck(self.project(m.movedim(1, -1)).movedim(-1, 1)) for m in tower_maps)


class PixelLMPromptEncoder(nn.Module):
    """SAM's prompt encoder for an embedding instead of points: the embedding is the one sparse prompt."""

    def __init__(self, dim: int):
        super().__init__()
        self.positions = _positions(dim)
        self.no_mask = nn.Embedding(1, dim)

    def forward(self, embedding_TD: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (T, D) to sparse prompts (T, 1, D) and the dense prompt "no mask" (T, D, height, width)."""
        dense = self.no_mask.weight[:, :, None, None].expand(len(embedding_TD), -1, height, width)
        return embedding_TD[:, None], dense


class PixelLMMaskDecoder(nn.Module):
    """SAM's mask decoder, coarse to fine: one two-way transformer per level, all else shared between two levels.

    Level 1 reads the same-sized map doubled, f ← (σ(m₀) + 1) · up₂(f), and m = Σ_l w_l · up(m_l). The weights are
    parameters here and start at the released constants 1/2; upscaling is one 2× step, where SAM has two.
    """

    def __init__(self, dim: int, depth: int, heads: int, mlp_dim: int, scales: int):
        super().__init__()
        if scales != 2:
            raise ValueError(f"scales={scales}: PixelLM's mask decoder has two levels; set scales to 2")
        settings = SamMaskDecoderConfig(
            hidden_size=dim, num_hidden_layers=depth, num_attention_heads=heads, mlp_dim=mlp_dim,
            layer_norm_eps=TORCH_EPS, attn_implementation="eager",
        )  # fmt: skip
        self.prompts = PixelLMPromptEncoder(dim)
        self.transformers = nn.ModuleList(SamTwoWayTransformer(settings) for _ in range(scales))
        self.iou_token, self.mask_tokens = nn.Embedding(1, dim), nn.Embedding(MASK_TOKENS, dim)
        self.level_embed = nn.Embedding(scales, dim)
        self.widen = _doubled(dim, dim)
        self.wide_positions = _positions(dim)
        self.upscale = _doubled(dim, dim // 8)
        self.hypernetwork = SamFeedForward(dim, dim, dim // 8, 3)
        self.scale_weights = nn.Parameter(torch.full((scales,), 1.0 / scales))

    def forward(
        self, features: tuple[torch.Tensor, ...], picture_T: torch.Tensor, embeddings_TLD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask logits (T, 4h, 4w), and confidence (T,) in 0..1: the mean probability over a mask's own pixels.

        PixelLM means that at the picture's size; here it is at the decoder's.

        Args:
            features: two maps (B, D, h, w), deep first. picture_T: index into B of each target's picture.
            embeddings_TLD: segmentation embeddings.
        Raises:
            ValueError: the levels of maps and embeddings are not two, or the maps differ in shape.
        """
        if embeddings_TLD.ndim != 3 or not embeddings_TLD.shape[1] == len(self.transformers) == len(features):
            raise ValueError(
                f"embeddings {tuple(embeddings_TLD.shape)} and {len(features)} feature maps; the decoder has 2 levels"
            )
        if features[0].shape != features[1].shape:
            raise ValueError(f"maps {tuple(features[0].shape)} and {tuple(features[1].shape)}; PixelLM's are alike")
        coarse = self.decode(0, features[0][picture_T], embeddings_TLD[:, 0])
        fine = self.decode(1, features[1][picture_T], embeddings_TLD[:, 1], coarse)
        scaled = F.interpolate(coarse[:, None].float(), fine.shape[-2:], mode="bilinear")[:, 0].to(fine.dtype)
        logits = self.scale_weights[0] * scaled + self.scale_weights[1] * fine
        return logits, mean_probability(logits)

    def decode(
        self, level: int, maps_TDHW: torch.Tensor, embedding_TD: torch.Tensor, previous: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One level: maps (T, D, h, w) to logits twice as large, or four times where `previous` (T, 2h, 2w) steers."""
        sparse, dense = self.prompts(embedding_TD, *maps_TDHW.shape[-2:])
        positions = self.prompts.positions
        if previous is not None:
            maps_TDHW = self.widen(maps_TDHW) * (previous[:, None].sigmoid() + 1)
            # "no mask" is one vector everywhere, so that to interpolate it is to repeat it
            dense, positions = dense[:, :, :1, :1], self.wide_positions
        image = maps_TDHW + dense
        height, width = image.shape[-2:]
        outputs = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([outputs.expand(len(sparse), -1, -1), sparse], 1) + self.level_embed.weight[level]
        code = positions(pixel_centres(height, width, image.device)).movedim(-1, 0).to(image.dtype)
        tokens, pixels = self.transformers[level](
            point_embeddings=tokens[:, None],
            image_embeddings=image,
            image_positional_embeddings=code.expand_as(image),
            attention_similarity=None,
        )
        image = pixels[:, 0].transpose(1, 2).unflatten(2, (height, width))
        weights = self.hypernetwork(tokens[:, 0, 1])  # the first mask token; token 0 is SAM's for the IoU
        return torch.einsum("tc,tchw->thw", weights, self.upscale(image))


def mean_probability(logits_THW: torch.Tensor) -> torch.Tensor:
    """Mean of σ over a mask's own pixels (logits > 0), (T,) in 0..1; 0 for an empty mask (PixelLM's score)."""
    logits, inside = logits_THW.float().flatten(1), (logits_THW > 0).flatten(1)
    return (logits.sigmoid() * inside).sum(1) / (inside.sum(1) + 1e-6)


def pixel_centres(height: int, width: int, device=None) -> torch.Tensor:
    """(height, width, 2) of x and y in 0..1, as SAM numbers them."""
    ys = (torch.arange(height, device=device) + 0.5) / height
    xs = (torch.arange(width, device=device) + 0.5) / width
    return torch.stack([xs.expand(height, -1), ys[:, None].expand(-1, width)], -1)


def _positions(dim: int) -> SamPositionalEmbedding:
    """SAM's random Fourier features; as released they are drawn once and never trained, hence a buffer."""
    module = SamPositionalEmbedding(SamVisionConfig(num_pos_feats=dim // 2, scale=1.0))
    drawn = module.positional_embedding.data
    del module.positional_embedding
    module.register_buffer("positional_embedding", drawn)
    return module


def _doubled(dim: int, narrow: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(dim, narrow, 2, 2), LayerNorm2d(narrow, eps=SAM_EPS), nn.GELU())
