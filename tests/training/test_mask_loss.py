"""A segmenter's losses on an LVLM's masks: by hand, those of the medical functions, and pixels that do not count."""

import copy
import typing
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainerCallback, set_seed

from popen.data.safe_io import DataError
from popen.data.scene_questions import sample
from popen.data.schema import write_dataset
from popen.medical.boundary import geodesic_membership, signed_distance
from popen.medical.loss_choices import LossArguments, Supervised, supervised_of
from popen.medical.supervised import Labelled
from popen.training import SegmentationSFTTrainer, SFTArguments
from popen.training.mask_loss import BCE_DICE, MaskLossArguments, mask_loss_of, mask_parts, target_maps

NAMES = [name for name in typing.get_args(MaskLossArguments.__annotations__["mask_loss"]) if name != "bce_dice"]
SIDE = 12


def loss_of(name):
    return mask_loss_of(MaskLossArguments(mask_loss=name, band=2.5))


def picture(seed=0, side=SIDE):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def batch_of(name, masks, valid, pictures, rows=None):
    """What a collator makes of soft masks (T, side, side)."""
    rows = torch.zeros(len(masks), dtype=torch.long) if rows is None else rows
    batch = {"target_masks": masks, "target_row": rows, "valid": valid}
    return batch | target_maps(loss_of(name), batch, pictures)


@pytest.fixture
def masks():
    """Three targets on two pictures; one touches the edge, one has half-covered pixels."""
    found = torch.zeros(3, SIDE, SIDE)
    found[0, 3:9, 3:9], found[1, 2:5, 6:], found[2, 5:11, :4] = 1.0, 0.9, 0.6
    found[2, 4, :4] = 0.4
    return found


ROWS = torch.tensor([0, 0, 1])


def test_the_segmenters_losses_are_all_there():
    assert [name for name in typing.get_args(Supervised) if name != "cross_entropy_dice"] == NAMES
    assert mask_loss_of(BCE_DICE) is None


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_medical_loss_on_the_same_masks(name, masks):
    """On pictures that fill their canvas, with logits as large as it; but SVLS, whose neighbours end at the edge."""
    valid = torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    pictures = [picture(0), picture(1)]
    batch = batch_of(name, masks, valid, pictures, ROWS)
    logits = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = mask_parts(loss_of(name).loss, logits, batch, 0.3)
    hard = (masks > 0.5)[:, None]
    distance = torch.from_numpy(signed_distance(hard.numpy(), (1.0, 1.0)))
    seen = np.stack([np.asarray(own, np.float32).transpose(2, 0, 1) for own in pictures])
    seen = (seen - seen.mean((2, 3), keepdims=True)) / seen.std((2, 3), keepdims=True)
    geodesic = [geodesic_membership(seen[r], own.numpy(), (1.0, 1.0), 0.5) for own, r in zip(hard, ROWS, strict=True)]
    whole = valid[:, None][ROWS] if name == "svls" else None
    given = Labelled((logits[:, None],), hard, distance, torch.from_numpy(np.stack(geodesic)), 0.3, whole)
    expected = supervised_of(LossArguments(supervised=name, band=2.5), "sigmoid")(given)
    assert found.keys() == expected.keys() and sum(found.values()) > 0
    for part in found:
        torch.testing.assert_close(found[part], expected[part])


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name, masks):
    """The same pictures on a canvas twice as large, whose further pixels hold anything: equal parts and slopes."""
    logits = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    parts, slopes = [], []
    for side in (SIDE, 2 * SIDE):
        valid = torch.zeros(2, side, side, dtype=torch.bool)
        valid[:, :SIDE, :SIDE] = True
        large, own = torch.rand(3, side, side), torch.full((3, side, side), 7.0)
        large[:, :SIDE, :SIDE], own[:, :SIDE, :SIDE] = masks, logits
        pictures = [picture(5, side), picture(6, side)]
        for seed, canvas in enumerate(pictures):
            canvas.paste(picture(seed), (0, 0))
        own.requires_grad_()
        found = mask_parts(loss_of(name).loss, own, batch_of(name, large, valid, pictures, ROWS), 0.3)
        sum(found.values()).backward()
        parts.append({part: value.detach() for part, value in found.items()})
        slopes.append(own.grad)
    torch.testing.assert_close(parts[0], parts[1])
    torch.testing.assert_close(slopes[1][:, :SIDE, :SIDE], slopes[0], atol=1e-7, rtol=1e-5)
    slopes[1][:, :SIDE, :SIDE] = 0
    assert not slopes[1].any() and slopes[0].any()


