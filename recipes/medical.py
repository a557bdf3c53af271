"""Trains a medical segmenter on labels, then on preferences between its own masks: MAPO, RN-DPO, Pareto-guided.

    L="accelerate launch --config_file accelerate_config.yaml"
    $L recipes/medical.py --config recipes/medical/rn_dpo_unet2d.yaml --data DATA

DATA is a folder with images/ and masks/ or labels/, or one with a dataset.json (MSD, nnU-Net raw). Patients are split
into labelled, pool, dev and, with a `test_share`, test; `splits.json` in the output folder has their cases for
`eval.medical`. Pictures of `pool: FOLDER`, which nobody labelled, join the pool. Pairs come from the labelled cases
(MAPO, `pairs_from: labelled`) or from the pool, whose labels only `judge: truth` may see. Any other judge is tried on
labelled cases first, and refused or weighed where it would harm; `judge: regressor` learns on half of them and is
tried on the rest. `pairs_from: annotators` prefers masks/ to what others drew of the labelled cases, in masks_2/ …
"""

from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import set_seed

from popen.data.medical_sources import read_labelled_cases
from popen.data.patient_splits import write_splits
from popen.data.safe_io import DataError, write_json
from popen.data.unlabelled_pool import read_unlabelled_cases
from popen.distributed.cores import use_all_cores
from popen.medical.annotators import annotated_examples
from popen.medical.calibration import calibrated
from popen.medical.cohort import Prepared
from popen.medical.data_split import prepare_parts, split_cases
from popen.medical.examples import Streams
from popen.medical.loss_choices import LossArguments, objective_of, supervised_of
from popen.medical.pair_choices import PairArguments
from popen.medical.pair_rounds import paired_examples, steps_of_rounds, taught_judge, tried_judge
from popen.medical.segmenter import Segmenter, SegmenterConfig
from popen.medical.transforms import Preprocessing
from popen.medical.views import flip_views
from popen.recipe import run
from popen.training.callbacks import finish
from popen.training.medical import MedicalArguments, MedicalTrainer
from popen.training.optimizer_states import check_optimizer


@dataclass
class ScriptArguments:
    """Data, network and stages."""

    data: str = field(metadata={"help": "Folder with images/ and masks/ or labels/, or with a dataset.json."})
    pool: str | None = field(
        default=None, metadata={"help": "Folder of pictures without labels, as images/ or a dataset.json's Ts."}
    )
    network: str = field(default="unet", metadata={"help": "A name of popen.medical.networks."})
    network_options: dict[str, Any] = field(default_factory=dict, metadata={"help": "Its keyword arguments."})
    activation: Literal["sigmoid", "softmax"] = field(
        default="sigmoid", metadata={"help": "Independent regions, or classes."}
    )
    regions: list[str] = field(
        default_factory=lambda: ["foreground"], metadata={"help": "Names of the masks; dataset.json has its own."}
    )
    label_ids: list[int] | None = field(
        default=None, metadata={"help": "Of each region in the label maps of labels/; 1, 2 … by default."}
    )
    patch_size: list[int] = field(default_factory=lambda: [128, 128], metadata={"help": "Voxels per axis."})
    spacing: list[float] | None = field(default=None, metadata={"help": "mm to resample to; each case's own."})
    scale: Literal["z-score", "range", "8-bit"] = field(default="z-score", metadata={"help": "Of intensities."})
    fit: Literal["pad", "resize"] = field(default="pad", metadata={"help": "Pad or resize to the patch size."})
    dropout: float = field(default=0.1, metadata={"help": "Of the network; injected where it has none."})
    patient: str | None = field(default=None, metadata={"help": "Regular expression for the patient in a name."})
    dev_share: float = field(default=0.2, metadata={"help": "Share of patients that the threshold is found on."})
    test_share: float = field(default=0.0, metadata={"help": "Share of patients that nothing here looks at."})
    labelled: int | None = field(default=None, metadata={"help": "Patients with labels; all by default."})
    base_steps: int = field(default=600, metadata={"help": "Supervised steps before preferences."})
    base_learning_rate: float = field(default=1e-3, metadata={"help": "Of these steps."})
    pairs_from: Literal["labelled", "pool", "annotators"] = field(
        default="pool", metadata={"help": "Where pairs are mined, or people who drew the same pictures."}
    )
    rounds: int = field(default=1, metadata={"help": "Parts of max_steps that start with pairs mined anew."})
    refresh_reference: bool = field(default=True, metadata={"help": "The reference is the model of each round."})


