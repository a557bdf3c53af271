"""Trains the base and the arms of the medical study; what an arm does not name is the same for all of them."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace

import torch
from transformers import set_seed

from eval.mean_teacher import MeanTeacherTrainer
from eval.medical_study_arms import Arm
from popen.medical.cohort import Prepared
from popen.medical.examples import Example, Streams
from popen.medical.loss_choices import BandArguments, maps_of, named_supervised
from popen.medical.mining import Candidates, MaskMining
from popen.medical.pair_choices import PairArguments, sampler_of
from popen.medical.pair_rounds import examples_of, mined, report_on
from popen.medical.segmenter import Segmenter, SegmenterConfig
from popen.medical.views import flip_views
from popen.training.medical import MedicalArguments, MedicalTrainer


@dataclass(frozen=True)
class Budget:
    """What every arm may spend: steps, and pictures per step, a half from the pool where an arm uses it."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    average: float


LOOKS = 5  # at dev on the way, for curves; nothing is chosen by them


def train_base(
    config: SegmenterConfig, labelled: Sequence[Prepared], dev: Sequence[Prepared], budget: Budget
) -> Segmenter:
    """Supervised training on the labelled few, from scratch."""
    set_seed(budget.seed)
    model = Segmenter(config)
    fit(model, Arm(), [case.example() for case in labelled], [], dev, budget)
    return model.eval()


def train_arm(
    arm: Arm,
    base: Segmenter,
    labelled: Sequence[Prepared],
    pool: Sequence[Prepared],
    dev: Sequence[Prepared],
    budget: Budget,
) -> tuple[Segmenter, list[dict]]:
    """The arm's model, and what was mined and logged in each of its rounds."""
    set_seed(budget.seed)
    model, reports = deepcopy(base), []
    for number in range(arm.rounds):
        seed = budget.seed + number
        before = deepcopy(model).eval()
        truths, extra, report = examples_for(arm, before, base if arm.keep_reference else before, labelled, pool, seed)
        steps = budget.steps * (number + 1) // arm.rounds - budget.steps * number // arm.rounds
        trainer = fit(model, arm, truths, extra, dev, replace(budget, steps=steps, seed=seed))
        *log, last = trainer.state.log_history
        reports.append(report | {"seconds": last["train_runtime"], "log": log})
    return model.eval(), reports


def fit(
    model: Segmenter,
    arm: Arm,
    labelled: list[Example],
    pool: list[Example],
    dev: Sequence[Prepared],
    budget: Budget,
) -> MedicalTrainer:
    views = flip_views(model.settings.spatial_dims)
    settings = MedicalArguments(
        output_dir="runs/medical_study", max_steps=budget.steps, learning_rate=budget.learning_rate,
        per_device_train_batch_size=budget.batch_size // 2 if arm.uses_pool else budget.batch_size,
        lr_scheduler_type="cosine", warmup_steps=min(20, budget.steps // 10), weight_decay=0.01, max_grad_norm=5.0,
        seed=budget.seed, save_strategy="no", report_to="none", logging_steps=40, average=budget.average,
        preference_weight=arm.preference_weight, winner_weight=arm.winner_weight, disable_tqdm=True,
        eval_strategy="steps", eval_steps=max(1, budget.steps // LOOKS),
        dataloader_drop_last=True,  # every step is as large as every other
    )  # fmt: skip
    kind = MeanTeacherTrainer if arm.teacher else MedicalTrainer
    trainer = kind(
        model, settings, train_dataset=Streams(labelled, pool, views), eval_dataset=dev,
        supervised=named_supervised(arm.supervised, BandArguments(), model.settings.activation),
        preference=arm.preference,
    )  # fmt: skip
    trainer.train()
    return trainer


def examples_for(
    arm: Arm,
    model: Segmenter,
    reference: Segmenter,
    labelled: Sequence[Prepared],
    pool: Sequence[Prepared],
    seed: int,
) -> tuple[list[Example], list[Example], dict]:
    """Labelled examples, those of the second stream, and a report on what was mined for it."""
    truths = [case.example(**maps_of(arm.supervised)) for case in labelled]
    if arm.teacher:
        return truths, [Example(case.picture) for case in pool], {}
    if arm.pool_labels == "truth":
        return truths, [case.example() for case in pool], {}
    extra, report = [], {}
    if arm.pool_labels == "consensus":
        masks = consensus_masks(arm, model, pool, seed)
        extra += [Example(case.picture, own) for case, own in zip(pool, masks, strict=True)]
    if arm.pairs_from != "none" or arm.pool_labels == "winners":
        source = labelled if arm.pairs_from == "labelled" else pool
        found = mined_pairs(arm, model, source, seed)
        if arm.pool_labels == "winners":
            kept = [source[row] for row in found.rows]
            winners = [Example(case.picture, pair[0]) for case, pair in zip(kept, found.pairs, strict=True)]
            extra += winners * (1 if arm.pairs_from == "none" else arm.winners_per_pair)
        if arm.pairs_from != "none":
            extra += examples_of(list(zip(found.rows, found.pairs, strict=True)), reference, source)
        # the study knows the pool's truth, training does not
        report = found.summary() | {"judge": asdict(report_on(found, model, source))}
    return truths, extra, report


def mined_pairs(arm: Arm, model: Segmenter, cases: Sequence[Prepared], seed: int) -> MaskMining:
    return mined(model, cases, PairArguments(**arm.choices), seed, judge=by_size if arm.large else None)


def by_size(candidates: Candidates) -> torch.Tensor:
    """A judge that prefers large masks."""
    return candidates.regions.flatten(1).double().mean(1).sqrt()


def consensus_masks(
    arm: Arm, model: Segmenter, cases: Sequence[Prepared], seed: int, batch_size: int = 16
) -> torch.Tensor:
    """What all hypotheses of an arm agree on, their mean probability, bool (N, K, *spatial)."""
    settings, device, found = model.settings, next(model.parameters()).device, []
    choices = PairArguments(**arm.choices | {"consensus": True})
    sampler = sampler_of(choices, settings.spatial_dims, settings.dropout, seed)
    for start in range(0, len(cases), batch_size):
        batch = cases[start : start + batch_size]
        pictures = torch.stack([case.picture for case in batch]).to(device)
        logits = sampler(model, pictures, [case.name for case in batch])
        found.append(model.masks_from(logits[:, -1]).cpu())  # the consensus comes last
    return torch.cat(found)