@pytest.mark.parametrize("name", NAMES)
def test_the_sum_over_targets_does_not_depend_on_the_batch(name, masks):
    """Means over 3 targets, times 3, are those of 1 and of 2 together; a picture without targets adds nothing."""
    valid, pictures = torch.ones(2, SIDE, SIDE, dtype=torch.bool), [picture(0), picture(1)]
    logits = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0))
    sums = []
    for slices in ((slice(0, 3),), (slice(0, 1), slice(1, 3), slice(3, 3))):
        total = {}
        for own in slices:
            batch = batch_of(name, masks[own], valid, pictures, ROWS[own])
            parts = mask_parts(loss_of(name).loss, logits[own].requires_grad_(), batch, 0.3)
            for part, value in parts.items():
                assert value.isfinite() and value.requires_grad
                total[part] = total.get(part, 0) + value.detach() * len(masks[own])
        sums.append(total)
    torch.testing.assert_close(sums[0], sums[1])


def test_a_mask_has_no_boundary_where_it_meets_padding_or_what_is_ignored():
    """A row of six: the last two are padding, the mask is the two before them, one pixel of which half is covered."""
    masks = torch.tensor([[[0.0, 0.2, 0.6, 1.0, 0.0, 0.0]]])
    valid = torch.tensor([[[True, True, True, True, False, False]]])
    batch = batch_of("fuzzy", masks, valid, [])
    assert batch["target_distance"][0, 0, :4].tolist() == [-2, -1, 1, 2]
    batch = batch_of("fuzzy", masks, torch.tensor([[[True, False, True, True, False, False]]]), [])
    assert batch["target_distance"][0, 0, [0, 2, 3]].tolist() == [-2, 2, 3]


def test_a_target_without_counted_pixels_costs_nothing(masks):
    nothing = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    for name in NAMES:
        batch = batch_of(name, masks, nothing, [picture()])
        parts = mask_parts(loss_of(name).loss, torch.randn(3, 6, 6).requires_grad_(), batch, 0.3)
        assert sum(parts.values()) == 0, name


def test_a_picture_of_one_colour_has_geodesic_maps():
    masks, valid = torch.zeros(1, SIDE, SIDE), torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    masks[0, 3:9, 3:9] = 1
    found = batch_of("geols", masks, valid, [Image.new("RGB", (SIDE, SIDE), (9, 9, 9))])["target_geodesic"]
    assert found.isfinite().all() and found.max() == 1 and found.min() == 0


@pytest.mark.parametrize("wrong", [{"band": 1.0}, {"interior_limit": -1.0}, {"multiplier_rate": 0.0}])
def test_numbers_out_of_range_are_refused_as_for_a_segmenter(wrong):
    for kind in (MaskLossArguments, LossArguments):
        with pytest.raises(DataError, match=next(iter(wrong))):
            kind(**wrong)


# ---- in the trainer


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_dataset((sample(seed) for seed in range(4)), tmp_path_factory.mktemp("masks") / "data", "train")


@pytest.fixture
def fresh(tiny, rows, tmp_path):
    def build(name, config=(), **options):
        defaults = {
            "max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "seed": 0, "logging_steps": 1,
            "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        }  # fmt: skip
        args = SFTArguments(output_dir=str(tmp_path), **(defaults | options))
        set_seed(args.seed)
        model = copy.deepcopy(tiny[0]).train()
        for key, value in dict(config).items():
            setattr(model.config, key, value)
        chosen = mask_loss_of(MaskLossArguments(mask_loss=name))
        return SegmentationSFTTrainer(model, args, train_dataset=rows, processor=tiny[1], mask_loss=chosen)

    return build


def collated(trainer):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(4)])


