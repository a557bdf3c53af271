"""POPEN training: text preferences, segmentation preferences and an anchor, in one forward pass per step."""

from dataclasses import dataclass, field

import datasets
import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments

from popen.data.schema import Sample
from popen.lvlm.preference_packing import preference_batch
from popen.lvlm.processing_popen import PopenProcessor
from popen.objectives.preference import sigmoid_loss
from popen.objectives.scores import region_margin
from popen.preference.curriculum import stage_at
from popen.training.callbacks import PartLossTrainer

MODEL_INPUTS = (
    "input_ids", "position_ids", "attention_mask", "pixel_values", "token_row", "token_predictor", "token_labels",
    "target_row", "target_predictor", "target_group", "target_masks", "valid",
)  # fmt: skip


@dataclass
class PreferenceArguments(TrainingArguments):
    """TrainingArguments, the weights of L = λ_t L_t + λ_s L_s + λ_a L_anchor, and the curriculum."""

    output_dir: str = field(default="runs/popen", metadata={"help": "Where checkpoints and the final model go."})
    learning_rate: float = field(default=3e-5, metadata={"help": "Peak learning rate, 10 to 50 times below SFT's."})
    text_weight: float = field(default=1.0, metadata={"help": "λ_t of the text preference loss; 0 leaves it out."})
    seg_weight: float = field(default=0.3, metadata={"help": "λ_s of the segmentation preference loss."})
    anchor_weight: float = field(
        default=1.0, metadata={"help": "λ_a of the supervised loss on chosen and true answers."}
    )
    text_beta: float = field(default=0.1, metadata={"help": "β of the text margin."})
    seg_beta: float = field(default=1.0, metadata={"help": "β of the region-mean mask margin."})
    changed_weight: float = field(
        default=1.0, metadata={"help": "Weight of changed tokens in the text margin (DDPO)."}
    )
    localise_share: float = field(default=0.5, metadata={"help": "Share of the steps in curriculum stage 1."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: rows are packed by the collator."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Kept off: non-finite losses must be seen."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two log lines."})
    ddp_find_unused_parameters: bool = field(
        default=True, metadata={"help": "A vision tower's last layer may be unused."}
    )


class PreferenceStreams(Dataset):
    """Item i is one text pair and one picture with its preferences; the shorter stream starts over."""

    def __init__(self, text: datasets.Dataset, seg: datasets.Dataset, source: datasets.Dataset):
        if len(text) == 0 or len(seg) == 0:
            raise ValueError(f"{len(text)} text and {len(seg)} segmentation preferences; mine at least one of each")
        self.text, self.seg, self.source = text, seg, source

    def __len__(self) -> int:
        return max(len(self.text), len(self.seg))

    def __getitem__(self, index: int) -> dict:
        text, seg = self.text[index % len(self.text)], self.seg[index % len(self.seg)]
        return {
            "text": (text, Sample.from_row(self.source[text["row"]])),
            "seg": (seg, Sample.from_row(self.source[seg["row"]])),
        }


class PreferenceCollator:
    """Items of `PreferenceStreams` to one batch with the preferences of both curriculum stages."""

    def __init__(self, processor: PopenProcessor, scales: int):
        self.processor, self.scales = processor, scales

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        pairs, pictures = [item["text"] for item in items], [item["seg"] for item in items]
        return preference_batch(self.processor, pairs, pictures, self.scales)


class PreferenceTrainer(PartLossTrainer):
    """L_pre = λ_t L_t + λ_s L_s + λ_a L_anchor (POPEN; the forms of L_t and L_s are our reconstruction).

    L_t is DPO on changed-token-weighted log-ratios; L_s is DPO on the region-mean margin between the masks of the
    superior and the rejected candidate, on the clean picture; the anchor is CE on chosen and true answers plus
    PixelLM's mask losses. The reference's numbers were written when the pairs were mined: no second forward.
    """

    def __init__(self, model, args: PreferenceArguments, *, processor: PopenProcessor, **kwargs):
        collator = PreferenceCollator(processor, model.config.scales)
        super().__init__(model, args, processor=processor, data_collator=collator, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        args: PreferenceArguments = self.args
        outputs = model(
            **{name: inputs[name] for name in MODEL_INPUTS}, target_count=self.share_of(len(inputs["target_row"]))
        )
        text_loss = self._text_loss(outputs.logps, inputs)
        stage = stage_at(self.state.global_step, self.state.max_steps, args.localise_share)
        seg_loss = self._seg_loss(outputs.mask_logits, inputs, stage)
        anchor = inputs["anchor"]
        ce = -outputs.logps[anchor].sum() / self.share_of(int(anchor.sum()))
        config = self.model.config
        anchor_loss = (
            config.ce_weight * ce
            + config.bce_weight * outputs.bce_loss
            + config.dice_weight * outputs.dice_loss
            + config.quality_weight * outputs.quality_loss
        )
        loss = args.text_weight * text_loss + args.seg_weight * seg_loss + args.anchor_weight * anchor_loss
        self.check_finite(loss, "the loss")
        self.note(**{"text/loss": text_loss, "seg/loss": seg_loss, "anchor/ce": ce, "anchor/bce": outputs.bce_loss})
        self.note(**{"anchor/dice": outputs.dice_loss, "seg/stage": stage})
        return (loss, outputs) if return_outputs else loss

    def _text_loss(self, logps: torch.Tensor, inputs: dict) -> torch.Tensor:
        """Mean −log σ(β h_t) over pairs, h_t = Σ w_i (log π_θ − log π_ref) of chosen minus rejected."""
        args: PreferenceArguments = self.args
        weight = torch.where(inputs["changed"], args.changed_weight, 1.0)
        ratio = weight * (logps.float() - inputs["ref_logps"])
        sequences = int(inputs["token_sequence"].max()) + 1
        rewards = torch.zeros(sequences, device=ratio.device).index_add(0, inputs["token_sequence"], ratio)
        totals = torch.zeros(sequences, device=ratio.device).index_add(0, inputs["token_sequence"], logps.float())
        chosen, rejected = inputs["pairs"].T
        margin = rewards[chosen] - rewards[rejected]
        self._check_first_margin(margin, "text")
        beta = args.text_beta
        self.note(
            **{
                "rewards/chosen": beta * rewards[chosen].mean(),
                "rewards/rejected": beta * rewards[rejected].mean(),
                "rewards/margins": beta * margin.mean(),
                "rewards/accuracies": (margin > 0).float().mean(),
                "logps/chosen": totals[chosen].mean(),
                "logps/rejected": totals[rejected].mean(),
            }
        )
        return sigmoid_loss(margin, beta).sum() / self.share_of(len(margin))

    def _seg_loss(self, mask_logits: torch.Tensor, inputs: dict, stage: int) -> torch.Tensor:
        """Mean −log σ(β_s h_s) over the stage's preferences, h_s the region-mean mask margin."""
        args: PreferenceArguments = self.args
        target, pixels, signs, ref_logits = (
            inputs[f"stage{stage}_{name}"]
            for name in ("preferred_target", "region_pixels", "region_signs", "region_ref_logits")
        )
        logits = mask_logits.flatten(1).float()[target].gather(1, pixels)
        margin = region_margin(logits, ref_logits, signs)
        self._check_first_margin(margin, "segmentation")
        if len(margin):
            self.note(**{"seg/margins": margin.mean(), "seg/accuracies": (margin > 0).float().mean()})
        return sigmoid_loss(margin, args.seg_beta).sum() / self.share_of(len(margin))

    def _check_first_margin(self, margin: torch.Tensor, which: str) -> None:
        """Before the first update policy = reference, so every margin must be 0 up to rounding."""
        if self.state.global_step > 0 or not self.model.training:
            return
        tolerance = 1e-2 if self.model.dtype == torch.float32 and not self.args.bf16 else 1.0
        own = margin.detach().abs().max() if margin.numel() else margin.new_zeros(())
        worst = float(self.accelerator.gather(own).max())
        if worst > tolerance:
            raise ValueError(
                f"the {which} margin is {worst:.3g} before the first step, it must be 0; "
                "the preferences were mined from another model, data set or precision: mine again"
            )
