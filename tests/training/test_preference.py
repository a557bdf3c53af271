"""Preference training on pairs mined from a small taught model of four scenes."""

import copy
import math
import typing
from itertools import pairwise

import pytest
import torch
from transformers import TrainerCallback, set_seed

from popen.data.safe_io import DataError
from popen.lvlm.mining import load_mined
from popen.medical.loss_choices import LossArguments, objective_of
from popen.objectives.region_pairs import RegionPairs
from popen.preference.mask_objectives import LossOnMargin, OneMaskMargin
from popen.preference.reference import check_fingerprint, model_fingerprint
from popen.training.preference import (
    MODEL_INPUTS,
    PreferenceArguments,
    PreferenceCollator,
    PreferenceStreams,
    PreferenceTrainer,
    seg_pairs,
)
from tests.mined import mined_folder


@pytest.fixture(scope="module")
def mined(tmp_path_factory, taught, samples):
    """(streams, report, model folder) of preferences mined from the taught model by embedding noise."""
    root = tmp_path_factory.mktemp("preference")
    rows = mined_folder(root, *taught, samples)
    text, seg, report = load_mined(root / "mined")
    return PreferenceStreams(text, seg, rows), report, root / "model"


@pytest.fixture
def fresh(taught, mined, tmp_path):
    """Builds a trainer on an own copy of the model that was mined."""

    def build(streams=None, model=None, callbacks=(), **options):
        defaults = {
            "max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "seed": 0, "logging_steps": 1,
            "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        }  # fmt: skip
        args = PreferenceArguments(output_dir=str(tmp_path / "out"), **(defaults | options))
        set_seed(args.seed)
        model = (model or copy.deepcopy(taught[0])).train()
        return PreferenceTrainer(
            model, args, train_dataset=streams or mined[0], processor=taught[1], callbacks=list(callbacks)
        )

    return build


def logs_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def batch_of(trainer, count=2):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(count)])


def loss_of(trainer, batch):
    """The loss on a batch outside of `train`, and the parts that were noted."""
    trainer.state.max_steps = trainer.args.max_steps
    loss = trainer.compute_loss(trainer.model, dict(batch)).detach()
    return loss, {name: values[-1] for name, values in trainer._parts.items()}


def test_there_is_something_to_prefer(mined):
    streams, report, _ = mined
    assert len(streams.text) >= 2 and report["text"]["kept"] == len(streams.text)
    assert report["seg"]["kept"] == sum(len(row["targets"]) for row in streams.seg) >= 2
    assert len(streams) == max(len(streams.text), len(streams.seg))


def test_before_the_first_step_every_margin_is_zero(fresh):
    """Policy = reference: margins 0, so both preference losses are −log σ(0) = ln 2."""
    trainer = fresh()
    trainer.train()
    first = logs_of(trainer)[0]
    for key in ("rewards/chosen", "rewards/rejected", "rewards/margins", "seg/margins"):
        assert first[key] == pytest.approx(0, abs=1e-4), key
    assert first["text/loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["seg/loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_every_log_line_holds_what_one_watches(fresh):
    trainer = fresh()
    trainer.train()
    expected = {
        "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
        "logps/rejected", "text/loss", "seg/loss", "seg/margins", "seg/accuracies", "seg/stage", "anchor/ce",
        "anchor/bce", "anchor/dice",
    }  # fmt: skip
    assert len(logs_of(trainer)) == 3
    for entry in logs_of(trainer):
        assert expected <= entry.keys()
        assert entry["rewards/margins"] == pytest.approx(entry["rewards/chosen"] - entry["rewards/rejected"], abs=1e-5)
        assert 0 <= entry["rewards/accuracies"] <= 1 and entry["logps/chosen"] < 0


def test_the_loss_is_the_weighted_sum(fresh):
    """L = λ_t L_t + λ_s L_s + λ_a L_a: each part alone gives back the sum; λ = 2, 3, 5 against 1, 1, 1."""
    parts = []
    for weights in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 3, 5)):
        names = ("text_weight", "seg_weight", "anchor_weight")
        trainer = fresh(**dict(zip(names, map(float, weights), strict=True)))
        parts.append(float(loss_of(trainer, batch_of(trainer))[0]))
    text, seg, anchor, mixed = parts
    assert text == pytest.approx(math.log(2), abs=1e-4) and seg == pytest.approx(math.log(2), abs=1e-4)
    assert mixed == pytest.approx(2 * text + 3 * seg + 5 * anchor, rel=1e-4)


