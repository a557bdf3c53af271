"""LoRA the way PixelLM trains: adapters in the language model, mask parts and segmentation tokens in full."""

from dataclasses import dataclass, field

from peft import LoraConfig, PeftModel, get_peft_model

from popen.data.safe_io import DataError


@dataclass
class LoraArguments:
    """Whether and how the language model is adapted; names are TRL's."""

    use_peft: bool = field(default=False, metadata={"help": "Train LoRA adapters instead of all weights."})
    lora_r: int = field(default=8, metadata={"help": "Rank (PixelLM: 8)."})
    lora_alpha: int = field(default=16, metadata={"help": "Scale of the update is alpha / rank (PixelLM: 16)."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the adapters (PixelLM: 0.05)."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "v_proj"], metadata={"help": "Linear layers of the language model."}
    )


ALL_WEIGHTS = LoraArguments()


def with_lora(model, arguments: LoraArguments) -> PeftModel:
    """The model with adapters; only these, the mask parts and the rows of the `[SEG…]` tokens are trained.

    A trained encoder beside the vision tower stays as it is; its necks are trained.

    Switched off (`disable_adapter`), it is the model as it was.

    Raises:
        DataError: no layer of the language model has a name asked for.
    """
    layers = "|".join(arguments.lora_target_modules)
    targets = rf".*backbone\.model\.{model.family.language_model}\..*\.({layers})"
    tokens = {"embed_tokens": list(model.config.seg_token_ids)}
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        tokens["lm_head"] = list(model.config.seg_token_ids)
    config = LoraConfig(
        r=arguments.lora_r, lora_alpha=arguments.lora_alpha, lora_dropout=arguments.lora_dropout,
        target_modules=targets, modules_to_save=_mask_parts(model), trainable_token_indices=tokens,
    )  # fmt: skip
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise DataError(
            f"lora_target_modules {arguments.lora_target_modules}: no layer of the language model is called so; "
            "print the model for their names"
        ) from error


def _mask_parts(model) -> list[str]:
    """What is trained in full, by the ends of the modules' names; the preference head is trained on its own, later."""
    parts = ["codebook", "mask_decoder"]
    if model.pixel_fusion is not None:
        parts.append("pixel_fusion")
    if model.pixel_encoder.backbone is None:
        return [*parts, "pixel_encoder"]
    return [*parts, *(f"pixel_encoder.necks.{level}" for level in range(len(model.pixel_encoder.necks)))]
