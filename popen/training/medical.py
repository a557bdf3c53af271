"""Training any segmenter on labels, preferences between masks, or both, in one forward pass per step."""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import TrainerCallback, TrainingArguments

from popen.medical.calibration import calibrate_threshold
from popen.medical.examples import Collator, Streams
from popen.medical.segmenter import Segmenter
from popen.medical.supervised import Labelled, SupervisedLoss, cross_entropy_dice, weighted
from popen.medical.views import flipped_rows
from popen.objectives.outside import outside_loss
from popen.objectives.preference import sigmoid_loss
from popen.objectives.region_pairs import RegionObjective, RegionPairs, region_dpo, region_mean
from popen.training.callbacks import PartLossTrainer
from popen.training.weight_average import WeightAverage


@dataclass
class MedicalArguments(TrainingArguments):
    """TrainingArguments and the weights of L = L_true + λ_w L_winner + λ_p L_preference + λ_o L_outside."""

    output_dir: str = field(default="runs/medical", metadata={"help": "Where checkpoints and the final model go."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    preference_weight: float = field(default=1.0, metadata={"help": "λ_p of the loss on pairs; 0 leaves it out."})
    winner_weight: float = field(
        default=1.0, metadata={"help": "λ_w of the supervised loss on the chosen masks of unlabelled pictures."}
    )
    outside_weight: float = field(
        default=0.0, metadata={"help": "λ_o of the cross-entropy with what both masks say outside R."}
    )
    average: float = field(default=0.99, metadata={"help": "Decay of the weights' average; 0 keeps the last step."})
    freeze_batch_norm: bool = field(default=False, metadata={"help": "Keep running statistics as they are."})
    train_dropout: bool = field(default=True, metadata={"help": "Dropout is on while training, as in the paper."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: examples are no columns."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Kept off: non-finite losses must be seen."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two log lines."})


class MedicalTrainer(PartLossTrainer):
    """Labels and preferences for a `Segmenter`; MAPO, RN-DPO and supervised training differ by what is handed in.

    Args:
        supervised: the loss on true masks. winner: the loss on chosen masks of unlabelled pictures, where
            `winner_weight` > 0; by default cross-entropy and Dice.
        preference: an objective of `popen.objectives.region_pairs`; by default RN-DPO's with β = 1.
        eval_dataset: prepared dev cases, scored with `eval_strategy: steps` every `eval_steps` and after the last.
    Raises:
        ValueError: load_best_model_at_end; the last weights are kept, and the peak is only logged.
    """

    counters: ClassVar = {
        "labelled": lambda batch: len(batch["true_row"]),
        "pairs": lambda batch: len(batch["pair_row"]),
        "winners": lambda batch: unlabelled_pairs(batch).sum(),
    }

    def __init__(
        self,
        model: Segmenter,
        args: MedicalArguments,
        *,
        train_dataset: Streams,
        supervised: SupervisedLoss,
        winner: SupervisedLoss | None = None,
        preference: RegionObjective | None = None,
        processor=None,
        **kwargs,
    ):
        if args.load_best_model_at_end:
            raise ValueError("load_best_model_at_end: the last weights are kept, whatever dev says; leave it out")
        super().__init__(
            model, args, train_dataset=train_dataset, data_collator=Collator(train_dataset.views),
            processor=processor, **kwargs,
        )  # fmt: skip
        self.views, self.supervised = train_dataset.views, supervised
        self.winner = winner or partial(cross_entropy_dice, activation=model.settings.activation)
        self.preference = preference or partial(region_dpo, margin=region_mean, loss=partial(sigmoid_loss, beta=1.0))
        self.average = WeightAverage(args.average) if args.average else None
        if self.average is not None:
            self.add_callback(self.average)
        self.add_callback(LastStepEvaluated())

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Log dev Dice, at its own best threshold, of the weights that would be kept if training ended now."""
        cases = self.eval_dataset if eval_dataset is None else eval_dataset
        kept = None if self.average is None else self.average.kept
        threshold, dice = calibrate_threshold(self.model if kept is None else kept, cases)
        metrics = {f"{metric_key_prefix}_dice": dice, f"{metric_key_prefix}_threshold": threshold}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        args: MedicalArguments = self.args
        hold_still(self.model, args)
        views = [self.views[view] for view in inputs["views"].tolist()]
        levels = [flipped_rows(own.float(), views) for own in model(inputs["pictures"], every_level=True)]
        progress = self.state.global_step / max(self.state.max_steps, 1)
        loss, shares = levels[0].sum() * 0, self.shares(inputs)
        if "true_masks" in inputs:
            rows = inputs["true_row"]
            maps = (inputs.get("distance"), inputs.get("geodesic"))
            parts = self.supervised(
                Labelled(tuple(own[rows] for own in levels), inputs["true_masks"], *maps, progress)
            )
            self.note(**{f"seg/{name}": value for name, value in parts.items()})
            loss = loss + sum(parts.values()) * (len(rows) / shares["labelled"])
        if "chosen" in inputs:
            loss = loss + self._pair_loss(levels, inputs, shares)
        self.watch(loss)
        return (loss, {"logits": levels[0]}) if return_outputs else loss

    def _pair_loss(self, levels: list[torch.Tensor], inputs: dict, shares: dict[str, float]) -> torch.Tensor:
        args, rows = self.args, inputs["pair_row"]
        share = len(rows) / shares["pairs"]
        own = levels[0][rows]  # preferences act at full resolution
        variables = own[0] if inputs["entries"] == 1 else own[0, 0]  # one-hot classes are one variable a pixel
        pairs = RegionPairs(
            own.flatten(1).gather(1, inputs["region_index"]), inputs["region_reference"], inputs["region_sign"],
            inputs["region_classes"], inputs["gap"], inputs["entries"], float(variables.numel()),
        )  # fmt: skip
        found = self.preference(pairs)
        margin = region_mean(pairs).detach()
        self.note(**{"rewards/margins": margin.mean(), "rewards/accuracies": (margin > 0).float().mean()})
        self.note(**{"rewards/chosen": found.chosen.mean(), "rewards/rejected": found.rejected.mean()})
        weighed = (inputs["weight"] * found.losses).mean()  # over all pairs: light ones leave more to the labels
        self.note(**{"pairs/loss": found.losses.mean(), "pairs/weight": inputs["weight"].mean()})
        loss = args.preference_weight * weighed * share
        unlabelled = unlabelled_pairs(inputs)
        if args.winner_weight and unlabelled.any():
            winners = tuple(level[rows][unlabelled] for level in levels)
            shown = Labelled(winners, inputs["chosen"][unlabelled], None, None, 1.0)
            parts = weighted(self.winner, shown, inputs["weight"][unlabelled])
            self.note(**{f"winner/{name}": value for name, value in parts.items()})
            loss = loss + args.winner_weight * sum(parts.values()) * (int(unlabelled.sum()) / shares["winners"])
        if args.outside_weight:
            region = (inputs["region_index"], inputs["region_sign"], inputs["entries"])
            outside = outside_loss(own, inputs["chosen"], *region)
            self.note(**{"pairs/outside": outside})
            loss = loss + args.outside_weight * outside * share
        return loss

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        self.model.save_pretrained(output_dir or self.args.output_dir)


def unlabelled_pairs(batch: dict) -> torch.Tensor:
    """Which of a batch's pairs are of pictures without labels, bool: their winners are trained on."""
    return ~torch.isin(batch["pair_row"], batch["true_row"])


class LastStepEvaluated(TrainerCallback):
    """Evaluates after the last step too, whatever `eval_steps` is, so that the model that is kept has its number."""

    def on_step_end(self, args, state, control, **kwargs):
        if args.eval_strategy != "no" and state.global_step >= state.max_steps:
            control.should_evaluate = True


def hold_still(model: nn.Module, args: MedicalArguments) -> None:
    """Puts what shall not move into evaluation mode; the Trainer sets the whole model to training before each step."""
    for module in model.modules():
        if (args.freeze_batch_norm and isinstance(module, _BatchNorm)) or (
            not args.train_dropout and isinstance(module, nn.modules.dropout._DropoutNd)
        ):
            module.eval()
