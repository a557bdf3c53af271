"""POPEN training: text preferences, segmentation preferences and an anchor, in one forward pass per step."""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import datasets
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import TrainingArguments

from popen.data.safe_io import DataError
from popen.data.schema import Sample
from popen.lvlm.canvas import counted_cells
from popen.lvlm.preference_packing import preference_batch
from popen.lvlm.processing_popen import PopenProcessor
from popen.objectives.pairs import (
    Completions,
    SegObjective,
    SegPairs,
    TextObjective,
    TextPairs,
    text_dpo,
)
from popen.objectives.preference import sigmoid_loss
from popen.objectives.region_pairs import seg_region_dpo
from popen.objectives.regions import region_margin
from popen.objectives.scores import weighted_token_logps
from popen.preference.curriculum import LOCALISE, REFINE, stage_at
from popen.preference.mask_objectives import LossOnMargin, OneMaskMargin, mask_objective
from popen.training.callbacks import PartLossTrainer
from popen.training.live_reference import LiveReference, with_reference

MODEL_INPUTS = (
    "input_ids", "position_ids", "attention_mask", "pixel_values", "token_row", "token_predictor", "token_labels",
    "target_row", "target_predictor", "target_group", "target_masks", "valid", "spans",
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
    seg_margin: OneMaskMargin = field(
        default="region_mean",
        metadata={
            "help": "How the margin between masks is normalised: by |R|, not at all, by the picture's pixels that "
            "count, or by |R|^α; one mask has no classes to balance."
        },
    )
    seg_alpha: float = field(default=0.5, metadata={"help": "α of seg_margin power: 0 is sum, 1 region_mean."})
    seg_loss: LossOnMargin = field(default="sigmoid", metadata={"help": "On the margin between masks."})
    seg_beta: float = field(default=1.0, metadata={"help": "β of the mask margin."})
    seg_label_smoothing: float = field(
        default=0.1, metadata={"help": "ε of seg_loss cdpo and rdpo: the share of pairs that are the wrong way round."}
    )
    changed_weight: float = field(
        default=1.0, metadata={"help": "Weight of changed tokens in the text margin (DDPO)."}
    )
    reference: Literal["cached", "live"] = field(
        default="cached",
        metadata={
            "help": "The reference's numbers: as mining wrote them, or from a second forward at every step, with "
            "adapters off or, where all weights are trained, of a frozen copy."
        },
    )
    localise_share: float = field(default=0.5, metadata={"help": "Share of the steps in curriculum stage 1."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: rows are packed by the collator."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Kept off: non-finite losses must be seen."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two log lines."})
    ddp_find_unused_parameters: bool = field(
        default=True, metadata={"help": "A vision tower's last layer may be unused."}
    )

    def __post_init__(self):
        super().__post_init__()
        try:
            seg_objective_of(self)
        except ValueError as error:  # "alpha must be …"
            raise DataError(f"seg_{error}") from error


def seg_objective_of(args: PreferenceArguments) -> SegObjective:
    """L_s as the arguments name it.

    Raises:
        ValueError: α, β or ε is out of range.
    """
    numbers = {"alpha": args.seg_alpha, "beta": args.seg_beta, "label_smoothing": args.seg_label_smoothing}
    return partial(seg_region_dpo, objective=mask_objective(args.seg_margin, args.seg_loss, **numbers))


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


def text_pairs(logps: torch.Tensor, inputs: dict) -> TextPairs:
    """The text pairs of a batch, padded: sequence 2i is a chosen answer and 2i + 1 what it is preferred to."""
    counts = torch.bincount(inputs["token_sequence"])[: 2 * len(inputs["pairs"])].tolist()
    here = sum(counts)  # text pairs come before pictures
    columns = [logps, inputs["ref_logps"], torch.ones_like(logps, dtype=torch.bool), inputs["changed"]]
    padded = [pad_sequence(column[:here].split(counts), batch_first=True) for column in columns]
    return TextPairs(*(Completions(*(column[side] for column in padded)) for side in inputs["pairs"].T))


def seg_pairs(outputs, inputs: dict, stage: int) -> SegPairs:
    """The segmentation preferences of a curriculum stage, with what the model makes of their targets."""
    column = {name: inputs[f"stage{stage}_{name}"] for name in ("preferred_target", "region_pixels", "candidates")}
    target = column["preferred_target"]
    candidates = column["candidates"].to(outputs.embeddings.device)
    candidates = candidates.reshape(len(target), 4, *outputs.embeddings.shape[1:])  # without any, D is not known
    cells = counted_cells(inputs["valid"], outputs.mask_logits.shape[-2:]).flatten(1).sum(1)
    return SegPairs(
        outputs.embeddings[target].float(),
        *candidates.unbind(1),
        outputs.mask_logits.flatten(1).float()[target].gather(1, column["region_pixels"]),
        inputs[f"stage{stage}_region_ref_logits"],
        inputs[f"stage{stage}_region_signs"],
        inputs[f"stage{stage}_gap"],
        cells[inputs["target_row"][target]].clamp(min=1),
    )


class PreferenceTrainer(PartLossTrainer):
    """L_pre = λ_t L_t + λ_s L_s + λ_a L_anchor (POPEN; the forms of L_t and L_s are our reconstruction).

    L_t and L_s are objectives of `popen.objectives.pairs`; `refine_objective` is L_s in curriculum stage 2 where that
    is another one. By default L_t is DPO on changed-token-weighted log-ratios and L_s is DPO on the region-mean margin
    between the masks of the superior and the rejected candidate, on the clean picture, or what `seg_margin` and
    `seg_loss` name; the anchor is CE on chosen and true answers plus PixelLM's mask losses. The reference's numbers
    were written when the pairs were mined: no second forward, unless `reference` is live.
    """

    counters: ClassVar = {
        "targets": lambda batch: len(batch["target_row"]),
        "text pairs": lambda batch: len(batch["pairs"]),
        "anchored tokens": lambda batch: batch["anchor"].sum(),
        f"stage {LOCALISE} pairs": lambda batch: len(batch[f"stage{LOCALISE}_gap"]),
        f"stage {REFINE} pairs": lambda batch: len(batch[f"stage{REFINE}_gap"]),
    }

    def __init__(
        self,
        model,
        args: PreferenceArguments,
        *,
        processor: PopenProcessor,
        text_objective: TextObjective | None = None,
        seg_objective: SegObjective | None = None,
        refine_objective: SegObjective | None = None,
        **kwargs,
    ):
        collator = PreferenceCollator(processor, model.config.scales)
        super().__init__(model, args, processor=processor, data_collator=collator, **kwargs)
        self.live_reference = LiveReference(model, MODEL_INPUTS) if args.reference == "live" else None
        self.text_objective = text_objective or partial(
            text_dpo,
            score=partial(weighted_token_logps, weight=args.changed_weight),
            loss=partial(sigmoid_loss, beta=args.text_beta),
        )
        localise = seg_objective or seg_objective_of(args)
        self.seg_objectives = {LOCALISE: localise, REFINE: refine_objective or localise}

    def model_inputs(self, inputs: dict) -> dict | None:
        if self.live_reference is not None:
            return None  # it takes memory of its own
        return {name: inputs[name] for name in MODEL_INPUTS}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        args: PreferenceArguments = self.args
        if self.live_reference is not None:
            with self.accelerator.autocast():  # as it has the policy's forward pass in mixed precision
                reference = self.live_reference.outputs(self.accelerator.unwrap_model(model), inputs)
            inputs = with_reference(inputs, reference)
        shares = self.shares(inputs)
        outputs = model(**{name: inputs[name] for name in MODEL_INPUTS}, target_count=shares["targets"])
        text_loss = self._text_loss(outputs.logps, inputs).sum() / shares["text pairs"]
        stage = stage_at(self.state.global_step, self.state.max_steps, args.localise_share)
        seg_loss = self._seg_loss(outputs, inputs, stage).sum() / shares[f"stage {stage} pairs"]
        anchor = inputs["anchor"]
        ce = -outputs.logps[anchor].sum() / shares["anchored tokens"]
        config = self.model.config
        anchor_loss = (
            config.ce_weight * ce
            + config.bce_weight * outputs.bce_loss
            + config.dice_weight * outputs.dice_loss
            + config.quality_weight * outputs.quality_loss
        )
        loss = args.text_weight * text_loss + args.seg_weight * seg_loss + args.anchor_weight * anchor_loss
        self.watch(loss)
        self.note(**{"text/loss": text_loss, "seg/loss": seg_loss, "anchor/ce": ce, "anchor/bce": outputs.bce_loss})
        self.note(**{"anchor/dice": outputs.dice_loss, "seg/stage": stage})
        return (loss, outputs) if return_outputs else loss

    def _text_loss(self, logps: torch.Tensor, inputs: dict) -> torch.Tensor:
        pairs = text_pairs(logps.float(), inputs)
        sums = [side.logps.sum(1) for side in (pairs.chosen, pairs.rejected)]
        ratios = [s - side.ref_logps.sum(1) for s, side in zip(sums, (pairs.chosen, pairs.rejected), strict=True)]
        self._check_first_margin(ratios[0] - ratios[1], "text")
        found, beta = self.text_objective(pairs), self.args.text_beta
        margin = found.chosen - found.rejected
        self.note(
            **{
                "rewards/chosen": beta * found.chosen.mean(),
                "rewards/rejected": beta * found.rejected.mean(),
                "rewards/margins": beta * margin.mean(),
                "rewards/accuracies": (margin > 0).float().mean(),
                "logps/chosen": sums[0].mean(),
                "logps/rejected": sums[1].mean(),
            }
        )
        return found.losses

    def _seg_loss(self, outputs, inputs: dict, stage: int) -> torch.Tensor:
        """Of each of the stage's preferences."""
        pairs = seg_pairs(outputs, inputs, stage)
        self._check_first_margin(region_margin(pairs.logits, pairs.ref_logits, pairs.signs), "segmentation")
        found = self.seg_objectives[stage](pairs)
        margin = found.chosen - found.rejected
        if len(margin):
            self.note(**{"seg/margins": margin.mean(), "seg/accuracies": (margin > 0).float().mean()})
        return found.losses

    def _check_first_margin(self, margin: torch.Tensor, which: str) -> None:
        """Before the first update policy = reference, so every margin must be 0 up to rounding."""
        if self.state.global_step > 0 or not self.model.training:
            return
        exact = self.model.dtype == torch.float32 and not self.args.bf16 and self.accelerator.mixed_precision == "no"
        tolerance = 1e-2 if exact else 1.0
        own = margin.detach().abs().max() if margin.numel() else margin.new_zeros(())
        worst = float(self.accelerator.gather(own).max())
        if worst > tolerance:
            raise ValueError(
                f"the {which} margin is {worst:.3g} before the first step, it must be 0; "
                "the preferences were mined from another model, data set or precision: mine again"
            )
