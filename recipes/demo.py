"""The whole path on popen-tiny: mine, tune, ensemble, evaluate, report. `make demo` runs this.

    python recipes/demo.py --out runs/demo

About ten minutes on two cores. Each step is a command you can run yourself; it is printed before it runs, and a step
that is done is not done again. The end is `runs/demo/report.json` and `runs/demo/report.html`.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_config.yaml"]


def steps(out: Path, scenes: Path, args: argparse.Namespace) -> list[tuple[str, list[str], Path]]:
    """(what happens, command, file that proves it is done) in order."""
    base, control, tuned, final = (out / name for name in ("base", "continued_sft", "popen_policy", "popen"))
    mined, head = out / "mined", out / "mined_head"
    python, seed = [sys.executable], ["--seed", str(args.seed)]
    data = ["--dataset", str(scenes)]
    mine = [*LAUNCH, "recipes/mine.py", "--config", "recipes/mine_tiny.yaml", *data, "--max_rows", str(args.train)]
    tune = [*LAUNCH, "recipes/preference.py", "--config", "recipes/preference_tiny.yaml", *data, *seed]
    tune += ["--model_name_or_path", str(base), "--preferences", str(mined), "--max_steps", str(args.steps)]
    calibrate = [*python, "recipes/calibrate.py", *data, "--split", "calibration", "--model_name_or_path"]
    evaluate = [*python, "-m", "eval.segmentation", "--data", str(scenes), "--split", "dev", *seed]
    scores = {name: out / "eval" / name for name in ("base", "continued_sft", "popen", "popen_ensemble")}
    return [
        (
            "draw scenes (unseen by the shipped model)",
            [*python, "data_tools/build_scenes.py", "--out", str(scenes), "--offset", str(args.offset),
             "--train", str(args.train), "--calibration", "200", "--dev", str(args.dev)],
            scenes / "dev" / "state.json",
        ),
        ("calibrate the shipped model", [*calibrate, str(base)], base / "calibrated"),
        (
            "mine preferences",
            [*mine, "--model_name_or_path", str(base), "--output_dir", str(mined)],
            mined / "mining.json",
        ),
        (
            "continued SFT, the same-budget control",
            [*tune, "--text_weight", "0", "--seg_weight", "0", "--output_dir", str(control)],
            control / "model.safetensors",
        ),
        ("tune with preferences", [*tune, "--output_dir", str(tuned)], tuned / "model.safetensors"),
        ("calibrate the control", [*calibrate, str(control)], control / "calibrated"),
        ("calibrate the tuned model", [*calibrate, str(tuned)], tuned / "calibrated"),
        (
            "mine hypotheses of the tuned model",
            [*mine, "--model_name_or_path", str(tuned), "--output_dir", str(head), "--streams", "seg"],
            head / "mining.json",
        ),
        (
            "train the preference head",
            [*python, "recipes/preference_head.py", *seed, "--model_name_or_path", str(tuned),
             "--preferences", str(head), "--output_dir", str(final)],
            final / "model.safetensors",
        ),
        (
            "evaluate base",
            [*evaluate, "--model", str(base), "--out", str(scores["base"])],
            scores["base"] / "summary.json",
        ),
        (
            "evaluate continued SFT",
            [*evaluate, "--model", str(control), "--out", str(scores["continued_sft"])],
            scores["continued_sft"] / "summary.json",
        ),
        (
            "evaluate POPEN, with and without the ensemble",
            [*evaluate, "--model", str(final), "--ensemble", "8", "--controls", "--out", str(scores["popen"])],
            scores["popen"] / "summary.json",
        ),
    ]  # fmt: skip


def main() -> int:
    args = parse()
    started = time.time()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "base").exists():
        shutil.copytree(args.model, out / "base")
    todo = steps(out, out / "scenes", args)
    for number, (what, command, proof) in enumerate(todo, 1):
        print(f"\n[{number}/{len(todo)}] {what}", flush=True)
        if proof.exists():
            print("done already", flush=True)
            continue
        print("  " + " ".join(command).replace(sys.executable, "python"), flush=True)
        code = subprocess.call(command, cwd=ROOT)
        if code:
            print(f"demo: step {number} ({what}) failed with exit code {code}; its message is above", file=sys.stderr)
            return code
        if proof.name == "calibrated":
            proof.touch()
    seconds = out / "seconds.json"
    spent = (json.loads(seconds.read_text())["seconds"] if seconds.exists() else 0) + time.time() - started
    seconds.write_text(json.dumps({"seconds": spent}))
    report = [
        sys.executable,
        "-m",
        "eval.report",
        "--run",
        str(out),
        "--seed",
        str(args.seed),
        "--seconds",
        f"{spent:.0f}",
    ]
    print("\nwrite the report\n  " + " ".join(report).replace(sys.executable, "python"), flush=True)
    return subprocess.call(report, cwd=ROOT)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/demo")
    parser.add_argument("--model", default="popen/assets/popen-tiny", help="the model to start from")
    parser.add_argument("--train", type=int, default=1536, help="scenes to mine and tune on")
    parser.add_argument("--dev", type=int, default=400, help="scenes to evaluate on")
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps of each arm")
    parser.add_argument("--offset", type=int, default=50_000, help="first seed of each split; SFT used seeds below it")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
