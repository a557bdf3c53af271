"""MedicalTrainer: labels alone, pairs alone and both, 2-D and 3-D, sigmoid and softmax, on real small networks."""

import math
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import set_seed

from popen.medical.calibration import calibrate_threshold
from popen.medical.cohort import Prepared
from popen.medical.examples import Example, Streams
from popen.medical.mask_pairs import with_reference
from popen.medical.segmenter import Segmenter, SegmenterConfig
from popen.medical.supervised import cross_entropy_dice
from popen.medical.views import flip_views
from popen.objectives.preference import ipo_loss, sigmoid_loss
from popen.objectives.region_pairs import class_mean, image_mean, region_dpo, total
from popen.training.medical import MedicalArguments, MedicalTrainer, hold_still

CASES = {
    "2-D sigmoid": (2, ("disc",), "sigmoid"),
    "3-D softmax": (3, ("background", "disc"), "softmax"),
}


def segmenter(dims, regions, activation, dropout=0.0):
    set_seed(0)
    config = SegmenterConfig(
        network="unet", spatial_dims=dims, in_channels=1, regions=regions, activation=activation,
        patch_size=(16,) * dims, dropout=dropout, threshold=0.0, spacing=None,
        options={"channels": (4, 8), "norm": "batch", "num_res_units": 1},
    )  # fmt: skip
    return Segmenter(config)


def discs(dims, regions, count=6):
    """Bright balls in noise and their masks; with a background channel where there are two regions."""
    generator = torch.Generator().manual_seed(1)
    axes = torch.meshgrid(*[torch.arange(16.0)] * dims, indexing="ij")
    for _ in range(count):
        centre, radius = torch.randint(5, 11, (dims,), generator=generator), 3 + torch.rand((), generator=generator)
        disc = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) < radius**2
        picture = disc.float() + 0.3 * torch.randn(disc.shape, generator=generator)
        yield picture[None], torch.stack([~disc, disc] if len(regions) == 2 else [disc])


def paired(model, data):
    """The truth against the truth shifted by two pixels, with the model itself as reference."""
    pairs = [(masks, masks.roll(2, -1), 0.3) for _, masks in data]
    model.eval()
    return with_reference(
        model, model.settings.activation, [p for p, _ in data], pairs, flip_views(model.settings.spatial_dims)
    )


def trainer(model, labelled, pool, folder, objective=None, dev=None, **settings):
    defaults = {
        "output_dir": str(folder), "max_steps": 12, "per_device_train_batch_size": 3, "learning_rate": 3e-3,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        "seed": 0, "average": 0.0,
    }  # fmt: skip
    return MedicalTrainer(
        model, MedicalArguments(**(defaults | settings)), preference=objective,
        train_dataset=Streams(labelled, pool, flip_views(model.settings.spatial_dims)), eval_dataset=dev,
        supervised=partial(cross_entropy_dice, activation=model.settings.activation),
    )  # fmt: skip


def logged(trained, name):
    return [entry[name] for entry in trained.state.log_history if name in entry]


@pytest.mark.parametrize("case", CASES)
def test_labels_alone_are_learnt_and_come_back(case, tmp_path):
    model, data = segmenter(*CASES[case]), list(discs(*CASES[case][:2]))
    trained = trainer(model, [Example(*own) for own in data], (), tmp_path, max_steps=30, learning_rate=1e-2)
    trained.train()
    ce = logged(trained, "seg/ce")
    assert sum(ce[-3:]) < 0.8 * sum(ce[:3])
    trained.save_model(str(tmp_path / "model"))
    again = Segmenter.from_pretrained(tmp_path / "model")
    assert not list(tmp_path.rglob("*.bin"))
    picture = data[0][0][None]
    torch.testing.assert_close(again.eval()(picture), model.eval()(picture))


@pytest.mark.parametrize("case", CASES)
def test_the_margin_starts_at_0_and_grows(case, tmp_path):
    """Batch normalisation is held still: its batch statistics would move the margin before the weights do."""
    model, data = segmenter(*CASES[case]), list(discs(*CASES[case][:2]))
    pool = [Example(p, None, pair) for (p, _), pair in zip(data, paired(model, data), strict=True)]
    trained = trainer(
        model, [Example(*data[0])], pool, tmp_path, freeze_batch_norm=True, winner_weight=0.0, max_steps=20
    )
    trained.train()
    margins = logged(trained, "rewards/margins")
    assert abs(margins[0]) < 1e-5 and margins[-1] > 0.05
    assert logged(trained, "rewards/accuracies")[-1] > 0.6
    assert not logged(trained, "winner/ce")


