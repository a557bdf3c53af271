"""A study from files to its table at toy size: same budget for every arm, nothing done twice, the judge alone sees."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trl import TrlParser

from eval.medical_study import MedicalStudyArguments, main, split
from eval.medical_study_arms import ARMS, Arm
from eval.medical_study_tables import arms_of, compared, markdown, rows_of
from eval.medical_study_training import Budget, by_size, examples_for, fit, mined_pairs, train_arm, train_base
from popen.data.medical_folders import read_image_folder
from popen.data.safe_io import DataError
from popen.medical.cohort import Prepared
from popen.medical.configuration import SegmenterConfig
from popen.medical.examples import Example
from popen.medical.mining import Candidates

ROOT = Path(__file__).parent.parent.parent
CONFIG = SegmenterConfig(
    "unet", 2, 3, ("foreground",), "sigmoid", (16, 16), 0.3, options={"channels": (4, 8), "num_res_units": 0}
)
BUDGET = Budget(steps=3, batch_size=4, learning_rate=1e-2, seed=0, average=0.9)
RUN = ("supervised", "mean_teacher", "rn_dpo_winner_rounds")


def cases(count: int, start: int = 0) -> list[Prepared]:
    found = []
    for number in range(start, start + count):
        draw = torch.Generator().manual_seed(number)
        mask = torch.zeros(1, 16, 16, dtype=torch.bool)
        top, left = torch.randint(1, 8, (2,), generator=draw).tolist()
        mask[:, top : top + 7, left : left + 7] = True
        picture = mask.float() - 0.5 + 0.3 * torch.randn(3, 16, 16, generator=draw)
        found.append(Prepared(f"case{number}", picture, mask, (1.0, 1.0), f"case{number}"))
    return found


@pytest.fixture(scope="module")
def base():
    return train_base(CONFIG, cases(4), cases(2, 80), replace(BUDGET, steps=30))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for part in ("images", "masks"):
        (root / part).mkdir()
    for case in cases(16):
        grey = (120 + 80 * case.picture).clamp(0, 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(grey).save(root / "images" / f"{case.name}.png")
        mask = np.repeat(255 * case.masks[0].numpy().astype(np.uint8)[..., None], 3, 2)
        Image.fromarray(mask).save(root / "masks" / f"{case.name}.png")
    return root


def arguments(folder, out, **changes) -> MedicalStudyArguments:
    values = {
        "labelled": 4, "pool": 5, "dev": 3, "subsets": [0, 1], "arms": list(RUN), "network": "unet", "band": 2.0,
        "network_options": {"channels": (4, 8), "num_res_units": 0}, "patch_size": [16, 16], "base_steps": 3,
        "steps": 3, "batch_size": 4,
    }  # fmt: skip
    return MedicalStudyArguments(train=str(folder), output_dir=str(out), **(values | changes))


def test_a_study_runs_goes_on_where_it_stopped_and_makes_its_table(folder, tmp_path):
    main(arguments(folder, tmp_path / "study", test=str(folder), arms=["supervised"]))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "study").rglob("*.jsonl")}
    main(arguments(folder, tmp_path / "study", test=str(folder)))
    assert before and all(file.stat().st_mtime_ns == time for file, time in before.items())
    assert arms_of(tmp_path / "study") == ["base", *RUN]
    runs = {arm: rows_of(tmp_path / "study", arm, "flips") for arm in ("base", *RUN)}
    assert all(len(rows) == 4 + 16 for own in runs.values() for rows in own) and len(runs["base"]) == 2
    found = compared(runs, "supervised")
    assert found["mean_teacher"]["dice_gap"][1] <= found["mean_teacher"]["dice_gap"][2]
    table = markdown({"single": found, "flips": found}, "supervised")
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [f"| {arm}" for arm in ("base", *RUN)]
    report = json.loads((tmp_path / "study" / "subset1" / "rn_dpo_winner_rounds" / "report.json").read_text())
    assert len(report["rounds"]) == 3 and report["rounds"][0]["pictures"] == 5
    with pytest.raises(DataError, match="control 'nothing' was not run"):
        compared(runs, "nothing")


def test_peers_are_networks_of_other_seeds_that_every_arm_finds_again(folder, tmp_path):
    out = tmp_path / "study"
    main(arguments(folder, out, subsets=[0], arms=["pseudo_label_peers"]))
    seats = [out / "subset0" / name / "model.safetensors" for name in ("base_model", "peer_model1", "peer_model2")]
    assert len({seat.read_bytes() for seat in seats}) == 3
    before = [seat.stat().st_mtime_ns for seat in seats]
    main(arguments(folder, out, subsets=[0], arms=["rn_dpo_winner_peers"]))
    assert [seat.stat().st_mtime_ns for seat in seats] == before
    report = json.loads((out / "subset0" / "rn_dpo_winner_peers" / "report.json").read_text())
    assert report["rounds"][0]["pictures"] == 5


def test_no_table_of_a_folder_without_a_finished_arm(tmp_path):
    with pytest.raises(DataError, match="no arm that all subsets have finished"):
        arms_of(tmp_path)


def test_what_no_study_can_be_is_refused(folder, tmp_path):
    with pytest.raises(DataError, match="arms: voting is not one of"):
        arguments(folder, tmp_path, arms=["voting"])
    with pytest.raises(DataError, match="dev, labelled and pool take 16 and leave no test"):
        split(read_image_folder(folder), arguments(folder, tmp_path, pool=9))


@pytest.mark.parametrize("file", sorted((ROOT / "eval" / "studies").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_study_is_a_study(file):
    (args,) = TrlParser([MedicalStudyArguments]).parse_args_and_config(["--config", str(file), "--train", "DATA"])
    SegmenterConfig(
        args.network, len(args.patch_size), 1, ("background", "part"), args.activation, tuple(args.patch_size),
        args.dropout, options=args.network_options,
    )  # fmt: skip
    assert args.arms[0] == "supervised" and f"runs/{file.stem}" == args.output_dir


@pytest.mark.parametrize("arm", ["supervised", "pseudo_label", "rn_dpo_winner", "mapo"])
def test_every_arm_sees_as_many_pictures_a_step(base, arm):
    seen = []

    def watch(module, inputs):
        if module.training:
            seen.append(len(inputs[0]))

    handle = base.register_forward_pre_hook(watch)  # copies of the base keep it
    try:
        train_arm(ARMS[arm], base, cases(4), cases(5, 50), cases(2, 80), BUDGET)
    finally:
        handle.remove()
    assert seen == [BUDGET.batch_size] * BUDGET.steps


@pytest.mark.parametrize("arm", ["rn_dpo_winner", "epsilon_constraint"])  # the latter's λ must start anew
def test_arms_start_from_the_same_base_and_leave_it_alone(base, arm):
    before = {name: value.clone() for name, value in base.state_dict().items()}
    first, _ = train_arm(ARMS[arm], base, cases(4), cases(5, 50), cases(2, 80), BUDGET)
    second, _ = train_arm(ARMS[arm], base, cases(4), cases(5, 50), cases(2, 80), BUDGET)
    assert all(torch.equal(base.state_dict()[name], value) for name, value in before.items())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), base.parameters(), strict=True))


@pytest.mark.parametrize(
    "name",
    ["pseudo_label", "rn_dpo_winner", "rn_dpo_winner_certainty", "mean_teacher", "pseudo_label_peers_mapo"],
)
def test_without_an_oracle_the_pools_truth_changes_nothing(base, name):
    arm = replace(ARMS[name], choices=ARMS[name].choices | {"sampler": "flips"})  # there are no peers here
    pool = cases(5, 50)
    blind = [replace(case, masks=~case.masks) for case in pool]
    kinds = [examples_for(arm, base, base, cases(4), own, seed=0)[1] for own in (pool, blind)]
    assert any(own.masks is not None or own.pair is not None for own in kinds[0]) or arm.teacher
    for own, other in zip(*kinds, strict=True):
        assert own.masks is other.masks is None or torch.equal(own.masks, other.masks)
        assert own.pair is other.pair is None or torch.equal(own.pair.chosen, other.pair.chosen)


def test_the_pool_is_labelled_by_the_consensus_and_pairs_are_of_labelled_pictures(base):
    arm = replace(ARMS["pseudo_label_peers_mapo"], choices=ARMS["rn_dpo_winner_oracle"].choices)
    labelled, pool = cases(4), cases(5, 50)
    _, extra, report = examples_for(arm, base, base, labelled, pool, seed=0)
    shown, pairs = [own for own in extra if own.pair is None], [own for own in extra if own.pair is not None]
    assert [own.picture is case.picture for own, case in zip(shown, pool, strict=True)] == [True] * 5
    assert pairs and all(any(own.picture is case.picture for case in labelled) for own in pairs)
    assert report["judge"]["correct_inside"] > 0.5  # the truth judges


def test_an_oracles_winner_is_nearer_to_the_truth_and_a_flipped_ones_is_not(base):
    pool = cases(8, 50)
    for arm, better in (("rn_dpo_winner_oracle", True), ("flipped", False)):
        oracle = ARMS["rn_dpo_winner_oracle"]
        chosen = oracle if better else replace(oracle, choices=oracle.choices | {"flip_rate": 1.0})
        found = mined_pairs(chosen, base, pool, seed=0)
        for row, (winner, loser, _) in zip(found.rows, found.pairs, strict=True):
            right = (winner == pool[row].masks).sum() > (loser == pool[row].masks).sum()
            assert bool(right) is better, arm


def test_the_biased_judge_takes_the_larger_mask(base):
    found = mined_pairs(ARMS["rn_dpo_winner_large"], base, cases(8, 50), seed=0)
    assert all(winner.sum() > loser.sum() for winner, loser, _ in found.pairs)


def test_of_classes_the_biased_judge_does_not_count_the_background():
    """With it all masks would have one size; here discs of 1 and 4 of 16 pixels."""
    discs = torch.tensor([[1] + [0] * 15, [1] * 4 + [0] * 12]).bool().view(2, 1, 4, 4)
    masks, soft = torch.cat([~discs, discs], 1), torch.full((2, 2, 4, 4), 0.5)
    found = by_size(Candidates("a", torch.zeros(1, 4, 4), masks, soft, soft[0], "softmax"))
    assert found.tolist() == [0.25, 0.5]


def test_the_mean_teacher_follows_slowly_and_is_followed(base):
    pool = [Example(case.picture) for case in cases(5, 50)]
    trainer = fit(deepcopy(base), Arm(teacher=True), [case.example() for case in cases(4)], pool, cases(2, 80), BUDGET)
    moved = sum((a - b).abs().sum() for a, b in zip(trainer.teacher.parameters(), base.parameters(), strict=True))
    assert (
        0
        < moved
        < sum((a - b).abs().sum() for a, b in zip(trainer.model.parameters(), base.parameters(), strict=True))
    )
    assert not any(weight.requires_grad for weight in trainer.teacher.parameters())
