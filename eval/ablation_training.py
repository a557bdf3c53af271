"""Trains one run of one arm of a study; everything but the arm's objectives is the same for all of them."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import set_seed

from eval.ablation_arms import Arm
from popen.data.schema import load_split
from popen.lvlm.loading import load_model
from popen.lvlm.mining import PATIENCE, MiningArguments, load_mined, mine
from popen.objectives.pairs import SegObjective, seg_gap_between
from popen.preference.curriculum import STAGES, rejected_at
from popen.preference.mining import Ranking
from popen.preference.pair_selection import Selection, pair_traits, select_pairs
from popen.preference.reference import check_fingerprint, model_fingerprint
from popen.training.callbacks import finish
from popen.training.preference import PreferenceArguments, PreferenceStreams, PreferenceTrainer


def train_arm(
    arm: Arm, model: str, preferences: str, dataset: str, selection: Selection, refresh_rows: int, folder: Path,
    max_steps: int, seed: int, **settings,
) -> None:  # fmt: skip
    """All rounds of an arm; the model goes to `folder`, what earlier rounds left to folders below it."""
    for number in range(arm.rounds):
        last = number == arm.rounds - 1
        out = folder if last else folder / f"round{number}"
        steps = max_steps * (number + 1) // arm.rounds - max_steps * number // arm.rounds
        train_round(arm, model, preferences, dataset, selection, out, max_steps=steps, seed=seed, **settings)
        if not last:
            fresh = folder / f"mined{number}"
            mine_again(str(out), preferences, dataset, refresh_rows, fresh, seed=seed + 1 + number)
            model, preferences = str(out), str(fresh)


def train_round(
    arm: Arm, model: str, preferences: str, dataset: str, selection: Selection, folder: Path, **settings
) -> None:
    """One training on preferences that were mined from the model it starts with."""
    set_seed(settings["seed"])
    text, seg, report = load_mined(preferences)
    check_fingerprint(report["model"], model_fingerprint(model), "model", preferences)
    source = load_split(dataset, "train")
    check_fingerprint(report["data"], source._fingerprint, "data set", preferences)
    text = text.select(select_pairs(pair_traits(text), selection, settings["seed"]))
    localise, refine = arm.seg, arm.refine
    if arm.gap_quantile is not None:
        localise, refine = from_clear_to_close(arm.seg, seg_gaps(seg["targets"]), arm.gap_quantile)
    policy, processor = load_model(model)
    arguments = PreferenceArguments(
        output_dir=str(folder), warmup_steps=10, lr_scheduler_type="cosine", save_strategy="no", report_to="none",
        disable_tqdm=True, text_weight=arm.text_weight, seg_weight=arm.seg_weight, localise_share=arm.localise_share,
        use_cpu=not torch.cuda.is_available(), **settings,
    )  # fmt: skip
    trainer = PreferenceTrainer(
        policy, arguments, train_dataset=PreferenceStreams(text, seg, source), processor=processor,
        text_objective=arm.text, seg_objective=localise, refine_objective=refine,
    )  # fmt: skip
    trainer.train()
    finish(trainer)


def mine_again(model: str, preferences: str, dataset: str, rows: int, folder: Path, seed: int) -> None:
    """Preferences of a model as it now is, with the settings of the first ones and other draws."""
    settings = load_mined(preferences)[2]["settings"]
    arguments = MiningArguments(**{k: v for k, v in settings.items() if k not in PATIENCE} | {"seed": seed})
    policy, processor = load_model(model)
    policy.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    source = load_split(dataset, "train")
    mine(policy, processor, source, range(min(rows, len(source))), model, str(folder), arguments)


def seg_gaps(pictures: Iterable[list[dict]]) -> dict[int, np.ndarray]:
    """IoU gaps between superior and rejected candidate of all mined targets, by curriculum stage."""
    gaps: dict[int, list[float]] = {stage: [] for stage in STAGES}
    for target in (target for targets in pictures for target in targets):
        ranking = Ranking(target["superior"], target["medium"], target["inferior"])
        for stage in STAGES:
            rejected = rejected_at(stage, ranking)
            if rejected >= 0:
                gaps[stage].append(target["ious"][ranking.superior] - target["ious"][rejected])
    return {stage: np.asarray(own) for stage, own in gaps.items()}


def from_clear_to_close(
    objective: SegObjective, gaps: dict[int, np.ndarray], quantile: float
) -> tuple[SegObjective, SegObjective]:
    """The objective of stage 1, on gaps above their quantile, and of stage 2, on gaps below theirs."""
    first, second = (float(np.quantile(gaps[stage], quantile)) if len(gaps[stage]) else 0.0 for stage in STAGES)
    return (
        partial(seg_gap_between, objective=objective, least=first, most=np.inf),
        partial(seg_gap_between, objective=objective, least=0.0, most=second),
    )
