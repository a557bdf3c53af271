"""Trains a medical segmenter on labels, then on preferences between its own masks: MAPO, RN-DPO, Pareto-guided.

    L="accelerate launch --config_file accelerate_config.yaml"
    $L recipes/medical.py --config recipes/medical/rn_dpo_unet2d.yaml --data DATA

DATA is a folder with images/ and masks/, or one with a dataset.json (MSD, nnU-Net raw). Patients are split into
labelled, pool and dev. Pairs come from the labelled cases (MAPO, `pairs_from: labelled`) or from the pool, whose
labels only `judge: truth` may see. Any other judge is tried on labelled cases first and refused where it would harm.
`pairs_from: annotators` prefers masks/ to what others drew of the labelled cases, in masks_2/, masks_3/ …
"""

from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import set_seed

from popen.data.medical_sources import read_labelled_cases
from popen.data.patient_splits import first_patients, split_by_patient
from popen.data.safe_io import DataError, write_json
from popen.medical.annotators import annotated_examples
from popen.medical.calibration import calibrate_threshold
from popen.medical.cohort import Prepared, prepare
from popen.medical.examples import Streams
from popen.medical.pair_choices import PairArguments
from popen.medical.pair_rounds import paired_examples, tried_judge
from popen.medical.segmenter import Segmenter, SegmenterConfig
from popen.medical.supervised import cross_entropy_dice, fuzzy, geols, intuitionistic, pareto_guided, svls
from popen.medical.transforms import Preprocessing
from popen.medical.views import flip_views
from popen.objectives.preference import conservative_loss, ipo_loss, robust_loss, sigmoid_loss
from popen.objectives.region_pairs import class_mean, image_mean, region_dpo, region_mean, total
from popen.recipe import run
from popen.training.callbacks import finish, use_all_cores
from popen.training.medical import MedicalArguments, MedicalTrainer

MARGINS = {"region_mean": region_mean, "sum": total, "image_mean": image_mean, "class_mean": class_mean}


@dataclass
class ScriptArguments:
    """Data, network and stages."""

    data: str = field(metadata={"help": "Folder with images/ and masks/, or with a dataset.json."})
    network: str = field(default="unet", metadata={"help": "A name of popen.medical.networks."})
    network_options: dict[str, Any] = field(default_factory=dict, metadata={"help": "Its keyword arguments."})
    activation: Literal["sigmoid", "softmax"] = field(
        default="sigmoid", metadata={"help": "Independent regions, or classes."}
    )
    regions: list[str] = field(
        default_factory=lambda: ["foreground"], metadata={"help": "Names of the masks; dataset.json has its own."}
    )
    patch_size: list[int] = field(default_factory=lambda: [128, 128], metadata={"help": "Voxels per axis."})
    spacing: list[float] | None = field(default=None, metadata={"help": "mm to resample to; each case's own."})
    scale: Literal["z-score", "range", "8-bit"] = field(default="z-score", metadata={"help": "Of intensities."})
    fit: Literal["pad", "resize"] = field(default="pad", metadata={"help": "Pad or resize to the patch size."})
    dropout: float = field(default=0.1, metadata={"help": "Of the network; injected where it has none."})
    patient: str | None = field(default=None, metadata={"help": "Regular expression for the patient in a name."})
    dev_share: float = field(default=0.2, metadata={"help": "Share of patients that the threshold is found on."})
    labelled: int | None = field(default=None, metadata={"help": "Patients with labels; all by default."})
    base_steps: int = field(default=600, metadata={"help": "Supervised steps before preferences."})
    base_learning_rate: float = field(default=1e-3, metadata={"help": "Of these steps."})
    supervised: Literal["cross_entropy_dice", "svls", "geols", "fuzzy", "intuitionistic", "pareto"] = field(
        default="cross_entropy_dice", metadata={"help": "The loss on labels."}
    )
    band: float = field(default=2.0, metadata={"help": "mm to either side of a boundary that count as uncertain."})
    pairs_from: Literal["labelled", "pool", "annotators"] = field(
        default="pool", metadata={"help": "Where pairs are mined, or people who drew the same pictures."}
    )
    rounds: int = field(default=1, metadata={"help": "Parts of max_steps that start with pairs mined anew."})
    refresh_reference: bool = field(default=True, metadata={"help": "The reference is the model of each round."})
    margin: Literal["region_mean", "sum", "image_mean", "class_mean"] = field(
        default="region_mean", metadata={"help": "How the margin is normalised; region_mean is RN-DPO."}
    )
    loss: Literal["sigmoid", "ipo", "cdpo", "rdpo"] = field(default="sigmoid", metadata={"help": "On the margin."})
    beta: float = field(default=1.0, metadata={"help": "β of the margin."})
    label_smoothing: float = field(default=0.1, metadata={"help": "ε of cdpo and rdpo."})


