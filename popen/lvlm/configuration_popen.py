"""Configuration of the popen model family."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


@strict
class PopenConfig(PreTrainedConfig):
    """Composes a vision-language backbone, a pixel encoder, a codebook and a mask decoder.

    Args:
        backbone_config: any configuration that `AutoModelForImageTextToText` knows.
        pixel_config: an encoder beside the vision tower for the mask decoder's features: a configuration
            `AutoBackbone` knows, SAM's `SamVisionConfig`, or `OpenClipVisionConfig`; None reads the backbone's own
            vision tower at `pixel_layers` (PixelLM's way, no extra model).
        pixel_size: side in pixels that this encoder takes; None for the canvas as it is.
        pixel_affine: [scale, shift] per channel from the backbone's normalised pixels to the encoder's; None for none.
        pixel_layers: hidden-state indices of the vision tower, deep first; its length is the number of scales.
        pixel_fusion: adds the pixel encoder's features to the picture tokens that the language model reads; for models
            that learn to see from nothing, where the mask losses shape those features long before words can.
        image_size: side of the square canvas in pixels; pictures are scaled to fit and padded right and below.
        seg_token_ids: ids of `[SEG0]`..., scale by scale: the first `tokens_per_scale` belong to the coarse scale.
        tokens_per_scale: N of the codebook, >= 1.
        scales: L of the codebook, mask-decoder levels from coarse to fine, >= 1.
        decoder_dim, decoder_depth, decoder_heads, decoder_mlp_dim: the two-way transformer of each level.
        ce_weight, bce_weight, dice_weight, quality_weight: weights of the supervised loss (PixelLM: 1.0, 2.0, 0.5;
            the quality head is ours).
        name_weight: weight of the naming loss: picture tokens under a target's mask must say its phrase through the
            language model's own output embedding (region-text alignment; ours). It teaches a model that learns from
            nothing to see before it has to speak. 0 leaves it out.
        look_weight: weight of the looking loss: one attention head of the last layer must be on a target while its
            phrase is said (supervised attention; ours). It teaches a model that learns from nothing where to look.
            0 leaves it out.
        refinement_alpha: BCE weight of pixels claimed by two targets of one answer, >= 1 (reconstruction).
        mask_threshold, ensemble_threshold: logit above which a pixel belongs to the mask of a single pass and of the
            ensemble; both calibrated on held-out pictures.
        ensemble_noise, ensemble_sharpness: spread of the hypotheses in units of embedding_std, and λ of the
            attention, which is calibrated with the threshold.
        ensemble_views: shifted views of the picture that the ensemble looks at beside the picture itself, >= 0; each
            runs the vision side again, and the language model for the answers it is unsure of.
        answer_margin: nats by which another answer must score better than the model's own for the ensemble to give it,
            >= 0; scores are those of `popen.preference.answers`. Calibrated on held-out pictures, None gives none.
        embedding_std: per-scale spread of segmentation embeddings over training data; scales embedding noise.
        pixellm_compat: composes the modules of the released PixelLM around a LLaVA backbone, so that its checkpoints
            mean what they meant (docs/pixellm.md); `popen convert-pixellm` sets it with all that belongs to it.
    """

    model_type = "popen"
    auto_map = {}  # noqa: RUF012 (TRL and AutoTokenizer read it from every configuration)
    sub_configs_defaults = {  # noqa: RUF012 (the base class declares it a ClassVar)
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="llava"),
        "pixel_config": SubConfigSpec(config_class=AutoConfig, model_type="convnext", optional=True),
    }

    backbone_config: dict | PreTrainedConfig | None = None
    pixel_config: dict | PreTrainedConfig | None = None
    pixel_layers: list[int] | None = None
    pixel_size: int | None = None
    pixel_affine: list[list[float]] | None = None
    pixel_fusion: bool = False
    image_size: int = 336
    seg_token_ids: list[int] | None = None
    tokens_per_scale: int = 3
    scales: int = 2
    decoder_dim: int = 256
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    ce_weight: float = 1.0
    bce_weight: float = 2.0
    dice_weight: float = 0.5
    quality_weight: float = 0.1
    name_weight: float = 0.0
    look_weight: float = 0.0
    refinement_alpha: float = 2.0
    mask_threshold: float = 0.0
    embedding_std: list[float] | None = None
    ensemble_views: int = 0
    answer_margin: float | None = None
    ensemble_noise: float = 0.5
    ensemble_sharpness: float = 1.0
    ensemble_threshold: float = 0.0
    pixellm_compat: bool = False
    is_composition: Literal[True] = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.tokens_per_scale < 1 or self.scales < 1:
            raise ValueError(
                f"tokens_per_scale={self.tokens_per_scale} and scales={self.scales}: each must be at least 1"
            )
        if self.seg_token_ids is None:
            self.seg_token_ids = []
        expected = self.tokens_per_scale * self.scales
        if self.seg_token_ids and len(self.seg_token_ids) != expected:
            raise ValueError(
                f"seg_token_ids holds {len(self.seg_token_ids)} ids; tokens_per_scale x scales asks for {expected}"
            )
        if self.pixellm_compat and (self.backbone_config.model_type != "llava" or self.pixel_config is not None):
            raise ValueError("pixellm_compat: PixelLM is LLaVA and reads its tower's maps; drop pixel_config")
        if self.pixel_config is None and self.pixel_layers is None:
            vision = self.backbone_config.vision_config
            depth = getattr(vision, "num_hidden_layers", None) or vision.depth  # Qwen's name for it
            self.pixel_layers = [-2, -(1 + depth // 2)][: self.scales]

    @property
    def family(self) -> str:
        """The name of the backbone's family in `popen.lvlm.families`."""
        return "pixellm" if self.pixellm_compat else self.backbone_config.model_type

    def get_text_config(self, *args, **kwargs):
        """The language model's configuration; generation, PEFT and TRL read sizes from it."""
        return self.backbone_config.get_text_config(*args, **kwargs)
