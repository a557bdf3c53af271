"""Preference recipes side by side on one data set with few labels: same base, same budget, several labelled subsets.

    python -m eval.medical_study --config eval/studies/polyps.yaml --train DATA/train --test DATA/validation

Every arm keeps the average of its weights at the last step, and its threshold is calibrated on dev, with and without
flips at inference. A line per arm, subset and test case; what is done is not done again, so a stopped study goes on.
`python -m eval.medical_study_tables --study DIR` makes the tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm.auto import tqdm

from eval.medical_metrics import MedicalRow, ScoringProtocol, score_masks
from eval.medical_splits import scored_regions
from eval.medical_study_arms import ARMS
from eval.medical_study_training import Budget, train_arm, train_base
from eval.rows import write_rows
from popen.data.medical_case import CaseReference
from popen.data.medical_sources import read_labelled_cases
from popen.data.patient_splits import first_patients, split_by_patient
from popen.data.safe_io import DataError, write_json
from popen.distributed.cores import use_all_cores
from popen.medical.calibration import calibrate_threshold
from popen.medical.cohort import Prepared, prepare
from popen.medical.inference import batch_logits
from popen.medical.segmenter import Segmenter, SegmenterConfig
from popen.medical.transforms import Preprocessing
from popen.medical.views import flip_views
from popen.recipe import run

PEER_SEEDS = 1000  # between the seeds of a base and of its peers


@dataclass
class MedicalStudyArguments:
    """Data, network, budget and arms."""

    train: str = field(metadata={"help": "Folder with images/ and masks/, or a dataset.json, that splits come from."})
    output_dir: str = field(metadata={"help": "Where bases, rows and reports go."})
    test: str | None = field(default=None, metadata={"help": "A second folder, all of which is tested on as well."})
    labelled: int = field(default=80, metadata={"help": "Patients with labels, drawn for each subset."})
    pool: int = field(default=400, metadata={"help": "Patients whose labels only a declared judge sees; 0 is none."})
    dev: int = field(default=100, metadata={"help": "Patients that thresholds are calibrated on; never reported."})
    subsets: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of the labelled subsets."})
    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": "Of eval.medical_study_arms."})
    network: str = field(default="unet", metadata={"help": "As in popen.medical.networks."})
    network_options: dict[str, Any] = field(default_factory=dict, metadata={"help": "Its keyword arguments."})
    activation: Literal["sigmoid", "softmax"] = field(default="sigmoid", metadata={"help": "Regions or classes."})
    regions: list[str] = field(
        default_factory=lambda: ["foreground"], metadata={"help": "Names of the masks; dataset.json has its own."}
    )
    patch_size: list[int] = field(default_factory=lambda: [96, 96], metadata={"help": "Voxels per axis."})
    scale: Literal["z-score", "range", "8-bit"] = field(default="8-bit", metadata={"help": "Of intensities."})
    fit: Literal["pad", "resize"] = field(default="resize", metadata={"help": "Pad or resize to the patch size."})
    dropout: float = field(default=0.1, metadata={"help": "Rate in the network."})
    base_steps: int = field(default=1200, metadata={"help": "Supervised steps before every arm."})
    steps: int = field(default=300, metadata={"help": "Steps of every arm."})
    base_learning_rate: float = field(default=2e-3, metadata={"help": "Of the base."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Of the arms."})
    batch_size: int = field(default=16, metadata={"help": "Pictures per step, a half from the pool where it is used."})
    band: float = field(default=8.0, metadata={"help": "mm to either side of a boundary that are its band."})
    tolerance: float = field(default=4.0, metadata={"help": "mm of NSD."})
    average: float = field(default=0.98, metadata={"help": "Decay of the weights' average."})

    def __post_init__(self):
        unknown = [name for name in self.arms if name not in ARMS]
        if unknown:
            raise DataError(f"arms: {unknown[0]} is not one of {', '.join(ARMS)}")


def main(args: MedicalStudyArguments) -> None:
    use_all_cores()
    references, declared = read_labelled_cases(args.train, args.regions, args.activation, None, annotators=False)
    splits = split(references, args)
    channels = references[0].load().image_CHW.shape[0]
    config = SegmenterConfig(
        args.network, len(args.patch_size), channels, declared.names, args.activation, tuple(args.patch_size),
        args.dropout, options=args.network_options, label_ids=declared.ids,
    )  # fmt: skip
    dev, test = (prepared([references[i] for i in splits[name]], args) for name in ("dev", "test"))
    if args.test:
        others = prepared(
            read_labelled_cases(args.test, args.regions, args.activation, None, annotators=False)[0], args
        )
        prefix = f"{Path(args.test).name}/"  # names may stand in both folders
        test += [replace(case, name=prefix + case.name, patient=prefix + case.patient) for case in others]
    names = [references[i].patient for i in splits["train"]]
    print(f"{args.labelled} labelled, {args.pool} in the pool, {len(dev)} dev and {len(test)} test cases")
    cases = prepared([references[i] for i in splits["train"]], args)
    for subset in args.subsets:
        chosen = set(first_patients(names, args.labelled, subset))
        labelled = [case for i, case in enumerate(cases) if i in chosen]
        pool = [case for i, case in enumerate(cases) if i not in chosen]
        run_subset(args, config, subset, (labelled, pool), (dev, test))


def split(references: Sequence[CaseReference], args: MedicalStudyArguments) -> dict[str, tuple[int, ...]]:
    """Patients of dev, of training (labelled and pool) and of test, the same for all subsets."""
    patients = [own.patient for own in references]
    count, need = len(set(patients)), args.dev + args.labelled + args.pool
    if need > count or (need == count and args.test is None):
        raise DataError(f"{args.train}: {count} patients; dev, labelled and pool take {need} and leave no test")
    shares = {"dev": args.dev, "train": args.labelled + args.pool, "test": count - need}
    return {"test": ()} | split_by_patient(patients, {k: v / count for k, v in shares.items() if v}, 2026)


def run_subset(args: MedicalStudyArguments, config: SegmenterConfig, subset: int, trained_on, scored) -> None:
    folder = Path(args.output_dir) / f"subset{subset}"
    base = trained(folder / "base_model", args, config, subset, trained_on[0], scored[0])
    protocol = ScoringProtocol(args.tolerance, args.band)
    record(folder / "base", base, scored, protocol, [])
    budget = Budget(args.steps, args.batch_size, args.learning_rate, subset, args.average)
    for name in tqdm(args.arms, desc=f"subset {subset}", unit="arm"):
        if not (folder / name / "report.json").is_file():
            arm = ARMS[name]
            seats = [folder / "base_model", *(folder / f"peer_model{n + 1}" for n in range(arm.peers))]
            for number, seat in enumerate(seats[1:], 1):
                trained(seat, args, config, subset + PEER_SEEDS * number, trained_on[0], scored[0])
            if arm.peers:
                arm = replace(arm, choices=arm.choices | {"checkpoints": [str(seat) for seat in seats]})
            model, reports = train_arm(arm, base, *trained_on, scored[0], budget)
            record(folder / name, model, scored, protocol, reports)


def trained(folder: Path, args: MedicalStudyArguments, config: SegmenterConfig, seed: int, labelled, dev) -> Segmenter:
    """The network of this seed, trained on the labelled few alone; read from its folder where it is there already."""
    if not (folder / "model.safetensors").is_file():
        budget = Budget(args.base_steps, args.batch_size, args.base_learning_rate, seed, args.average)
        train_base(config, labelled, dev, budget).save_pretrained(folder)
    return Segmenter.from_pretrained(folder).to("cuda" if torch.cuda.is_available() else "cpu").eval()


def record(folder: Path, model: Segmenter, scored, protocol: ScoringProtocol, reports: list[dict]) -> None:
    """Rows of every test case without and with flips, each at its own threshold, then the report of the arm."""
    if (folder / "report.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    dev, test = scored
    found: dict[str, Any] = {"rounds": reports}
    for name, views in {"single": ((),), "flips": flip_views(model.settings.spatial_dims)}.items():
        threshold, dice = calibrate_threshold(model, dev, views)
        found[name] = {"threshold": threshold, "dev_dice": dice}
        rows = score(model, test, views, threshold, protocol)
        write_rows(folder / f"{name}.jsonl", [row.as_json() for row in rows])
    write_json(folder / "report.json", found)


@torch.no_grad()
def score(
    model: Segmenter,
    cases: Sequence[Prepared],
    views,
    threshold: float,
    protocol: ScoringProtocol,
    batch_size: int = 16,
) -> list[MedicalRow]:
    """A `MedicalRow` per case and region on the network's own grid; a mm is a pixel of a picture without spacing."""
    own = model.settings
    names = scored_regions(own)
    first, rows = len(own.regions) - len(names), list[MedicalRow]()
    model.settings = replace(own, threshold=threshold)
    for start in range(0, len(cases), batch_size):
        batch = cases[start : start + batch_size]
        pictures = torch.stack([case.picture for case in batch]).to(next(model.parameters()).device)
        logits = batch_logits(model, pictures, views).cpu()
        probabilities = logits.sigmoid() if own.activation == "sigmoid" else logits.softmax(1)
        for case, masks, shares in zip(batch, model.masks_from(logits), probabilities, strict=True):
            arrays = (masks[first:].numpy(), shares[first:].numpy(), case.masks[first:].numpy())
            rows += score_masks(*arrays, case.spacing, names, case.name, case.patient, protocol)
    model.settings = own
    return rows


def prepared(references: Sequence[CaseReference], args: MedicalStudyArguments) -> list[Prepared]:
    preprocessing = Preprocessing(tuple(args.patch_size), None, args.scale, args.fit)
    cases = prepare(references, preprocessing, tuple(args.patch_size), labelled=True)
    if len(cases) != len(references):
        raise DataError(
            f"patch_size {args.patch_size}: a case does not fit into one patch; raise it or take fit: resize"
        )
    return cases


if __name__ == "__main__":
    run(main, MedicalStudyArguments)
