"""Trains the base and one arm of the medical study; everything but what the arm names is the same for all of them."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import set_seed

from eval.medical_study_arms import Arm
from popen.medical.dropout import dropout_hypotheses
from popen.medical.examples import Example, Streams
from popen.medical.mask_pairs import with_reference
from popen.medical.mining import Candidates, MaskMining, mine_masks
from popen.medical.samplers import flip_hypotheses
from popen.medical.segmenter import Segmenter, SegmenterConfig
from popen.medical.views import flip_views
from popen.preference.judge_report import judge_report
from popen.preference.mask_judging import agreement, certainty, dice_with_truth, flips
from popen.preference.mask_mining import best_against_worst
from popen.preference.sampling import item_seed
from popen.training.medical import MedicalArguments, MedicalTrainer

VIEWS = flip_views(2)
MARGIN = 0.02  # least gap in quality of a pair


@dataclass(frozen=True)
class Picture:
    """uint8 (3, H, W) and its true masks, bool (K, H, W)."""

    name: str
    picture: torch.Tensor
    masks: torch.Tensor

    def scaled(self) -> torch.Tensor:
        return self.picture.float() / 127.5 - 1


@dataclass(frozen=True)
class Budget:
    """What every arm may spend."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int


def train_base(config: SegmenterConfig, labelled: Sequence[Picture], folder: Path, budget: Budget) -> Segmenter:
    """Supervised training on the labelled few, from scratch; not done again."""
    if (folder / "model.safetensors").is_file():
        return Segmenter.from_pretrained(folder).eval()
    set_seed(budget.seed)
    model = Segmenter(config)
    examples = [Example(p.scaled(), p.masks) for p in labelled]
    trainer = trainer_for(model, Streams(examples, (), VIEWS), folder, budget, Arm(pool="none"))
    trainer.train()
    trainer.save_model(str(folder))
    return model.eval()


def train_arm(arm: Arm, base: Segmenter, labelled, pool, folder: Path, budget: Budget) -> tuple[Segmenter, dict]:
    """The arm's model and what was mined for it, round by round."""
    set_seed(budget.seed)
    model, mined = deepcopy(base), []
    for number in range(arm.rounds):
        steps = budget.steps * (number + 1) // arm.rounds - budget.steps * number // arm.rounds
        reference = base if arm.kept_reference else deepcopy(model).eval()
        truths, unlabelled, report = examples_for(
            arm, deepcopy(model).eval(), reference, labelled, pool, budget.seed + number
        )
        mined.append(report)
        share = Budget(steps, budget.batch_size, budget.learning_rate, budget.seed + number)
        trainer = trainer_for(model, Streams(truths, unlabelled, VIEWS), folder, share, arm)
        trainer.train()
        report |= {"seconds": trainer.state.log_history[-1]["train_runtime"], "log": trainer.state.log_history[:-1]}
    return model.eval(), {"rounds": mined}