def test_without_preferences_the_loss_is_the_anchor(fresh):
    """Cross-entropy on chosen and true answers and the mask losses, put together again from one forward pass."""
    trainer = fresh(text_weight=0.0, seg_weight=0.0)
    batch = batch_of(trainer)
    loss, _ = loss_of(trainer, batch)
    outputs = trainer.model(**{name: batch[name] for name in MODEL_INPUTS})
    pairs = batch["pairs"]
    rejected = torch.isin(batch["token_sequence"], pairs[:, 1])
    assert bool((batch["anchor"] == ~rejected).all())
    config = trainer.model.config
    expected = (
        -config.ce_weight * outputs.logps[~rejected].mean()
        + config.bce_weight * outputs.bce_loss
        + config.dice_weight * outputs.dice_loss
        + config.quality_weight * outputs.quality_loss
    )
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_the_control_does_not_depend_on_the_preferences_settings(fresh):
    """With both weights at 0 the betas and the weight of changed tokens leave every trained weight as it is."""
    plain = fresh(text_weight=0.0, seg_weight=0.0)
    other = fresh(text_weight=0.0, seg_weight=0.0, text_beta=0.9, seg_beta=3.0, changed_weight=4.0, localise_share=0.0)
    for trainer in (plain, other):
        trainer.train()
    pairs = zip(plain.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_weight_on_changed_tokens_scales_their_rewards(fresh):
    """Rewards are Σ w (log π − log π_ref): with π ≠ π_ref, w = 4 on changed tokens adds three times their part."""
    margins = {}
    batch = None
    for weight in (1.0, 2.0, 4.0):
        trainer = fresh(changed_weight=weight)
        trainer.state.global_step = 1  # past the check of the first step
        with torch.no_grad():
            trainer.model.get_output_embeddings().weight.mul_(1.1)
        batch = batch or batch_of(trainer)
        margins[weight] = loss_of(trainer, batch)[1]["rewards/margins"]
    changed = margins[2.0] - margins[1.0]
    assert abs(changed) > 1e-4
    assert margins[4.0] == pytest.approx(margins[1.0] + 3 * changed, rel=1e-3)


@pytest.mark.parametrize("share, stages", [(0.5, [1, 1, 2, 2]), (0.0, [2] * 4), (1.0, [1] * 4)])
def test_the_stage_switches_at_its_step(fresh, share, stages):
    trainer = fresh(max_steps=4, localise_share=share)
    trainer.train()
    assert [entry["seg/stage"] for entry in logs_of(trainer)] == stages


def test_one_pair_of_text_is_learnt(fresh, mined):
    """On a single pair, with nothing but L_t, the margin rises at every step."""
    streams = PreferenceStreams(mined[0].text.select([0]), mined[0].seg.select([0]), mined[0].source)
    trainer = fresh(
        streams, max_steps=6, seg_weight=0.0, anchor_weight=0.0, learning_rate=3e-4, per_device_train_batch_size=1
    )
    trainer.train()
    margins = [entry["rewards/margins"] for entry in logs_of(trainer)]
    assert margins[0] == pytest.approx(0, abs=1e-4)
    assert all(later > earlier for earlier, later in pairwise(margins))


def test_one_picture_of_masks_is_learnt(fresh, mined):
    index = next(i for i, row in enumerate(mined[0].seg) if row["targets"])
    streams = PreferenceStreams(mined[0].text.select([0]), mined[0].seg.select([index]), mined[0].source)
    trainer = fresh(
        streams, max_steps=6, text_weight=0.0, seg_weight=1.0, anchor_weight=0.0, localise_share=1.0,
        learning_rate=3e-4, per_device_train_batch_size=1,
    )  # fmt: skip
    trainer.train()
    margins = [entry["seg/margins"] for entry in logs_of(trainer)]
    assert margins[0] == pytest.approx(0, abs=1e-4) and margins[-1] > 0.05


def test_pictures_without_a_preference_are_trained_on_all_the_same(fresh, mined):
    """A picture whose targets were all ties adds nothing to L_s and counts for the anchor."""
    seg = mined[0].seg.map(lambda row: {"targets": []}, load_from_cache_file=False, keep_in_memory=True)
    trainer = fresh(PreferenceStreams(mined[0].text, seg, mined[0].source), max_steps=1)
    trainer.train()
    entry = logs_of(trainer)[0]
    assert entry["seg/loss"] == 0 and entry["anchor/bce"] > 0 and math.isfinite(entry["loss"])


# ---- which margin between masks, and which loss on it


@pytest.mark.parametrize("margin", typing.get_args(OneMaskMargin))
@pytest.mark.parametrize("loss", typing.get_args(LossOnMargin))
def test_any_margin_takes_any_loss(fresh, margin, loss):
    """Once the decoder has moved by 3 %, L_s is what a segmenter's objective makes of the batch's regions."""
    trainer = fresh(
        seg_margin=margin, seg_loss=loss, seg_alpha=0.3, seg_beta=0.5, seg_label_smoothing=0.2, text_weight=0.0,
        anchor_weight=0.0, seg_weight=1.0,
    )  # fmt: skip
    trainer.state.global_step = 1  # past the check of the first step
    with torch.no_grad():
        for parameter in trainer.model.mask_decoder.parameters():
            parameter.mul_(1.03)
    batch = batch_of(trainer)
    found, _ = loss_of(trainer, batch)
    with torch.no_grad():
        logits = trainer.model(**{name: batch[name] for name in MODEL_INPUTS}).mask_logits
    target, signs = batch["stage1_preferred_target"], batch["stage1_region_signs"]
    assert len(target) > 1 and len(set(signs.abs().sum(1).tolist())) > 1
    own = logits.flatten(1)[target].gather(1, batch["stage1_region_pixels"])
    cells = logits[0].numel()  # scenes fill their canvas
    zeros = torch.zeros_like(signs, dtype=torch.long)
    pairs = RegionPairs(own, batch["stage1_region_ref_logits"], signs, zeros, batch["stage1_gap"], 1, float(cells))
    medical = LossArguments(margin=margin, loss=loss, alpha=0.3, beta=0.5, label_smoothing=0.2)
    expected = objective_of(medical)(pairs)
    assert expected.chosen.abs().max() > 1e-6
    torch.testing.assert_close(found, expected.losses.mean())


def test_pixels_that_do_not_count_are_no_part_of_an_image_mean(fresh):
    """A canvas whose right half is padding has half as many cells, and the margin twice the size."""
    found = {}
    for name in ("whole", "half"):
        trainer = fresh(seg_margin="image_mean", seg_loss="ipo", seg_beta=0.5)
        batch = batch_of(trainer)
        if name == "half":
            batch["valid"][..., batch["valid"].shape[-1] // 2 :] = False
        with torch.no_grad():
            outputs = trainer.model(**{key: batch[key] for key in MODEL_INPUTS})
        found[name] = seg_pairs(outputs, batch, 1).pixels
    grid = outputs.mask_logits[0].numel()
    assert (found["whole"] == grid).all() and (found["half"] == grid // 2).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seg_margin": "power", "seg_alpha": 2.0}, "^seg_alpha must be in 0..1, got 2.0$"),
        ({"seg_loss": "rdpo", "seg_label_smoothing": 0.5}, "^seg_label_smoothing must be in .0, 0.5., got 0.5$"),
        ({"seg_beta": 0.0}, "^seg_beta must be a finite number > 0, got 0.0$"),
    ],
)
def test_numbers_that_the_margin_or_loss_cannot_take_are_refused_at_once(tmp_path, wrong, message):
    with pytest.raises(DataError, match=message):
        PreferenceArguments(output_dir=str(tmp_path), use_cpu=True, **wrong)


# ---- the reference


def other_model(model):
    """The model with another last layer, as if it had been trained on."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in (*other.get_output_embeddings().parameters(), *other.mask_decoder.parameters()):
            parameter.mul_(1.2)
    return other


def test_preferences_of_another_model_are_refused_at_the_first_step(fresh, taught):
    trainer = fresh(model=other_model(taught[0]))
    with pytest.raises(ValueError, match="before the first step") as refusal:
        trainer.train()
    assert trainer.state.global_step == 0 and "\n" not in str(refusal.value) and "mine again" in str(refusal.value)


def test_masks_of_another_model_are_refused_too(fresh, taught):
    other = copy.deepcopy(taught[0])
    with torch.no_grad():
        for parameter in other.mask_decoder.parameters():
            parameter.mul_(1.2)
    with pytest.raises(ValueError, match="the segmentation margin"):
        fresh(model=other).train()


def test_a_fingerprint_tells_models_apart(mined, taught, tmp_path):
    _, report, folder = mined
    check_fingerprint(report["model"], model_fingerprint(folder), "model", "mined")
    other_model(taught[0]).save_pretrained(tmp_path / "other")
    with pytest.raises(DataError, match="mined") as refusal:
        check_fingerprint(report["model"], model_fingerprint(tmp_path / "other"), "model", "runs/mined")
    assert "runs/mined" in str(refusal.value) and "\n" not in str(refusal.value)


def test_calibration_keeps_the_fingerprint(mined, taught, tmp_path):
    model = copy.deepcopy(taught[0])
    model.config.mask_threshold = 0.75
    model.save_pretrained(tmp_path)
    assert model_fingerprint(tmp_path) == mined[1]["model"]


def test_a_folder_without_weights_has_no_fingerprint(tmp_path):
    with pytest.raises(DataError, match="safetensors"):
        model_fingerprint(tmp_path)


# ---- the streams


def test_the_shorter_stream_starts_over(mined):
    streams = PreferenceStreams(mined[0].text.select([0]), mined[0].seg, mined[0].source)
    assert len(streams) == len(streams.seg)
    items = [streams[i] for i in range(len(streams))]
    assert {item["text"][0]["id"] for item in items} == {streams.text[0]["id"]}
    assert [item["seg"][0]["id"] for item in items] == list(streams.seg["id"])
    assert all(item["seg"][1].image_id == item["seg"][0]["id"] for item in items)


@pytest.mark.parametrize("empty", ["text", "seg"])
def test_an_empty_stream_is_an_error(mined, empty):
    parts = {"text": mined[0].text, "seg": mined[0].seg} | {empty: getattr(mined[0], empty).select([])}
    with pytest.raises(ValueError, match="at least one"):
        PreferenceStreams(parts["text"], parts["seg"], mined[0].source)


def test_a_batch_does_not_change_its_pairs_losses(fresh, mined):
    """Padding and company do not matter: the sum over a batch of two equals two batches of one."""
    trainer = fresh()
    collator = PreferenceCollator(trainer.processor, trainer.model.config.scales)
    items = [mined[0][0], mined[0][1]]
    together, alone = collator(items), [collator([item]) for item in items]
    with torch.no_grad():
        both = trainer.model(**{name: together[name] for name in MODEL_INPUTS}).logps
        each = [trainer.model(**{name: batch[name] for name in MODEL_INPUTS}).logps for batch in alone]
    texts = 2 * len(items)
    text = both[together["token_sequence"] < texts]
    own = torch.cat([logps[batch["token_sequence"] < 2] for logps, batch in zip(each, alone, strict=True)])
    torch.testing.assert_close(text, own, atol=1e-4, rtol=1e-4)


class Halt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            control.should_training_stop = True


def test_a_stopped_run_resumes_to_the_same_weights(fresh, tmp_path):
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3}
    whole = fresh(**options)
    whole.train()
    stopped = fresh(**options, callbacks=[Halt()])
    stopped.train()
    resumed = fresh(**options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
