"""A judge learns on a labelled half: no area in its lessons, better than chance on the other half, the same twice."""

from functools import partial

import pytest
import torch
from scipy import stats

from popen.data.safe_io import DataError
from popen.medical.cohort import Prepared
from popen.medical.mining import Candidates
from popen.medical.quality_regressor import QualityRegressor, halves, lessons, train_quality_regressor
from popen.medical.samplers import threshold_hypotheses
from popen.medical.segmenter import Segmenter, SegmenterConfig
from popen.preference.mask_judging import dice_with_truth

OFFSETS = (-0.6, -0.3, 0.0, 0.3, 0.6)


class Brightness(torch.nn.Module):
    """The logit of a region is the brightness over ½; with a background, that of what is dark."""

    def __init__(self, classes):
        super().__init__()
        self.gain, self.classes = torch.nn.Parameter(torch.ones(())), classes

    def forward(self, pictures):
        over = (pictures - 0.5) * self.gain
        return torch.cat([-over, over], 1) if self.classes else over


def segmenter(dims=2, activation="sigmoid"):
    regions = ("disc",) if activation == "sigmoid" else ("background", "disc")
    config = SegmenterConfig("brightness", dims, 1, regions, activation, (16,) * dims)
    return Segmenter(config, Brightness(activation == "softmax"))


def cases(count, dims=2, classes=False, side=16):
    """Bright discs in noise of several sizes."""
    generator = torch.Generator().manual_seed(count)
    axes = torch.meshgrid(*[torch.arange(float(side))] * dims, indexing="ij")
    for number in range(count):
        centre = torch.randint(6, side - 5, (dims,), generator=generator)
        radius = 2.5 + 3 * torch.rand((), generator=generator)
        disc = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) < radius**2
        picture = disc.float() + 0.3 * torch.randn(disc.shape, generator=generator)
        masks = torch.stack([~disc, disc]) if classes else disc[None]
        yield Prepared(f"c{number}", picture[None], masks, (1.0,) * dims, f"p{number}")


def sampler(model, pictures, names, activation="sigmoid"):
    return threshold_hypotheses(model, pictures, OFFSETS, activation)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_lessons_hold_hypotheses_damage_and_the_mirror_of_each(activation):
    own = list(cases(6, classes=activation == "softmax"))
    found = lessons(segmenter(activation=activation), own, partial(sampler, activation=activation), 0)
    dice, growth = [], []
    for lesson in found:
        assert lesson.masks.shape == (4 * len(OFFSETS), *lesson.case.masks.shape)
        if activation == "softmax":
            assert (lesson.masks.sum(1) == 1).all()
        disc, truth = lesson.masks[:, -1:], lesson.case.masks[-1:]
        dice.append(dice_with_truth(disc, truth))
        growth.append((disc.flatten(1).sum(1).clamp(min=1) / truth.sum()).log().clamp(-1.4, 1.4))
    dice, growth = torch.cat(dice), torch.cat(growth)
    assert len(dice.unique()) > 20 and growth.std() > 0.2
    assert abs(stats.pearsonr(dice, growth).statistic) < 0.05 and abs(growth.mean()) < 0.02


@pytest.mark.parametrize("dims", [2, 3])
def test_it_learns_to_order_masks_of_pictures_that_it_has_not_seen(dims):
    """Truth against the same disc moved, grown and shrunk alike: area alone would get a third of these right."""
    model, known = segmenter(dims), list(cases(10, dims))
    regressor = train_quality_regressor(model, known, sampler, 100 if dims == 2 else 60, seed=0)
    assert all(p.requires_grad for p in regressor.parameters()) and not regressor.training
    right = []
    for case in cases(14, dims):
        truth = case.masks[0]
        near = torch.nn.functional.max_pool2d if dims == 2 else torch.nn.functional.max_pool3d
        grown = near(truth[None].float(), 5, 1, 2)[0] > 0
        shrunk = near(-truth[None].float(), 3, 1, 1)[0] == -1
        masks = torch.stack([truth, grown, shrunk, truth.roll(4, -1)])[:, None]
        soft = masks.float()
        found = regressor.judge(Candidates(case.name, case.picture, masks, soft, soft.mean(0), "sigmoid"))
        assert found.shape == (4,) and found.dtype == torch.float64 and 0 <= found.min() <= found.max() <= 1
        right += [float(found[0] > other) for other in found[1:]]
    assert sum(right) / len(right) > 0.75


def test_the_same_seed_gives_the_same_judge_and_leaves_torchs_generator_alone():
    own = list(cases(3))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (train_quality_regressor(segmenter(), own, sampler, 3, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    weights = [torch.cat([p.flatten() for p in own.parameters()]) for own in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_halves_share_no_patient_and_depend_on_the_seed():
    own = [Prepared(f"{p}@{k}", torch.zeros(1, 4, 4), None, (1.0, 1.0), p) for p in "abcdef" for k in range(2)]
    train, tried = halves(own, 0)
    assert {case.patient for case in train}.isdisjoint(case.patient for case in tried)
    assert len(train) == len(tried) == 6
    assert any(halves(own, seed)[0] != train for seed in range(1, 5))


def test_what_cannot_work_is_one_line():
    own = list(cases(2))
    with pytest.raises(
        DataError, match=r"judge: regressor learns on half of the labelled patients .* only one; label"
    ):
        halves(own[:1], 0)
    with pytest.raises(ValueError, match="0 labelled cases, 10 steps: a judge needs one or more of both"):
        train_quality_regressor(segmenter(), [], sampler, 10, 0)
    with pytest.raises(ValueError, match="2 labelled cases, 0 steps"):
        train_quality_regressor(segmenter(), own, sampler, 0, 0)
    bare = Prepared("bare", own[0].picture, None, (1.0, 1.0), "p")
    with pytest.raises(ValueError, match="bare: no masks; a judge learns on labelled cases"):
        lessons(segmenter(), [bare], sampler, 0)
    with pytest.raises(ValueError, match=r"pictures \(1, 1, 8, 8\), masks \(1, 1, 4, 4\): not on the same grid"):
        QualityRegressor(2, 1, 1)(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4))
