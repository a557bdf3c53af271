"""The whole path on one data set: data, base, mine, tune, ensemble, evaluate, report.

    python recipes/path.py --config recipes/demo.yaml          # what `make demo` runs
    python recipes/path.py --config recipes/path_coco.yaml --panoptic COCO_PANOPTIC_DIR

Each step is printed before it runs, and one that is done is not done again. The end is `report.json` and a page.
Steps are processes of their own, forked from this one where no launcher is needed: importing takes long.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from popen.data.safe_io import DataError
from popen.recipe import note_cost, run, run_forked, several_gpus

ROOT = Path(__file__).resolve().parent.parent
PYTHON = [sys.executable]
IMPORTED = ("popen.training.preference", "popen.lvlm.mining", "popen.lvlm.segmentation")  # by most of the steps
LAUNCH = [*PYTHON, "-m", "accelerate.commands.launch", "--config_file", "accelerate_config.yaml"]


@dataclass
class PathArguments:
    """What to run the path on."""

    output_dir: str = field(metadata={"help": "Where everything goes."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The base model; without one an untrained popen-tiny is made and trained."}
    )
    panoptic: str | None = field(default=None, metadata={"help": "COCO panoptic folder to convert."})
    scenes: list[int] | None = field(
        default=None, metadata={"help": "Scenes to draw instead: train, calibration, dev, and the first seed."}
    )
    calibration_split: str = field(default="calibration", metadata={"help": "Split for thresholds, never reported."})
    align_config: str | None = field(default=None, metadata={"help": "YAML of the alignment step before SFT."})
    sft_config: str | None = field(default=None, metadata={"help": "YAML of the SFT step, where there is one."})
    mine_config: str = field(default="recipes/mine_tiny.yaml", metadata={"help": "YAML of both mining steps."})
    preference_config: str = field(
        default="recipes/preference_tiny.yaml", metadata={"help": "YAML of POPEN and of its control."}
    )
    preference_steps: int = field(default=200, metadata={"help": "Optimiser steps of POPEN and of its control."})
    head_steps: int = field(default=1500, metadata={"help": "Optimiser steps of the preference head."})
    views: int = field(default=4, metadata={"help": "Shifted views that the ensemble looks at, at least 1."})
    ensemble: int = field(default=8, metadata={"help": "K hypotheses of the ensemble, at least 1."})
    seed: int = field(default=0, metadata={"help": "Seed of everything."})

    def __post_init__(self):
        if (self.panoptic is None) == (self.scenes is None):
            raise DataError(
                "give either panoptic (a folder) or scenes (four numbers): they say where the data comes from"
            )
        if self.scenes is not None and len(self.scenes) != 4:
            raise DataError(f"scenes = {self.scenes}: give train, calibration, dev and the first seed")
        if self.model_name_or_path is None and self.sft_config is None:
            raise DataError("sft_config is not set, and neither is model_name_or_path: there is nothing to start from")
        if self.ensemble < 1 or self.views < 1:
            raise DataError(f"ensemble = {self.ensemble}, views = {self.views}: give K >= 1 hypotheses and >= 1 views")


Step = tuple[str, list[str], Path]  # what happens, the command, and the file that proves it is done


def data_steps(args: PathArguments, out: Path) -> list[Step]:
    data = out / "data"
    if args.scenes is None:
        command = [*PYTHON, "data_tools/convert_panoptic.py", str(args.panoptic), str(data), "--seed", str(args.seed)]
        return [("convert the pictures", command, data / "dev" / "state.json")]
    train, calibration, dev, offset = map(str, args.scenes)
    command = [*PYTHON, "data_tools/build_scenes.py", "--out", str(data), "--offset", offset]
    command += ["--train", train, "--calibration", calibration, "--dev", dev]
    return [("draw scenes", command, data / "dev" / "state.json")]


def base_steps(args: PathArguments, out: Path) -> list[Step]:
    if args.model_name_or_path is not None:
        return []
    shared = ["--dataset", str(out / "data"), "--seed", str(args.seed)]
    start, aligned, base = out / "untrained", out / "aligned", out / "base"
    init = [*PYTHON, "recipes/init_tiny.py", *shared, "--output_dir", str(start)]
    steps = [("make an untrained popen-tiny", init, start / "popen_processor.json")]
    if args.align_config is not None:
        align = [*LAUNCH, "recipes/align.py", "--config", args.align_config, *shared]
        align += ["--model_name_or_path", str(start), "--output_dir", str(aligned)]
        steps.append(("align pictures with words", align, aligned / "popen_processor.json"))
        start = aligned
    sft = [*LAUNCH, "recipes/sft.py", "--config", str(args.sft_config), *shared]
    sft += ["--model_name_or_path", str(start), "--output_dir", str(base)]
    return [*steps, ("supervised fine-tuning", sft, base / "popen_processor.json")]


def preference_steps(args: PathArguments, out: Path) -> list[Step]:
    base, control, policy, final = (out / name for name in ("base", "continued_sft", "popen_policy", "popen"))
    data, seed = ["--dataset", str(out / "data")], str(args.seed)
    mined, hypotheses = out / "mined", out / "mined_popen"
    calibrate = [*PYTHON, "recipes/calibrate.py", *data, "--split", args.calibration_split, "--model_name_or_path"]
    mine = [*LAUNCH, "recipes/mine.py", "--config", args.mine_config, *data, "--seed", seed]
    tune = [*LAUNCH, "recipes/preference.py", "--config", args.preference_config, *data, "--seed", seed]
    tune += ["--model_name_or_path", str(base), "--preferences", str(mined)]
    tune += ["--max_steps", str(args.preference_steps), "--save_steps", str(args.preference_steps)]
    mine_base = [*mine, "--model_name_or_path", str(base), "--output_dir", str(mined)]
    mine_policy = [*mine, "--model_name_or_path", str(policy), "--output_dir", str(hypotheses), "--streams", "seg"]
    ensemble = ["--ensemble", str(args.ensemble), "--views", str(args.views)]
    plain = [*tune, "--text_weight", "0", "--seg_weight", "0", "--output_dir", str(control)]
    head = [*PYTHON, "recipes/preference_head.py", "--model_name_or_path", str(policy), "--seed", seed]
    head += ["--preferences", str(hypotheses), "--output_dir", str(final), "--steps", str(args.head_steps)]
    return [
        ("calibrate the base", [*calibrate, str(base)], base / "calibrated"),
        ("mine preferences", mine_base, mined / "mining.json"),
        ("continued SFT, the same-budget control", plain, control / "popen_processor.json"),
        ("tune with preferences", [*tune, "--output_dir", str(policy)], policy / "popen_processor.json"),
        ("calibrate the control", [*calibrate, str(control)], control / "calibrated"),
        ("calibrate the tuned model", [*calibrate, str(policy)], policy / "calibrated"),
        ("mine hypotheses of the tuned model", mine_policy, hypotheses / "mining.json"),
        ("train the preference head", head, final / "popen_processor.json"),
        ("calibrate the ensemble", [*calibrate, str(final), *ensemble], final / "calibrated"),
    ]


def evaluation_steps(args: PathArguments, out: Path) -> list[Step]:
    steps = []
    ensemble = ["--ensemble", str(args.ensemble)]
    for name, model, extra in (
        ("base", "base", []),
        ("continued_sft", "continued_sft", []),
        # single passes were calibrated before; the controls have thresholds of their own
        ("popen", "popen", [*ensemble, "--controls", "--calibration-split", args.calibration_split]),
    ):
        score = [*PYTHON, "-m", "eval.segmentation", "--data", str(out / "data"), "--split", "dev"]
        score += ["--model", str(out / model), "--out", str(out / "eval" / name), "--seed", str(args.seed), *extra]
        steps.append((f"evaluate {name}", score, out / "eval" / name / "summary.json"))
    return steps


def main(args: PathArguments) -> int:
    started, out = time.time(), Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    if args.model_name_or_path is not None and not (out / "base").exists():
        shutil.copytree(args.model_name_or_path, out / "base.tmp", dirs_exist_ok=True)
        (out / "base.tmp").rename(out / "base")
    steps = data_steps(args, out) + base_steps(args, out) + preference_steps(args, out) + evaluation_steps(args, out)
    for number, (what, command, proof) in enumerate(steps, 1):
        print(f"\n[{number}/{len(steps)}] {what}", flush=True)
        if proof.exists():
            print("done already", flush=True)
            continue
        print("  " + " ".join(command).replace(sys.executable, "python"), flush=True)
        code = run_step(command)
        if code:
            print(f"step {number} ({what}) failed with exit code {code}; its message is above", file=sys.stderr)
            return code
        if proof.name == "calibrated":
            proof.touch()
    note_cost(out / "cost.json", time.time() - started)
    report = [*PYTHON, "-m", "eval.report", "--run", str(out), "--seed", str(args.seed)]
    return run_step([*report, "--ensemble", str(args.ensemble)])


def run_step(command: list[str]) -> int:
    """Runs a command of PYTHON or LAUNCH to its end and returns its exit code."""
    launched = command[: len(LAUNCH)] == LAUNCH
    if not hasattr(os, "fork") or (launched and several_gpus()):
        return subprocess.call(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return run_forked(command[len(LAUNCH if launched else PYTHON) :], ROOT, IMPORTED)


if __name__ == "__main__":
    run(main, PathArguments)
