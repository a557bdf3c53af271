"""`popen plan`: what it counts, by hand where a hand can, and what it refuses."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from popen.cli import main
from popen.data.schema import write_dataset
from popen.lvlm import label_logps
from popen.training.activations import Activations, activations, without_memory
from popen.training.launch import Launch
from popen.training.memory import GIB
from popen.training.plan import Growth, Plan, plan
from popen.training.planned_run import PlannedRun

RECIPES = Path(__file__).parent.parent.parent / "recipes"
BY_HAND = Plan(
    parameters=10, trained=5, weights=100, gradients=20, optimizer=40, optimizer_name="adamw_torch",
    growths=(Growth(1, Activations(60, 100), Activations(110, 180)),), rows=3, row_tokens=7, memory=1000,
)  # fmt: skip
IN_PIECES = Growth(5, Activations(100, 420), Activations(130, 450))  # from five rows on their logits are


@pytest.fixture(scope="module")
def setting(tmp_path_factory, tiny, samples):
    """Options of a run: an untrained model's folder without its weights, and three scenes."""
    root = tmp_path_factory.mktemp("plan")
    for part in tiny:
        part.save_pretrained(root / "model")
    (root / "model" / "model.safetensors").unlink()
    write_dataset(samples[:3], root / "data", "train")
    eager = ("--attn_implementation", "eager")
    return ["--model_name_or_path", str(root / "model"), "--dataset", str(root / "data"), *eager]


def test_a_recipe_with_a_loss_on_masks_is_read(setting):
    run = PlannedRun.read(RECIPES / "sft_tiny.yaml", [*setting, "--mask_loss", "fuzzy", "--band", "2"])
    assert (run.masks.mask_loss, run.masks.band) == ("fuzzy", 2.0)


def test_activations_grow_evenly_and_the_largest_fits():
    """100 + 80 · 2 at three rows; 900 − 260 leave room for eight rows more than one."""
    assert BY_HAND.fixed == 160 and BY_HAND.activations_of(3) == Activations(160, 260)
    assert BY_HAND.total(3) == 420 and BY_HAND.largest == 9
    assert BY_HAND.total(9) == 900 and BY_HAND.total(10) > 900


def test_logits_in_pieces_grow_less():
    """Four rows take 340, five 420 and more 30 each; 900 − 160 leave room for ten after the first five."""
    plan = replace(BY_HAND, growths=(*BY_HAND.growths, IN_PIECES))
    assert [plan.activations_of(rows).peak for rows in (1, 4, 5, 6, 8)] == [100, 340, 420, 450, 510]
    assert plan.activations_of(8).kept == 190
    assert plan.largest == 15 and plan.total(15) <= 900 < plan.total(16)
    for memory, largest in ((200, 0), (400, 2), (600, 4), (644, 4), (645, 5), (700, 6)):
        assert replace(plan, memory=memory).largest == largest, memory


def test_where_nothing_fits():
    plan = replace(BY_HAND, memory=200)
    assert plan.largest == 0
    assert plan.lines()[-1].startswith("per_device_train_batch_size 3 does not fit; no micro-batch fits; quantise")


def test_the_table():
    *parts, verdict = replace(BY_HAND, weights=3 * GIB, memory=8 * GIB).lines()
    names = ["weights", "gradients", "optimizer", "activations", "at work", "total"]
    assert [line.split("  ")[0].strip() for line in parts] == names
    assert re.match(r"weights +3\.000 GiB  10 parameters, 5 trained \(50\.00%\)$", parts[0])
    assert verdict.startswith("per_device_train_batch_size 3 fits; the largest micro-batch that fits is ")


def test_a_whole_model(setting, tiny):
    """Counted beforehand from the real model: float32 weights and buffers, gradients, two moments; no weights read."""
    run = PlannedRun.read(RECIPES / "sft_tiny.yaml", [*setting, "--bf16", "false", "--muon_learning_rate", "0"])
    found = plan(run, Launch(), GIB)
    parameters = sum(p.numel() for p in tiny[0].parameters())
    buffers = sum(b.numel() * b.element_size() for b in tiny[0].buffers())
    assert (found.parameters, found.trained) == (parameters, parameters)
    assert (found.weights, found.gradients) == (4 * parameters + buffers, 4 * parameters)
    assert found.optimizer == 8 * parameters
    (growth,) = found.growths
    assert growth.first.kept < growth.second.kept <= 2 * growth.first.kept
    assert found.row_tokens == run.batch(1)["input_ids"].shape[1] and found.rows == 8


