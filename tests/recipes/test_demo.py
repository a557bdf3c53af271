"""`make demo` with a handful of scenes; a file of its own, as it takes longer than all other recipes together."""

import json

from data_tools.build_scenes import main as build_scenes
from tests.launching import ROOT, launch, launch_forked

RECIPES = ROOT / "recipes"


def test_the_demo_runs_end_to_end(taught, tmp_path):
    """demo.yaml with a handful of scenes: every step in a process of its own, as users start it."""
    for part in taught:
        part.save_pretrained(tmp_path / "model")
    command = [str(RECIPES / "path.py"), "--config", str(RECIPES / "demo.yaml")]
    command += ["--output_dir", str(tmp_path / "run"), "--model_name_or_path", str(tmp_path / "model")]
    easier = (RECIPES / "mine_tiny.yaml").read_text()  # this model's hypotheses hardly differ
    easier = easier.replace("margin: 0.02", "margin: 0.001").replace("embedding_noise: 0.5", "embedding_noise: 2.0")
    (tmp_path / "mine.yaml").write_text(easier)
    command += ["--mine_config", str(tmp_path / "mine.yaml")]
    command += ["--scenes", "8", "2", "2", "60", "--preference_steps", "1", "--head_steps", "20"]
    command += ["--ensemble", "1", "--views", "1"]
    there = ["--out", str(tmp_path / "run" / "data"), "--train", "8", "--calibration", "2", "--offset", "60"]
    assert build_scenes([*there, "--workers", "1"]) == 0  # each split drawn there starts processes that import anew
    done = launch(command, ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("are there already; kept") == 2 and "dev: 2 scenes, " in done.stdout
    written = json.loads((tmp_path / "run" / "report.json").read_text())
    assert written["seconds"] > 0 and set(written["arms"]) == {"base", "continued_sft", "popen", "popen_ensemble"}
    again = launch_forked(command, ROOT)
    assert again.returncode == 0 and again.stdout.count("done already") == 13