def trainer_for(model, streams: Streams, folder: Path, budget: Budget, arm: Arm) -> MedicalTrainer:
    settings = MedicalArguments(
        output_dir=str(folder), max_steps=budget.steps, per_device_train_batch_size=budget.batch_size,
        learning_rate=budget.learning_rate, lr_scheduler_type="cosine", warmup_steps=min(20, budget.steps // 10),
        weight_decay=0.01, max_grad_norm=5.0, seed=budget.seed, save_strategy="no", report_to="none",
        disable_tqdm=True, logging_steps=40, preference_weight=arm.preference_weight, winner_weight=arm.winner_weight,
        use_cpu=not torch.cuda.is_available(), average=0.98,
    )  # fmt: skip
    return MedicalTrainer(model, settings, train_dataset=streams, supervised=arm.supervised, preference=arm.preference)


def hypotheses(segmenter: Segmenter, pictures: torch.Tensor, names: Sequence[str], seed: int) -> torch.Tensor:
    """Four flips and four dropout samples of each picture, (B, 8, K, H, W)."""
    flips_BKC = flip_hypotheses(segmenter, pictures, VIEWS)
    return torch.cat([flips_BKC, dropout_hypotheses(segmenter, pictures, [0.1, 0.2, 0.3, 0.4], seed, names)], dim=1)


def judge_for(arm: Arm, truths: dict[str, torch.Tensor]):
    """The judge by its name; the oracle alone sees the truth."""

    def by_agreement(c: Candidates):
        return agreement(c.masks, c.consensus > 0.5)

    def by_certainty(c: Candidates):
        return certainty(c.probabilities, c.masks)

    def by_truth(c: Candidates):
        return dice_with_truth(c.masks, truths[c.name])

    def by_size(c: Candidates):
        return c.masks.flatten(1).double().mean(1) ** 0.5

    return {"agreement": by_agreement, "certainty": by_certainty, "oracle": by_truth, "large": by_size}[arm.judge]


def mined_pairs(arm: Arm, model, pictures: Sequence[Picture], seed: int) -> MaskMining:
    judge = judge_for(arm, {p.name: p.masks for p in pictures})
    found = mine_masks(
        model, [p.scaled() for p in pictures], [p.name for p in pictures], partial(hypotheses, seed=seed), judge,
        lambda qualities, _: best_against_worst(qualities, MARGIN),
    )  # fmt: skip
    for at, wrong in enumerate(flips(len(found.pairs), arm.flips, item_seed(seed, "flips"))):
        if wrong:
            better, worse, gap = found.pairs[at]
            found.pairs[at] = (worse, better, gap)
    return found


def examples_for(arm: Arm, model, reference, labelled, pool, seed: int) -> tuple[list, list, dict]:
    """Labelled and pool examples of a round, and the report on what was mined."""
    truths = [Example(p.scaled(), p.masks) for p in labelled]
    if arm.pool == "truth":
        return truths, [Example(p.scaled(), p.masks) for p in pool], {}
    if arm.pool == "pseudo":
        return truths, [Example(p.scaled(), m) for p, m in zip(pool, consensus_masks(model, pool), strict=True)], {}
    if arm.pool == "none" and not arm.paired_labels:
        return truths, [], {}
    pictures = labelled if arm.paired_labels else pool
    found = mined_pairs(arm, model, pictures, seed)
    kept = [pictures[i] for i in found.rows]
    pairs = with_reference(reference, model.settings.activation, [p.scaled() for p in kept], found.pairs, VIEWS)
    chosen, rejected, _ = zip(*found.pairs, strict=True)
    quality = judge_report(torch.stack(chosen), torch.stack(rejected), torch.stack([p.masks for p in kept]))
    report = found.summary() | {"judge_on_pairs": quality.__dict__}
    return truths, [Example(p.scaled(), None, pair) for p, pair in zip(kept, pairs, strict=True)], report


@torch.no_grad()
def predictions(model: Segmenter, pictures: Sequence[Picture], with_flips: bool, batch_size: int = 32):
    """Logits (N, K, H, W); with flips the logit of the mean probability."""
    model.eval()
    found = []
    for start in range(0, len(pictures), batch_size):
        batch = torch.stack([p.scaled() for p in pictures[start : start + batch_size]])
        if with_flips:
            found.append(flip_hypotheses(model, batch, VIEWS).sigmoid().mean(1).logit(eps=1e-6))
        else:
            found.append(model(batch))
    return torch.cat(found)


def consensus_masks(model: Segmenter, pictures: Sequence[Picture]) -> torch.Tensor:
    return predictions(model, pictures, True) > 0


def calibrated_threshold(model: Segmenter, dev: Sequence[Picture], with_flips: bool) -> float:
    """The logit with the best mean Dice on dev, of a grid."""
    logits = predictions(model, dev, with_flips)
    scored = []
    for threshold in torch.linspace(-3, 3, 25).tolist():
        pairs = zip(logits, dev, strict=True)
        dice = sum(float(dice_with_truth((own > threshold)[None], p.masks)[0]) for own, p in pairs) / len(dev)
        scored.append((dice, -abs(threshold), threshold))
    return max(scored)[2]