def main(script: ScriptArguments, pairs: PairArguments, training: MedicalArguments) -> None:
    set_seed(training.seed)
    use_all_cores()
    drawn = script.pairs_from == "annotators"
    references, regions = read_labelled_cases(script.data, script.regions, script.activation, script.patient, drawn)
    channels = references[0].load().image_CHW.shape[0]
    config = SegmenterConfig(
        script.network, len(script.patch_size), channels, regions, script.activation, tuple(script.patch_size),
        script.dropout, spacing=tuple(script.spacing) if script.spacing else None, options=script.network_options,
    )  # fmt: skip
    preprocessing = Preprocessing(config.patch_size, config.spacing, script.scale, script.fit)
    dev, labelled, pool = cohorts(script, pairs, references, preprocessing, training.seed)
    print(f"{len(labelled)} labelled, {len(pool)} in the pool, {len(dev)} dev windows; {', '.join(regions)}")

    model = Segmenter(config)
    rate = {"learning_rate": script.base_learning_rate, "max_steps": script.base_steps}
    out = Path(training.output_dir)  # each stage leaves its model and its log in a folder of its own
    truths = [truth(script, own) for own in labelled]
    fit(model, script, replace(training, output_dir=str(out / "base"), **rate), preprocessing, dev, truths, [])
    reference = deepcopy(model).eval()
    for number in range(script.rounds if training.preference_weight or training.winner_weight else 0):
        if pairs.judge != "truth" and not drawn:
            print(f"the judge on labelled pictures: {tried_judge(model, labelled, pairs, training.seed)}")
        source = pool if script.pairs_from == "pool" else labelled
        before = deepcopy(model).eval() if script.refresh_reference else reference
        if drawn:
            examples, summary = annotated_examples(before, source, pairs.least_gap)
        else:
            examples, summary = paired_examples(model, before, source, pairs, training.seed + number)
        print(f"round {number + 1} of {script.rounds}: {summary}")
        share = {"max_steps": training.max_steps // script.rounds, "seed": training.seed + number}
        share["output_dir"] = str(out / f"round_{number + 1}")
        fit(model, script, replace(training, **share), preprocessing, dev, truths, examples)
    threshold, dice = calibrate_threshold(model, dev)
    model.settings = replace(model.settings, threshold=threshold)
    model.save_pretrained(out)
    preprocessing.save_pretrained(out)
    write_json(out / "pairs.json", asdict(pairs))
    print(f"{out}: threshold {threshold:+.2f}, dev Dice {dice:.4f} on {len(dev)} windows")


def cohorts(
    script: ScriptArguments, pairs: PairArguments, references, preprocessing: Preprocessing, seed: int
) -> tuple[list[Prepared], list[Prepared], list[Prepared]]:
    """Dev, labelled and pool; the pool's masks are loaded for `judge: truth` alone."""
    patients = [own.patient for own in references]
    split = split_by_patient(patients, {"train": 1 - script.dev_share, "dev": script.dev_share}, seed)
    train = [references[i] for i in split["train"]]
    names = [own.patient for own in train]
    count = script.labelled or len(set(names))
    kept = set(first_patients(names, count, seed))
    rest = [own for i, own in enumerate(train) if i not in kept]
    if script.pairs_from == "pool" and not rest:
        raise DataError(f"labelled = {count}: all patients are labelled and none is left for pairs_from: pool")
    size = tuple(script.patch_size)
    labelled = prepare([train[i] for i in sorted(kept)], preprocessing, size, labelled=True)
    pool = prepare(rest, preprocessing, size, labelled=pairs.judge == "truth")
    return prepare([references[i] for i in split["dev"]], preprocessing, size, labelled=True), labelled, pool


def truth(script: ScriptArguments, own: Prepared):
    return own.example(
        distance=script.supervised in ("fuzzy", "intuitionistic", "pareto"), geodesic=script.supervised == "geols"
    )


def fit(model: Segmenter, script: ScriptArguments, args: MedicalArguments, preprocessing, dev, labelled, pool) -> None:
    losses = {"sigmoid": sigmoid_loss, "ipo": ipo_loss, "cdpo": conservative_loss, "rdpo": robust_loss}
    smoothing = {"label_smoothing": script.label_smoothing} if script.loss in ("cdpo", "rdpo") else {}
    supervised = {
        "cross_entropy_dice": cross_entropy_dice, "svls": svls, "geols": geols,
        "fuzzy": partial(fuzzy, band=script.band), "intuitionistic": partial(intuitionistic, band=script.band),
        "pareto": partial(pareto_guided, band=script.band),
    }[script.supervised]  # fmt: skip
    trainer = MedicalTrainer(
        model, args, train_dataset=Streams(labelled, pool, flip_views(model.settings.spatial_dims)), eval_dataset=dev,
        processor=preprocessing, supervised=partial(supervised, activation=script.activation),
        preference=partial(
            region_dpo, margin=MARGINS[script.margin], loss=partial(losses[script.loss], beta=script.beta, **smoothing)
        ),
    )  # fmt: skip
    trainer.train()
    finish(trainer)


if __name__ == "__main__":
    torch.multiprocessing.set_sharing_strategy("file_system")
    run(main, ScriptArguments, PairArguments, MedicalArguments)
