"""PopenForReasoningSegmentation: a vision-language backbone that answers in words and in masks."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import ModelOutput

from popen.data.safe_io import DataError
from popen.lvlm.codebook import Codebook
from popen.lvlm.configuration_popen import PopenConfig
from popen.lvlm.encoded_pictures import EncodedPictures
from popen.lvlm.families import family_of
from popen.lvlm.label_logps import label_logps
from popen.lvlm.mask_decoder import MaskDecoder
from popen.lvlm.pixel_encoder import PixelEncoder, PixelFusion
from popen.lvlm.pixellm_blocks import PixelLMEncoder, PixelLMMaskDecoder, PixelLMProjector
from popen.lvlm.preference_head import PreferenceHead
from popen.lvlm.row_attention import EAGER, FLEX, row_attention
from popen.lvlm.tiny_vit import window_offsets
from popen.objectives.alignment import looking_loss, naming_loss, pooled_tokens, token_cover
from popen.objectives.masks import bce_loss, dice_loss, iou_regression_loss, refined_bce_loss, refinement_weights


@dataclass
class PopenOutput(ModelOutput):
    """One forward pass.

    N completion tokens, T targets; the losses are means over them (0 where there are none).

    Args:
        loss: weighted sum of the parts below, where labels and masks were given.
        logps: (N,) log-probability of each label; its logits are not kept (`label_logps`).
        embeddings: (T, L, D) segmentation embeddings. mask_logits: (T, h, w). predicted_iou: (T,) in 0..1.
        features: the pixel encoder's maps, coarse first.
    """

    loss: torch.Tensor | None = None
    ce_loss: torch.Tensor | None = None
    bce_loss: torch.Tensor | None = None
    dice_loss: torch.Tensor | None = None
    quality_loss: torch.Tensor | None = None
    look_loss: torch.Tensor | None = None
    name_loss: torch.Tensor | None = None
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
    _tied_weights_keys = {}  # noqa: RUF012 (what is tied is the backbone's; PEFT looks for it from here on)

    def __init__(self, config: PopenConfig):
        super().__init__(config)
        self.family = family_of(config.family)
        problem = self.family.misfit(config.backbone_config, config.image_size)
        if problem is None and not self.family.square_tokens and (config.pixel_fusion or config.look_weight):
            problem = "its picture tokens are no plain grid; set pixel_fusion: false and look_weight: 0"
        if problem is not None:
            raise ValueError(f"backbone {config.backbone_config.model_type!r}: {problem}")
        self.backbone = AutoModelForImageTextToText.from_config(config.backbone_config)
        hidden_size = config.get_text_config().hidden_size
        self.codebook = Codebook(hidden_size, config.decoder_dim, config.scales, config.tokens_per_scale)
        encoder, decoder = (
            (PixelLMEncoder, PixelLMMaskDecoder) if config.pixellm_compat else (PixelEncoder, MaskDecoder)
        )
        if config.pixellm_compat:
            channels = config.backbone_config.vision_config.hidden_size
            self.backbone.model.multi_modal_projector = PixelLMProjector(channels, hidden_size)
        self.pixel_encoder = encoder(config)
        self.pixel_fusion = (
            PixelFusion(config.decoder_dim, config.scales, hidden_size) if config.pixel_fusion else None
        )
        self.mask_decoder = decoder(
            config.decoder_dim, config.decoder_depth, config.decoder_heads, config.decoder_mlp_dim, config.scales
        )
        self.preference_head = PreferenceHead(config.decoder_dim, config.scales)
        self.post_init()
        # transformers collects what the parts' classes name, as CLIP's text layers, which FSDP would look for in vain
        kinds = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = sorted(kinds.intersection(self._no_split_modules or ()))

    def _init_weights(self, module: nn.Module) -> None:
        """New modules start as torch makes them: the backbone's σ of 0.02 starves a narrow decoder of signal."""
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        if hasattr(module, "attention_bias_idxs"):  # TinyViT's
            module.attention_bias_idxs.copy_(window_offsets(module.resolution))

    def save_pretrained(self, save_directory, save_original_format: bool = False, **kwargs) -> None:
        """As transformers does, but under the modules' own names: a Trainer resumes from these without renaming."""
        super().save_pretrained(save_directory, save_original_format=save_original_format, **kwargs)

    def should_save_on_this_rank(self, is_main_process: bool) -> bool:
        """Where the caller says so; transformers writes on rank 0 alone, whatever `save_on_each_node` says."""
        return is_main_process

    def set_attn_implementation(self, attn_implementation, **kwargs) -> None:
        """As transformers does; flex_attention is the language model's alone, which reads packed rows.

        Raises:
            DataError: flex_attention without CUDA, or with a language model that cannot take it.
        """
        if attn_implementation != FLEX:
            super().set_attn_implementation(attn_implementation, **kwargs)
            return
        if not torch.cuda.is_available():
            raise DataError(f"attn_implementation {FLEX}: no CUDA device is here, and it trains on no other; leave it")
        language = self.backbone.model.get_submodule(self.family.language_model)
        if self.family.takes_flex:
            language._supports_flex_attn = True
        try:
            language.set_attn_implementation(FLEX, **kwargs)
        except ValueError as error:
            raise DataError(
                f"attn_implementation {FLEX}: {type(language).__name__} of backbone "
                f"{self.config.backbone_config.model_type!r} does not take it; leave it out"
            ) from error

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.backbone.get_output_embeddings()

    def freeze_vision(self) -> None:
        """Leaves only the language model and the codebook to be trained: what sees and what draws stays as it is."""
        for name, parameter in self.named_parameters():
            if self.family.language_model not in name and not name.startswith(("codebook.", "backbone.lm_head")):
                parameter.requires_grad_(False)

    def freeze_pixels(self) -> None:
        """Leaves a trained encoder beside the vision tower as it is; its necks are trained.

        Raises:
            ValueError: the pixels come from the vision tower.
        """
        if self.pixel_encoder.backbone is None:
            raise ValueError("freeze_pixels: the pixels come from the vision tower, there is no encoder beside it")
        self.pixel_encoder.backbone.requires_grad_(False)

    def encode_pictures(self, pixel_values: torch.Tensor) -> EncodedPictures:
        """Runs the vision tower and the pixel encoder once on the processor's pixels of B pictures."""
        seen = self.family.see(self.backbone, pixel_values, self.config.image_size, self.pixel_encoder.layers)
        pictures = self.family.pictures(pixel_values, self.config.backbone_config)
        features = self.pixel_encoder(pictures, seen.maps)
        language = seen.language
        if self.pixel_fusion is not None:
            language = self.pixel_fusion(language, features)
        return EncodedPictures(language, features, seen.deep, seen.shown)

    def decode_masks(
        self, features: tuple[torch.Tensor, ...], picture_T: torch.Tensor, embeddings_TLD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask logits (T, h, w) and predicted IoU (T,); `picture_T` says which picture each target is in."""
        return self.mask_decoder(features, picture_T, embeddings_TLD)

    def read(
        self, input_ids, position_ids, attention_mask, pictures: EncodedPictures, look: bool = False, spans=None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Hidden states (B, S, H) of packed rows; to `look`, also the last layer's first head's attention (B, S, S).

        Args:
            attention_mask: (B, 1, S, S) bool. spans: (B, 2, S), what FlexAttention takes instead; they also show where
                causal attention needs no mask.
        Raises:
            ValueError: `look` without eager attention, which alone gives its weights away, or FlexAttention without
                spans.
        """
        implementation = self.config.get_text_config()._attn_implementation
        if look and implementation != EAGER:
            raise ValueError("look_weight > 0 reads attention weights: load the model with attn_implementation=eager")
        is_picture = input_ids == self.config.backbone_config.image_token_id
        readable = None if pictures.shown is None else pictures.readable(is_picture)
        attention_mask = row_attention(implementation, attention_mask, spans, readable, self.dtype)
        masked = input_ids, position_ids, attention_mask, pictures
        output = self.language_pass(*masked, use_cache=False, output_attentions=look)
        return output.last_hidden_state, output.attentions[-1][:, 0] if look else None

    def language_pass(self, input_ids, position_ids, attention_mask, pictures: EncodedPictures, **options):
        """The language model on rows (B, S) and pictures that are encoded already; the backbone's own output.

        Args:
            attention_mask: as the backbone takes it. options: of its forward, as `use_cache`.
        """
        return self.backbone.model(
            input_ids=input_ids,
            position_ids=self.family.positions(position_ids, input_ids, self.config.backbone_config),
            attention_mask=attention_mask,
            mm_encoder_outputs={"image": self.family.for_language(pictures.language, pictures.deep)},
            **options,
        )

    def label_logps(self, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Log-probability of each label (N,) as the token after its hidden state (N, H)."""
        return label_logps(self.get_output_embeddings(), states, labels, self.config.get_text_config().vocab_size)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        token_row: torch.Tensor | None = None,
        token_predictor: torch.Tensor | None = None,
        token_labels: torch.Tensor | None = None,
        target_row: torch.Tensor | None = None,
        target_predictor: torch.Tensor | None = None,
        target_group: torch.Tensor | None = None,
        target_masks: torch.Tensor | None = None,
        target_phrases: torch.Tensor | None = None,
        look_row: torch.Tensor | None = None,
        look_column: torch.Tensor | None = None,
        look_target: torch.Tensor | None = None,
        valid: torch.Tensor | None = None,
        token_count: float | None = None,
        target_count: float | None = None,
        look_count: float | None = None,
        spans: torch.Tensor | None = None,
    ) -> PopenOutput:
        """Text and mask losses in one pass over packed rows (see `shared_prefix`).

        Without `input_ids` the language model's layers stay out, which is the alignment stage before supervised
        fine-tuning: picture tokens name the targets, and the words of a target's phrase alone ask for its mask.

        Args:
            input_ids, position_ids: (B, S). attention_mask: (B, 1, S, S) bool. pixel_values: the processor's (B, …).
            token_row, token_predictor, token_labels: (N,) for completion tokens: the row, the column whose state
                predicts it, and the token.
            target_row: (T,). target_predictor: (T, L·N) columns whose states predict the target's `[SEG…]` tokens.
            target_group: (T,) which answer a target belongs to, for target refinement.
            target_masks: (T, side, side) in 0..1. target_phrases: (T, W) token ids of each target's phrase, −1 where
                there is none, for the naming loss.
            look_row, look_column, look_target: (Q,) the tokens that name a target or predict its first `[SEG…]`, and
                which target, for the looking loss.
            valid: (B, side, side) bool, canvas pixels that count.
            token_count, target_count, look_count: what to divide by; this batch's own by default, under DDP the
                mean over ranks.
            spans: (B, 2, S) of the packed rows; FlexAttention needs them.
        """
        if input_ids is None:
            return self._align(pixel_values, target_row, target_masks, target_phrases, valid, target_count)
        pictures = self.encode_pictures(pixel_values)
        look = bool(self.config.look_weight) and look_row is not None and target_masks is not None
        hidden, attention = self.read(input_ids, position_ids, attention_mask, pictures, look, spans)
        logps = self.label_logps(hidden[token_row, token_predictor], token_labels)
        embeddings = self.codebook(hidden[target_row[:, None], target_predictor])
        mask_logits, predicted_iou = self.decode_masks(pictures.features, target_row, embeddings)
        output = PopenOutput(
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
        named = bool(self.config.name_weight) and target_phrases is not None and target_masks is not None
        if look or named:
            cover = token_cover(target_masks * valid[target_row], len(pictures.language[0]))
        if look:
            columns = (input_ids[0] == self.config.backbone_config.image_token_id).nonzero()[:, 0]
            looked = attention[look_row, look_column][:, columns]
            losses = looking_loss(looked, cover[look_target])
            output.look_loss = losses.sum() / (look_count or max(len(losses), 1))
            output.loss = output.loss + self.config.look_weight * output.look_loss
        if named:
            output.name_loss = self._name_loss(pictures, target_row, cover, target_phrases, target_count)
            output.loss = output.loss + self.config.name_weight * output.name_loss
        return output

    def _align(self, pixel_values, target_row, target_masks, target_phrases, valid, target_count) -> PopenOutput:
        """Words and pictures without a sentence: each is asked for the other."""
        pictures, valid = self.encode_pictures(pixel_values), valid[target_row]
        embeddings = self.codebook(self._phrase_states(target_phrases))
        mask_logits, predicted_iou = self.decode_masks(pictures.features, target_row, embeddings)
        output = PopenOutput(embeddings=embeddings, mask_logits=mask_logits, predicted_iou=predicted_iou)
        cover = token_cover(target_masks * valid, len(pictures.language[0]))
        output.name_loss = self._name_loss(pictures, target_row, cover, target_phrases, target_count)
        output.loss = output.name_loss
        self._mask_losses(output, target_masks, valid, None, target_count)
        return output

    def _phrase_states(self, phrases: torch.Tensor) -> torch.Tensor:
        """What a phrase's words say before anything is read, (T, L·N, H): their summed embeddings at unit scale."""
        words = self.get_input_embeddings()(phrases.clamp(min=0)) * (phrases >= 0)[:, :, None]
        return self._repeated(F.rms_norm(words.sum(1), words.shape[-1:]))

    def _repeated(self, states_TH: torch.Tensor) -> torch.Tensor:
        """One state in the place of each of a target's `[SEG…]` tokens, (T, L·N, H)."""
        return states_TH[:, None].expand(-1, self.config.scales * self.config.tokens_per_scale, -1)

    def _name_loss(self, pictures: EncodedPictures, row, cover_TP, phrases, count: float | None) -> torch.Tensor:
        """Each target's words, read off the picture tokens under its mask by the model's output embedding; the mean.

        Args:
            row: (T,) which picture a target is in. cover_TP: how much of each picture token its mask covers, 0..1.
            phrases: (T, W) token ids, padded with −1.
        """
        pooled = pooled_tokens(torch.stack(pictures.language)[row], cover_TP)
        losses = naming_loss(self.get_output_embeddings()(pooled), phrases)
        return losses.sum() / (count or max(len(phrases), 1))

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

    @torch.no_grad()
    def segment(self, images, questions, processor, ensemble: int = 0, max_new_tokens: int = 96, batch_size: int = 32):
        """Answers questions about pictures in words and masks; batched and KV-cached.

        Args:
            images: a list of PIL pictures of any size, one per question; the same object is encoded once.
            questions: list[str]. processor: the model's `PopenProcessor`.
            ensemble: K hypotheses per target beside the clean one, 0 for a single pass; where the configuration has
                an `answer_margin`, also up to K other answers to choose from.
        Returns:
            list[Answer], in order; `answer.text`, `answer.targets` with phrase, mask at the picture's own size
            (H, W) bool, and confidence 0..1.
        Raises:
            ValueError: lengths differ, or ensemble < 0. DataError: a picture or question that cannot be used.
        """
        from popen.lvlm.segmentation import segment  # it builds on this class

        return segment(self, processor, images, questions, ensemble, max_new_tokens, batch_size)