def test_pairs_count_by_their_weights(tmp_path):
    """At the first step the loss on pairs is ln 2 whatever the weights, of which ¼ arrives; so of the winner's."""
    model, data = segmenter(*CASES["2-D sigmoid"]), list(discs(*CASES["2-D sigmoid"][:2]))
    losses = {}
    for weight in (0.0, 0.25, 1.0):
        pool = [
            Example(p, None, replace(pair, weight=weight))
            for (p, _), pair in zip(data, paired(model, data), strict=True)
        ]
        trained = trainer(
            deepcopy(model),
            [Example(*data[0])],
            pool,
            tmp_path,
            freeze_batch_norm=True,
            max_steps=1,
            preference_weight=2.0,
        )
        trained.train()
        (losses[weight],), (pairs,) = logged(trained, "loss"), logged(trained, "pairs/loss")
        assert pairs == pytest.approx(math.log(2), abs=1e-5) and logged(trained, "pairs/weight") == [weight]
    whole, quarter = losses[1.0] - losses[0.0], losses[0.25] - losses[0.0]
    assert quarter == pytest.approx(whole / 4, abs=1e-4) and whole > 2 * math.log(2)


@pytest.mark.parametrize(
    "objective",
    [
        partial(region_dpo, margin=total, loss=partial(sigmoid_loss, beta=0.1)),
        partial(region_dpo, margin=class_mean, loss=partial(ipo_loss, beta=0.5)),
    ],
)
def test_objectives_are_handed_in(objective, tmp_path):
    case = CASES["3-D softmax"]
    model, data = segmenter(*case), list(discs(*case[:2]))
    pool = [Example(p, None, pair) for (p, _), pair in zip(data, paired(model, data), strict=True)]
    trained = trainer(model, [Example(*data[0])], pool, tmp_path, objective, max_steps=3)
    trained.train()
    assert len(logged(trained, "pairs/loss")) == 3 and logged(trained, "winner/dice")


def test_pairs_on_labelled_pictures_need_no_winner(tmp_path):
    case = CASES["2-D sigmoid"]
    model, data = segmenter(*case), list(discs(*case[:2]))
    labelled = [Example(p, m, pair) for (p, m), pair in zip(data, paired(model, data), strict=True)]
    trained = trainer(model, labelled, (), tmp_path, outside_weight=0.5, max_steps=3)
    trained.train()
    assert logged(trained, "seg/ce") and logged(trained, "pairs/outside") and not logged(trained, "winner/ce")


class Levels(torch.nn.Module):
    """The same logit of a region or class in every pixel."""

    def __init__(self, *levels):
        super().__init__()
        self.levels = torch.nn.Parameter(torch.tensor(levels))

    def forward(self, pictures):
        return pictures * 0 + self.levels.view(1, -1, 1, 1)


def stripes(activation, levels, folder, **settings):
    """A trainer before its only step, on one pair of four vertical stripes 2 pixels wide against the same with the
    first column's class exchanged: 8 of 64 pixels differ, of classes 0 and 1."""
    set_seed(0)
    regions = ("background", "a", "b", "c") if activation == "softmax" else ("a", "b", "c", "d")
    model = Segmenter(SegmenterConfig("levels", 2, 1, regions, activation, (8, 8)), Levels(*levels)).eval()
    chosen = torch.eye(4).bool().repeat_interleave(2, 1)[:, None].expand(4, 8, 8).clone()
    rejected = chosen.clone()
    rejected[:2, :, 0] = ~chosen[:2, :, 0]
    picture = torch.randn(1, 8, 8)
    pairs = with_reference(model, activation, [picture], [(chosen, rejected, 0.3)], flip_views(2))
    pool = [Example(picture, None, pair) for pair in pairs]
    one = {"max_steps": 1, "winner_weight": 0.0, "per_device_train_batch_size": 1}
    return trainer(model, [Example(picture, chosen)], pool, folder, **(one | settings))


@pytest.mark.parametrize(("activation", "variables"), [("sigmoid", 4 * 64), ("softmax", 64)])
def test_the_image_mean_is_over_as_many_variables_as_the_policy_has(activation, variables, tmp_path):
    """A logit for each of 4 regions is 4 variables a pixel, a distribution over 4 classes is one."""
    seen = []

    def watched(pairs):
        seen.append(pairs)
        return region_dpo(pairs, margin=image_mean, loss=partial(sigmoid_loss, beta=1.0))

    run = stripes(activation, (0.0, 0.0, 0.0, 0.0), tmp_path, objective=watched)
    run.train()
    (pairs,) = seen
    assert pairs.pixels == variables
    moved = replace(pairs, logits=pairs.ref_logits + pairs.sign)  # 16 entries, each by 1 in the right direction
    assert image_mean(moved).item() == pytest.approx(16 / variables)


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_classes_outside_R_cost_their_cross_entropy_whatever_is_added_to_all_logits(shift, tmp_path):
    """Of 56 pixels that both masks agree on 8 are of class 0 and 16 of each other."""
    levels = torch.tensor([1.0, 0.0, -1.0, 2.0])
    run = stripes("softmax", (levels + shift).tolist(), tmp_path, outside_weight=0.5)
    run.train()
    costs = levels.logsumexp(0) - levels
    expected = (8 * costs[0] + 16 * costs[1:].sum()) / 56
    assert logged(run, "pairs/outside") == [pytest.approx(expected.item(), abs=1e-5)]


