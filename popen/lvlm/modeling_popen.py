"""PopenForReasoningSegmentation: a vision-language backbone that answers in words and in masks."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import ModelOutput

from popen.lvlm.codebook import Codebook
from popen.lvlm.configuration_popen import PopenConfig
from popen.lvlm.mask_decoder import MaskDecoder
from popen.lvlm.pixel_encoder import PixelEncoder, PixelFusion
from popen.lvlm.preference_head import PreferenceHead
from popen.objectives.masks import bce_loss, dice_loss, iou_regression_loss, refined_bce_loss, refinement_weights
from popen.objectives.scores import per_token_logps


@dataclass(frozen=True)
class EncodedPictures:
    """Pictures seen once: what the language model reads and what the mask decoder reads (coarse map first)."""

    language: list[torch.Tensor]
    features: tuple[torch.Tensor, ...]


@dataclass
class PopenOutput(ModelOutput):
    """One forward pass.

    N completion tokens, T targets; the losses are means over them (0 where there are none).

    Args:
        loss: weighted sum of the parts below, where labels and masks were given.
        logits: (N, V) for completion tokens only. logps: (N,) log-probability of each label.
        embeddings: (T, L, D) segmentation embeddings. mask_logits: (T, h, w). predicted_iou: (T,) in 0..1.
        features: the pixel encoder's maps, coarse first.
    """

    loss: torch.Tensor | None = None
    ce_loss: torch.Tensor | None = None
    bce_loss: torch.Tensor | None = None
    dice_loss: torch.Tensor | None = None
    quality_loss: torch.Tensor | None = None
    look_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    logps: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None
    mask_logits: torch.Tensor | None = None
    predicted_iou: torch.Tensor | None = None
    features: tuple[torch.Tensor, ...] | None = None


class PopenForReasoningSegmentation(PreTrainedModel):
    """Backbone + codebook + pixel encoder + mask decoder + preference head (PixelLM's layout, POPEN's ensemble)."""

    config_class = PopenConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = None

    def __init__(self, config: PopenConfig):
        super().__init__(config)
        self.backbone = AutoModelForImageTextToText.from_config(config.backbone_config)
        hidden_size = config.get_text_config().hidden_size
        self.codebook = Codebook(hidden_size, config.decoder_dim, config.scales, config.tokens_per_scale)
        self.pixel_encoder = PixelEncoder(config)
        self.pixel_fusion = (
            PixelFusion(config.decoder_dim, config.scales, hidden_size) if config.pixel_fusion else None
        )
        self.look_head = nn.Linear(hidden_size, config.scales * config.decoder_dim) if config.look_weight else None
        self.mask_decoder = MaskDecoder(
            config.decoder_dim, config.decoder_depth, config.decoder_heads, config.decoder_mlp_dim, config.scales
        )
        self.preference_head = PreferenceHead(config.decoder_dim, config.scales)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """New modules start as torch makes them: the backbone's σ of 0.02 starves a narrow decoder of signal."""
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def save_pretrained(self, save_directory, save_original_format: bool = False, **kwargs) -> None:
        """As transformers does, but under the modules' own names: a Trainer resumes from these without renaming."""
        super().save_pretrained(save_directory, save_original_format=save_original_format, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.backbone.get_output_embeddings()

    def encode_pictures(self, pixel_values: torch.Tensor) -> EncodedPictures:
        """Runs the vision tower and the pixel encoder once on pictures (B, 3, S, S)."""
        tower = self.backbone.model.get_image_features(pixel_values, output_hidden_states=True, return_dict=True)
        features = self.pixel_encoder(pixel_values, tower.hidden_states)
        language = list(tower.pooler_output)
        if self.pixel_fusion is not None:
            language = self.pixel_fusion(language, features)
        return EncodedPictures(language, features)

    def decode_masks(
        self, features: tuple[torch.Tensor, ...], picture_T: torch.Tensor, embeddings_TLD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask logits (T, h, w) and predicted IoU (T,); `picture_T` says which picture each target is in."""
        return self.mask_decoder(features, picture_T, embeddings_TLD)

    def read(self, input_ids, position_ids, attention_mask, pictures: EncodedPictures) -> torch.Tensor:
        """Hidden states (B, S, H) of packed rows; the mask is (B, 1, S, S) bool."""
        if self.config._attn_implementation == "eager":  # it adds the mask to the logits, where True would be 1
            blocked = torch.finfo(self.dtype).min
            attention_mask = torch.zeros_like(attention_mask, dtype=self.dtype).masked_fill(~attention_mask, blocked)
        return self.backbone.model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            mm_encoder_outputs={"image": ModelOutput(pooler_output=pictures.language)},
            use_cache=False,
        ).last_hidden_state

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values: torch.Tensor,
        token_row: torch.Tensor,
        token_predictor: torch.Tensor,
        token_labels: torch.Tensor,
        target_row: torch.Tensor,
        target_predictor: torch.Tensor,
        target_group: torch.Tensor | None = None,
        target_masks: torch.Tensor | None = None,
        look_row: torch.Tensor | None = None,
        look_predictor: torch.Tensor | None = None,
        look_masks: torch.Tensor | None = None,
        valid: torch.Tensor | None = None,
        token_count: float | None = None,
        target_count: float | None = None,
        look_count: float | None = None,
    ) -> PopenOutput:
        """Text and mask losses in one pass over packed rows (see `shared_prefix`).

        Args:
            input_ids, position_ids: (B, S). attention_mask: (B, 1, S, S) bool. pixel_values: (B, 3, side, side).
            token_row, token_predictor, token_labels: (N,) for completion tokens: the row, the column whose state
                predicts it, and the token.
            target_row: (T,). target_predictor: (T, L·N) columns whose states predict the target's `[SEG…]` tokens.
            target_group: (T,) which answer a target belongs to, for target refinement.
            target_masks: (T, side, side) in 0..1. look_row, look_predictor: (Q,) where each answer begins, and
            look_masks: (Q, side, side) all its targets in one, for the look-first loss.
            valid: (B, side, side) bool, canvas pixels that count.
            token_count, target_count, look_count: what to divide by; this batch's own by default, under DDP the
                mean over ranks.
        """
        pictures = self.encode_pictures(pixel_values)
        hidden = self.read(input_ids, position_ids, attention_mask, pictures)
        logits = self.get_output_embeddings()(hidden[token_row, token_predictor])
        logps = per_token_logps(logits, token_labels)
        embeddings = self.codebook(hidden[target_row[:, None], target_predictor])
        mask_logits, predicted_iou = self.decode_masks(pictures.features, target_row, embeddings)
        output = PopenOutput(
            logits=logits,
            logps=logps,
            embeddings=embeddings,
            mask_logits=mask_logits,
            predicted_iou=predicted_iou,
            features=pictures.features,
        )
        output.ce_loss = -logps.sum() / (token_count or max(len(logps), 1))
        output.loss = self.config.ce_weight * output.ce_loss
        if target_masks is not None:
            self._mask_losses(output, target_masks, valid[target_row], target_group, target_count)
        if self.look_head is not None and look_masks is not None:
            embeddings = self.look_head(hidden[look_row, look_predictor]).unflatten(1, (self.config.scales, -1))
            logits, _ = self.decode_masks(pictures.features, look_row, embeddings)
            output.look_loss = self._look_loss(logits, look_masks, valid[look_row], look_count)
            output.loss = output.loss + self.config.look_weight * output.look_loss
        return output

    def _mask_losses(self, output: PopenOutput, masks, valid, group, count) -> None:
        """Adds PixelLM's mask losses, with target refinement at work, and the quality head's."""
        config = self.config
        count = count or max(len(masks), 1)
        logits = F.interpolate(output.mask_logits[:, None].float(), masks.shape[-2:], mode="bilinear")[:, 0]
        if group is None or config.refinement_alpha == 1:
            bce = bce_loss(logits, masks, valid)
        else:
            weights = refinement_weights(logits, group, config.refinement_alpha)
            bce = refined_bce_loss(logits, masks, valid, weights)
        output.bce_loss = bce.sum() / count
        output.dice_loss = dice_loss(logits, masks, valid).sum() / count
        output.quality_loss = iou_regression_loss(output.predicted_iou, logits, masks, valid).sum() / count
        output.loss = (
            output.loss
            + config.bce_weight * output.bce_loss
            + config.dice_weight * output.dice_loss
            + config.quality_weight * output.quality_loss
        )

    def _look_loss(self, logits, masks, valid, count: float | None) -> torch.Tensor:
        logits = F.interpolate(logits[:, None].float(), masks.shape[-2:], mode="bilinear")[:, 0]
        config = self.config
        loss = config.bce_weight * bce_loss(logits, masks, valid) + config.dice_weight * dice_loss(
            logits, masks, valid
        )
        return loss.sum() / (count or max(len(masks), 1))

    @torch.no_grad()
    def segment(self, images, questions, processor, ensemble: int = 0, max_new_tokens: int = 96, batch_size: int = 32):
        """Answers questions about pictures in words and masks; batched and KV-cached.

        Args:
            images: a list of PIL pictures of any size, one per question; the same object is encoded once.
            questions: list[str]. processor: the model's `PopenProcessor`.
            ensemble: K hypotheses per target on top of the clean one, 0 for a single pass.
        Returns:
            list[Answer], in order; `answer.text`, `answer.targets` with phrase, mask at the picture's own size
            (H, W) bool, and confidence 0..1.
        Raises:
            ValueError: lengths differ, or ensemble < 0. DataError: a picture or question that cannot be used.
        """
        from popen.lvlm.segmentation import segment  # it builds on this class

        return segment(self, processor, images, questions, ensemble, max_new_tokens, batch_size)