def test_a_plan_across_pieces_is_what_each_micro_batch_takes(setting, monkeypatch):
    """Two rows' logits fit into a piece and three rows' do not; of five is predicted what five are found to take."""
    run = PlannedRun.read(RECIPES / "sft_tiny.yaml", [*setting, "--bf16", "false", "--muon_learning_rate", "0"])
    tokens, words = len(run.batch(1)["token_labels"]), run.model().config.get_text_config().vocab_size
    monkeypatch.setattr(label_logps, "LOGITS_AT_ONCE", (5 * tokens // 2) * words)
    found = plan(run, Launch(), GIB)
    assert [growth.rows for growth in found.growths] == [1, 3]
    taken, own = activations(*without_memory(run.model()), run.batch(5), None), found.activations_of(5)
    assert own.kept == pytest.approx(taken.kept, rel=1e-3) and own.peak == pytest.approx(taken.peak, rel=1e-3)
    one, two = found.growths[0].first, found.growths[0].second
    assert abs(own.kept - (4 * two.kept - 3 * one.kept)) > 5 * 4 * tokens * words  # these logits are not kept


def test_the_command_and_sharding(setting, capsys):
    """LoRA in bf16 under ZeRO-2 of eight: 2P whole, 2T and 12T in eight parts."""
    zero2 = str(RECIPES / "accelerate" / "zero2.yaml")
    argv = ["plan", "--config", str(RECIPES / "sft_tiny.yaml"), "--accelerate", zero2, *setting, "--use_peft", "true"]
    assert main([*argv, "--muon_learning_rate", "0", "--gpu-memory", "2"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith("sft_tiny.yaml: SFT, bf16, LoRA, ZeRO-2 on 8 processes") and len(lines) == 7
    parameters, trained = (int(n.replace(",", "")) for n in re.search(r"([\d,]+) par\w+, ([\d,]+)", lines[0]).groups())
    assert trained < parameters
    sizes = [float(line.split("GiB")[0].split()[-1]) for line in lines[:3]]
    for size, expected in zip(sizes, (2 * parameters, 2 * trained / 8, 12 * trained / 8), strict=True):
        assert size == pytest.approx(expected / GIB, abs=0.0006)
    assert " of 2.00, " in lines[5] and "largest micro-batch that fits is" in lines[6]


@pytest.mark.parametrize("file", sorted(RECIPES.glob("sft_*.yaml")) + sorted(RECIPES.glob("preference_*.yaml")))
def test_every_shipped_recipe_is_understood(file):
    run = PlannedRun.read(file, [])
    assert run.kind == ("preference" if file.stem.startswith("preference") else "SFT")


@pytest.mark.parametrize(
    "options, named",
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--accelerate", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--gpu-memory", "0"], "--gpu-memory 0.0: give GiB, more than 0"),
        (["--model_name_or_path", "./nowhere"], "./nowhere"),
        (["--dataset", "./nowhere"], "./nowhere"),
        (["--lerning_rate", "1"], "lerning_rate"),
        (["--optim", "lomo"], "optim lomo: how much it keeps is not known"),
    ],
)
def test_errors_are_one_line(setting, options, named, capsys):
    config = [] if "--config" in options else ["--config", str(RECIPES / "sft_tiny.yaml")]
    assert main(["plan", *config, *setting, *options]) == 1
    err = capsys.readouterr().err
    assert named in err and len(err.splitlines()) == 1 and err.startswith("popen: ")


def test_an_unknown_key_is_named(setting, tmp_path, capsys):
    (tmp_path / "wrong.yaml").write_text((RECIPES / "sft_tiny.yaml").read_text() + "\nlerning_rate: 1.0\n")
    assert main(["plan", "--config", str(tmp_path / "wrong.yaml"), *setting]) == 1
    err = capsys.readouterr().err
    assert "lerning_rate" in err and len(err.splitlines()) == 1