def main(script: ScriptArguments, pairs: PairArguments, losses: LossArguments, training: MedicalArguments) -> None:
    check_optimizer(training)
    steps = checked_rounds(script, pairs, training)
    set_seed(training.seed)
    use_all_cores()
    drawn = script.pairs_from == "annotators"
    references, regions = read_labelled_cases(
        script.data, script.regions, script.activation, script.patient, drawn, script.label_ids
    )
    channels = references[0].load().image_CHW.shape[0]
    config = SegmenterConfig(
        script.network, len(script.patch_size), channels, regions.names, script.activation,
        tuple(script.patch_size), script.dropout, spacing=tuple(script.spacing) if script.spacing else None,
        options=script.network_options, label_ids=regions.ids,
    )  # fmt: skip
    preprocessing = Preprocessing(config.patch_size, config.spacing, script.scale, script.fit)
    dev, labelled, pool = cohorts(script, pairs, references, preprocessing, training, channels)
    print(f"{len(labelled)} labelled, {len(pool)} in the pool, {len(dev)} dev windows; {', '.join(regions.names)}")

    model = Segmenter(config)
    rate = {"learning_rate": script.base_learning_rate, "max_steps": script.base_steps}
    out = Path(training.output_dir)  # each stage leaves its model and its log in a folder of its own
    truths = [own.example(**losses.maps) for own in labelled]
    learn = partial(
        fit, model, preprocessing=preprocessing, dev=dev, labelled=truths, preference=objective_of(losses),
        supervised=supervised_of(losses, script.activation),
    )  # fmt: skip
    learn(replace(training, output_dir=str(out / "base"), **rate), pool=[])
    judged = bool(steps) and not drawn
    regressor, unseen = taught_judge(model, labelled, pairs, training.seed) if judged else (None, labelled)
    reference, weights = deepcopy(model).eval(), None
    for number, own_steps in enumerate(steps):
        if judged and pairs.judge != "truth":
            tried = tried_judge(model, unseen, pairs, training.seed, regressor)
            weights = tried.weights
            print(f"the judge on labelled pictures ({len(unseen)} that it has not learned on): {tried}")
        source = pool if script.pairs_from == "pool" else labelled
        before, seed = deepcopy(model).eval() if script.refresh_reference else reference, training.seed + number
        if drawn:
            examples, summary = annotated_examples(before, source, pairs.least_gap)
        else:
            examples, summary = paired_examples(model, before, source, pairs, seed, regressor, weights)
        print(f"round {number + 1} of {script.rounds}: {summary}")
        share = {"max_steps": own_steps, "seed": seed}
        learn(replace(training, output_dir=str(out / f"round_{number + 1}"), **share), pool=examples)
    model.settings, found = calibrated(model, dev)
    model.save_pretrained(out)
    preprocessing.save_pretrained(out)
    write_json(out / "pairs.json", asdict(pairs))
    print(f"{out}: {found} on {len(dev)} windows")


def checked_rounds(script: ScriptArguments, pairs: PairArguments, training: MedicalArguments) -> list[int]:
    """The steps of each round of preferences; what cannot be done is refused before anything is read."""
    if training.resume_from_checkpoint:
        raise DataError("resume_from_checkpoint: a run has stages with mining between them; leave it out, start anew")
    preferred = training.preference_weight or training.winner_weight
    if script.pool and (script.pairs_from != "pool" or not preferred):
        raise DataError(
            "pool: used with pairs_from: pool and a preference or winner weight; set them, or leave it out"
        )
    if script.pool and pairs.judge == "truth":
        raise DataError("pool: nobody labelled it, and judge: truth needs labels; take another judge, or leave it out")
    return steps_of_rounds(training.max_steps, script.rounds) if preferred else []


def cohorts(
    script: ScriptArguments, pairs: PairArguments, references, preprocessing: Preprocessing, training, channels: int
) -> tuple[list[Prepared], list[Prepared], list[Prepared]]:
    """Dev, labelled and pool, whose names are written down; the pool's masks are loaded for `judge: truth` alone."""
    further = read_unlabelled_cases(script.pool, channels, script.patient) if script.pool else []
    parts = split_cases(
        references, script.dev_share, script.test_share, script.labelled, training.seed, further, bool(script.patient)
    )
    if script.pairs_from == "pool" and not parts["pool"] and not further:
        raise DataError(f"labelled = {script.labelled}: all patients are, none is left for the pool; label less")
    write_splits(training.output_dir, {name: [own.case_id for own in part] for name, part in parts.items()})
    return prepare_parts(parts, preprocessing, tuple(script.patch_size), pairs.judge == "truth")


def fit(
    model: Segmenter, training: MedicalArguments, *, preprocessing: Preprocessing, dev, labelled, pool, **losses
) -> None:
    streams = Streams(labelled, pool, flip_views(model.settings.spatial_dims))
    trainer = MedicalTrainer(
        model, training, train_dataset=streams, eval_dataset=dev, processor=preprocessing, **losses
    )  # fmt: skip
    trainer.train()
    finish(trainer)


if __name__ == "__main__":
    torch.multiprocessing.set_sharing_strategy("file_system")
    run(main, ScriptArguments, PairArguments, LossArguments, MedicalArguments)