def test_by_default_the_loss_is_the_models(fresh):
    trainer = fresh("bce_dice")
    batch = collated(trainer)
    assert not {"target_distance", "target_geodesic"} & batch.keys()
    loss = trainer.compute_loss(trainer.model, batch)
    assert torch.equal(loss, trainer.model(**trainer.model_inputs(batch)).loss)


@pytest.mark.parametrize("name", NAMES)
def test_it_stands_in_the_place_of_the_models_own(fresh, name):
    """The loss is that of a model that weighs its own with 0, and the parts, whose Dice weighs 0.7 and the rest 3."""
    trainer = fresh(name, {"bce_weight": 3.0, "dice_weight": 0.7})
    batch = collated(trainer)
    found, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    noted = {key.removeprefix("mask/"): own[0] for key, own in trainer._parts.items() if key.startswith("mask/")}
    assert "dice" in noted and len(noted) > 1
    bare = fresh("bce_dice", {"bce_weight": 0.0, "dice_weight": 0.0})
    rest = bare.compute_loss(bare.model, collated(bare))
    expected = float(rest.detach()) + 0.7 * noted.pop("dice") + 3 * sum(noted.values())
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert all(p.grad.isfinite().all() for p in trainer.model.parameters() if p.grad is not None)
    assert trainer._parts["seg/bce"] == [float(outputs.bce_loss.detach())]


@pytest.mark.parametrize("name", ["svls", "pareto"])
def test_accumulated_batches_are_one_batch(fresh, name):
    logs = []
    for at_once, accumulated in ((4, 1), (1, 4)):
        trainer = fresh(name, per_device_train_batch_size=at_once, gradient_accumulation_steps=accumulated)
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    for whole, parts in zip(*logs, strict=True):
        for part in ("loss", "grad_norm"):
            assert parts[part] == pytest.approx(whole[part], abs=1e-3), part


def test_words_alone_are_trained_as_before(fresh, tmp_path):
    """A picture without targets: the model's loss but for masks, which it has none of; and the multiplier stays."""
    trainer, plain = fresh("epsilon_constraint"), fresh("bce_dice")
    scene = sample(0)
    words = [own for own in scene.questions if not own.masks]
    assert words
    row = write_dataset([replace(scene, questions=tuple(words))], tmp_path / "words", "train")[0]
    found, expected = (own.compute_loss(own.model, own.data_collator([row])) for own in (trainer, plain))
    torch.testing.assert_close(found, expected)
    assert trainer.mask_loss.constraint.multiplier == 1.0


class Halt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            control.should_training_stop = True


def test_a_stopped_run_resumes_with_its_multiplier(fresh, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}
    whole, stopped = fresh("epsilon_constraint", **options), fresh("epsilon_constraint", **options)
    whole.train()
    stopped.add_callback(Halt())
    stopped.train()
    resumed = fresh("epsilon_constraint", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.mask_loss.constraint.multiplier == whole.mask_loss.constraint.multiplier > 1
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    newest = fresh("epsilon_constraint", **options)
    newest.train(resume_from_checkpoint=True)  # all is done
    assert newest.mask_loss.constraint.multiplier == whole.mask_loss.constraint.multiplier


@pytest.mark.parametrize("text", ['{"multiplier": -1}', "[]", '{"multiplier": "2"}'])
def test_a_multiplier_that_is_none_is_refused(fresh, tmp_path, text):
    (tmp_path / "mask_loss.json").write_text(text)
    with pytest.raises(DataError, match=r"mask_loss\.json: multiplier .* is no number >= 0; start anew"):
        fresh("epsilon_constraint").train(resume_from_checkpoint=str(tmp_path))


def test_a_checkpoint_of_another_loss_has_no_multiplier(fresh, tmp_path):
    with pytest.raises(DataError, match=r"mask_loss\.json"):
        fresh("epsilon_constraint").train(resume_from_checkpoint=str(tmp_path))
    assert not (tmp_path / "mask_loss.json").exists()