def test_regions_outside_R_cost_their_binary_cross_entropies(tmp_path):
    """Of 4 · 64 entries R has the first column's in regions 0 and 1; of a region's 64 pixels 16 are on."""
    run = stripes("sigmoid", (1.0, 0.0, -1.0, 2.0), tmp_path, outside_weight=0.5)
    run.train()
    on, off = (torch.nn.functional.softplus(sign * torch.tensor([1.0, 0.0, -1.0, 2.0])) for sign in (-1, 1))
    expected = torch.tensor([8.0, 16, 16, 16]) @ on + torch.tensor([48.0, 40, 48, 48]) @ off
    assert logged(run, "pairs/outside") == [pytest.approx(expected.item() / 240, abs=1e-5)]


def test_the_same_seed_gives_the_same_weights(tmp_path):
    case = CASES["2-D sigmoid"]
    data, found = list(discs(*case[:2])), []
    for seed in (0, 0, 1):
        model = segmenter(*case, dropout=0.2)
        trainer(model, [Example(*own) for own in data], (), tmp_path, seed=seed, max_steps=4).train()
        found.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_what_is_kept_is_the_average_of_the_weights(tmp_path):
    case = CASES["2-D sigmoid"]
    data, weights = list(discs(*case[:2])), []
    for average in (0.0, 0.5):
        model = segmenter(*case)
        steps = []
        run = trainer(model, [Example(*own) for own in data], (), tmp_path, average=average, max_steps=3)
        model.register_forward_pre_hook(lambda m, _, s=steps: s.append(next(m.parameters()).detach().clone()))
        run.train()
        weights.append((next(model.parameters()).detach().clone(), steps))
    (last, _), (kept, seen) = weights
    first, second = seen[1], seen[2]  # after the first and the second step
    torch.testing.assert_close(kept, 0.25 * (2 / 11 * first + 9 / 11 * second) + 0.75 * last)
    with pytest.raises(ValueError, match=r"average = 1\.5"):
        trainer(segmenter(*case), [Example(*data[0])], (), tmp_path, average=1.5)


def test_batch_norm_and_dropout_are_held_still_on_request(tmp_path):
    model = segmenter(*CASES["2-D sigmoid"], dropout=0.2).train()
    still = deepcopy(model)
    hold_still(still, MedicalArguments(output_dir=str(tmp_path), freeze_batch_norm=True, train_dropout=False))
    kinds = (_BatchNorm, torch.nn.modules.dropout._DropoutNd)
    assert all(m.training for m in model.modules())
    held = [m for m in still.modules() if isinstance(m, kinds)]
    assert held and not any(m.training for m in held)
    assert all(m.training for m in still.modules() if not isinstance(m, kinds))


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_dev_is_scored_on_the_way_and_at_the_last_step_and_changes_nothing(average, tmp_path):
    """The last number is that of the weights that are kept; a run that is not watched ends in the same bytes."""
    case = CASES["2-D sigmoid"]
    data, ends = list(discs(*case[:2])), []
    dev = [Prepared(str(i), *own, (1.0, 1.0), str(i)) for i, own in enumerate(discs(*case[:2], count=9))][6:]
    watched = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 5, "average": average}
    for settings in ({"max_steps": 5, "average": average}, watched):
        model = segmenter(*case, dropout=0.2)
        run = trainer(model, [Example(*own) for own in data], (), tmp_path, dev=dev, **settings)
        run.train()
        ends.append(torch.cat([t.flatten().double() for t in model.state_dict().values()]))
    assert torch.equal(*ends)
    lines = [entry for entry in run.state.log_history if "eval_dice" in entry]
    assert [entry["step"] for entry in lines] == [2, 4, 5]
    assert (lines[-1]["eval_threshold"], lines[-1]["eval_dice"]) == calibrate_threshold(model, dev)


def test_the_peak_on_dev_is_not_kept(tmp_path):
    case = CASES["2-D sigmoid"]
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "best"}
    with pytest.raises(ValueError, match="load_best_model_at_end: the last weights are kept, whatever dev says"):
        trainer(segmenter(*case), [Example(*own) for own in discs(*case[:2])], (), tmp_path, **best)
