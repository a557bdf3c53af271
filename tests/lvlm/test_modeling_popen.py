"""The model: its loss and gradients, its files, LoRA, and the counts that make DDP exact."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.utils import ModelOutput

import popen.lvlm  # noqa: F401 (registers the Auto classes)
from popen.data import rle
from popen.lvlm.configuration_popen import PopenConfig
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.packing import alignment_batch, supervised_batch
from popen.objectives.masks import bce_loss

# what the supervised loss does not reach: CLIP's pooled output is not read, the preference head trains on P_s
UNREACHED = ("backbone.model.vision_tower.post_layernorm.", "preference_head.")


def inputs_of(processor, samples):
    batch = supervised_batch(processor, samples)
    return {name: value for name, value in batch.items() if name not in ("token_sequence", "sequence_row")}


@pytest.fixture(scope="module")
def inputs(tiny, samples):
    return inputs_of(tiny[1], samples[:2])


@pytest.fixture
def model(tiny):
    return copy.deepcopy(tiny[0])


def same(a, b):
    return torch.equal(a.logps, b.logps) and torch.equal(a.mask_logits, b.mask_logits)


def test_loss_is_the_weighted_sum_of_its_parts(model, inputs):
    weights = {"ce": 0.7, "bce": 3.0, "dice": 0.4, "quality": 0.2, "look": 0.6, "name": 0.9}
    for name, weight in weights.items():
        setattr(model.config, f"{name}_weight", weight)
    with torch.no_grad():
        output = model(**inputs)
    parts = {name: getattr(output, f"{name}_loss") for name in weights}
    assert output.loss.isfinite() and min(parts.values()) > 0
    torch.testing.assert_close(output.loss, sum(weights[name] * parts[name] for name in weights))


def test_the_look_loss_is_the_log_of_the_attention_on_the_target(model, inputs):
    """The last layer's first head, by hand from the attention weights that transformers returns."""
    with torch.no_grad():
        output = model(**inputs)
        pictures = model.encode_pictures(inputs["pixel_values"])
        mask = torch.zeros(inputs["attention_mask"].shape).masked_fill(~inputs["attention_mask"], -1e9)
        attention = model.backbone.model(
            input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], attention_mask=mask,
            mm_encoder_outputs={"image": ModelOutput(pooler_output=pictures.language)}, output_attentions=True,
        ).attentions[-1][:, 0]  # fmt: skip
    first = int((inputs["input_ids"][0] == model.config.backbone_config.image_token_id).nonzero()[0])
    losses = []
    for row, column, target in zip(inputs["look_row"], inputs["look_column"], inputs["look_target"], strict=True):
        cover = torch.nn.functional.avg_pool2d(inputs["target_masks"][target][None], 12).flatten()
        looked = attention[row, column, first : first + 64]
        losses.append(-(looked * cover / cover.max()).sum().log())
    torch.testing.assert_close(output.look_loss, torch.stack(losses).mean(), atol=1e-4, rtol=1e-4)


def test_looking_needs_eager_attention(model, inputs):
    model.backbone.model.language_model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="attn_implementation=eager"):
        model(**inputs)
    model.config.look_weight = 0.0
    assert model(**inputs).look_loss is None


def test_the_name_loss_is_the_words_cross_entropy_at_the_pooled_picture_tokens(model, inputs):
    """Each token counts by the share of the target in it; the words are those of the answer's phrase."""
    with torch.no_grad():
        output = model(**inputs)
        tokens = torch.stack(model.encode_pictures(inputs["pixel_values"]).language)
        losses = []
        for row, mask, phrase in zip(
            inputs["target_row"], inputs["target_masks"], inputs["target_phrases"], strict=True
        ):
            share = torch.nn.functional.avg_pool2d(mask[None], 12).flatten()
            pooled = (share[:, None] * tokens[row]).sum(0) / share.sum()
            logps = model.get_output_embeddings()(pooled).log_softmax(-1)
            losses.append(-logps[phrase[phrase >= 0]].mean())
    torch.testing.assert_close(output.name_loss, torch.stack(losses).mean())


def test_pictures_alone_are_aligned(model, tiny, samples, inputs):
    """Each distinct target once: its tokens name it, its words alone ask for its mask; the layers get no gradient."""
    batch = alignment_batch(tiny[1], samples[:2])
    distinct = {(s.image_id, m["counts"]) for s in samples[:2] for q in s.questions for m in q.masks}
    assert len(batch["target_masks"]) == len(distinct) < len(inputs["target_masks"])
    output, config = model(**batch), model.config
    parts = {"name": 1.0, "bce": config.bce_weight, "dice": config.dice_weight, "quality": config.quality_weight}
    expected = sum(weight * getattr(output, f"{name}_loss") for name, weight in parts.items())
    torch.testing.assert_close(output.loss, expected)
    assert output.logps is None
    output.loss.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    for part in ("vision_tower", "pixel_encoder", "mask_decoder", "codebook", "embed_tokens"):
        assert any(part in name for name in reached), part
    assert not any("language_model.layers" in name for name in reached)


def test_the_same_words_ask_for_the_same_mask(model, tiny, samples):
    """A phrase's embedding follows from its words alone, not from their order or the padding beside them."""
    batch = alignment_batch(tiny[1], samples[:1])
    phrases = batch["target_phrases"]
    turned = torch.cat([torch.full((len(phrases), 2), -1), phrases.flip(1)], 1)
    with torch.no_grad():
        a, b = model(**batch), model(**(batch | {"target_phrases": turned}))
    torch.testing.assert_close(a.embeddings, b.embeddings)
    assert not torch.allclose(a.embeddings[0], a.embeddings[1])


def test_alignment_does_not_see_ignored_pixels(model, tiny, samples):
    left = np.zeros((96, 96), bool)
    left[:, :48] = True
    batch = alignment_batch(tiny[1], [replace(samples[0], ignore=rle.encode(left))])
    other = batch["target_masks"].clone()
    other[..., :48] = 1 - other[..., :48]
    with torch.no_grad():
        assert model(**batch).loss == model(**(batch | {"target_masks": other})).loss


def test_frozen_vision_leaves_the_language_model_and_the_codebook(model, inputs):
    model.freeze_vision()
    model(**inputs).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained and all("language_model" in name or name.startswith("codebook.") for name in trained)
    assert any(name.startswith("codebook.") for name in trained)


def test_a_model_that_does_not_look(tiny, inputs):
    config = copy.deepcopy(tiny[0].config)
    config.look_weight = 0.0
    plain = PopenForReasoningSegmentation(config)
    assert plain(**inputs).look_loss is None


def test_parts_are_means_over_tokens_and_targets(model, inputs):
    """CE from the logits with torch's own function; BCE without refinement from the objective."""
    model.config.refinement_alpha = 1.0
    with torch.no_grad():
        output = model(**inputs)
        pictures = model.encode_pictures(inputs["pixel_values"])
        hidden, _ = model.read(inputs["input_ids"], inputs["position_ids"], inputs["attention_mask"], pictures)
        words = model.get_output_embeddings()(hidden[inputs["token_row"], inputs["token_predictor"]])
    assert words.shape == (len(output.logps), model.config.get_text_config().vocab_size)
    torch.testing.assert_close(output.ce_loss, torch.nn.functional.cross_entropy(words, inputs["token_labels"]))
    logits = torch.nn.functional.interpolate(output.mask_logits[:, None], (96, 96), mode="bilinear")[:, 0]
    bce = bce_loss(logits, inputs["target_masks"], inputs["valid"][inputs["target_row"]])
    torch.testing.assert_close(output.bce_loss, bce.mean())


def test_refinement_costs_where_masks_of_one_answer_overlap(model, inputs):
    with torch.no_grad():
        model.mask_decoder.scale_weights.mul_(100)  # masks that claim something
        plain, refined = [], []
        for alpha, found in ((1.0, plain), (4.0, refined)):
            model.config.refinement_alpha = alpha
            found.append(model(**inputs).bce_loss)
    assert refined[0] > plain[0]


def test_shapes_without_masks(model, inputs):
    masks = ("target_masks", "valid", "target_group", "target_phrases")
    text = {name: value for name, value in inputs.items() if name not in masks}
    with torch.no_grad():
        output = model(**text)
    tokens, targets = len(inputs["token_labels"]), len(inputs["target_row"])
    assert output.bce_loss is output.look_loss is output.name_loss is None and output.loss == output.ce_loss
    assert output.logps.shape == (tokens,) and output.embeddings.shape == (targets, 2, 16)
    assert output.mask_logits.shape == (targets, 48, 48) and output.predicted_iou.shape == (targets,)


def test_ignored_pixels_change_nothing(model, inputs):
    valid = inputs["valid"].clone()
    valid[:, :20] = False
    other = inputs["target_masks"].clone()
    other[:, :20] = 1 - other[:, :20]
    with torch.no_grad():
        a = model(**(inputs | {"valid": valid}))
        b = model(**(inputs | {"valid": valid, "target_masks": other}))
        c = model(**(inputs | {"target_masks": other}))
    assert a.loss == b.loss != c.loss


def test_gradient_reaches_every_parameter(model, inputs):
    model.train()
    model(**inputs).loss.backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0}
    assert {name for name in still if not name.startswith(UNREACHED)} == set()
    assert any(name.startswith("preference_head.") for name in still)


def test_the_preference_head_has_gradients_of_its_own(model, inputs):
    with torch.no_grad():
        output = model(**inputs)
    hypotheses = output.embeddings[:2, None] + torch.randn(2, 3, 2, 16)
    logits = torch.randn(2, 3, 48, 48)
    features = output.features[-1][inputs["target_row"][:2]]
    scores = model.preference_head(model.preference_head.evidence(hypotheses, logits, features))
    assert scores.shape == (2, 3)
    (scores[:, 0] - scores[:, 1]).sum().backward()
    reached = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.preference_head.parameters()]
    assert all(reached[:-1])  # the last bias moves all scores alike: only differences mean anything


def test_every_attention_implementation_reads_the_mask(model, inputs):
    with torch.no_grad():
        by_hand = model(**inputs)
        model.backbone.model.language_model.set_attn_implementation("sdpa")
        model.config.look_weight = 0.0
        by_sdpa = model(**inputs)
    torch.testing.assert_close(by_hand.logps, by_sdpa.logps, atol=1e-4, rtol=1e-4)


def test_gradient_checkpointing_changes_nothing(model, inputs):
    gradients = []
    for checkpointing in (False, True):
        copied = copy.deepcopy(model).train()
        if checkpointing:
            copied.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        copied(**inputs).loss.backward()
        gradients.append({n: p.grad for n, p in copied.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


def assert_halves_average_to_the_whole(model, whole, halves, counts, names):
    outputs = [model(**half, **{name: count / 2 for name, count in counts.items()}) for half in halves]
    output = model(**whole)
    for name in names:
        mean = sum(getattr(part, name) for part in outputs) / 2
        torch.testing.assert_close(mean, getattr(output, name), atol=1e-5, rtol=1e-5)
    weight = model.codebook.fusion
    (of_whole,) = torch.autograd.grad(output.loss, weight)
    (of_parts,) = torch.autograd.grad(sum(part.loss for part in outputs) / 2, weight)
    torch.testing.assert_close(of_parts, of_whole, atol=1e-6, rtol=1e-4)


@pytest.fixture
def halves(tiny, samples):
    """Two ranks with unequal numbers of tokens, targets and questions."""
    parts = [samples[0], replace(samples[1], questions=samples[1].questions[:4])]
    inputs = [inputs_of(tiny[1], [part]) for part in parts]
    for name in ("token_labels", "target_row", "look_row"):
        assert len(inputs[0][name]) != len(inputs[1][name])
    return inputs_of(tiny[1], parts), inputs


def test_halves_with_the_mean_count_average_to_the_whole(model, halves):
    """Two ranks, each divided by the mean count: the mean of their losses and gradients is the whole's.

    ½ (Σ₁ / (N/2) + Σ₂ / (N/2)) = (Σ₁ + Σ₂) / N, for tokens and targets alike.
    """
    whole, *parts = (
        {name: value for name, value in part.items() if not name.startswith("look_")}
        for part in (halves[0], *halves[1])
    )
    counts = {"token_count": len(whole["token_labels"]), "target_count": len(whole["target_row"])}
    names = ("loss", "ce_loss", "bce_loss", "dice_loss", "quality_loss", "name_loss")
    assert_halves_average_to_the_whole(model, whole, parts, counts, names)


def test_the_look_loss_of_halves_averages_to_the_whole(model, halves):
    """As above for questions: one rank has six of them, the other four."""
    whole, parts = halves
    counts = {
        "token_count": len(whole["token_labels"]),
        "target_count": len(whole["target_row"]),
        "look_count": len(whole["look_row"]),
    }
    assert_halves_average_to_the_whole(model, whole, parts, counts, ("loss", "look_loss"))


def test_save_and_load_are_bit_equal(model, inputs, tmp_path):
    model.config.mask_threshold = 0.25
    model.save_pretrained(tmp_path)
    loaded = PopenForReasoningSegmentation.from_pretrained(tmp_path, attn_implementation="eager")
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert loaded.config.mask_threshold == 0.25 and loaded.config.embedding_std == [0.1, 0.1]
    with torch.no_grad():
        assert same(model(**inputs), loaded(**inputs))
    assert "backbone.lm_head.weight" not in load_file(tmp_path / "model.safetensors")  # tied: stored once


@pytest.mark.parametrize("auto", [AutoModelForImageTextToText, AutoModelForCausalLM])
def test_auto_classes(model, tmp_path, auto):
    model.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path)
    assert type(loaded) is PopenForReasoningSegmentation and type(AutoConfig.from_pretrained(tmp_path)) is PopenConfig
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_the_words_share_their_matrix(model):
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_lora(model, inputs, tmp_path):
    """Fresh and switched-off adapters are the base exactly; a step changes the output; files bring it back."""
    model.requires_grad_(False)
    with torch.no_grad():
        base = model(**inputs)
    original = copy.deepcopy(model)
    targets = r".*backbone\.model\.language_model\..*\.(q_proj|v_proj)"
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    trained = [name for name, p in tuned.named_parameters() if p.requires_grad]
    assert len(trained) == 4 and all("language_model" in name and "lora_" in name for name in trained)
    with torch.no_grad():
        assert same(tuned(**inputs), base)
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1.0)
    tuned(**inputs).loss.backward()
    optimizer.step()
    with torch.no_grad():
        after = tuned(**inputs)
        assert not torch.allclose(after.logps, base.logps, atol=1e-5)
        with tuned.disable_adapter():
            assert same(tuned(**inputs), base)
        tuned.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(original, tmp_path)
        assert same(loaded(**inputs), after)


@pytest.mark.parametrize(
    "wrong, named",
    [
        ({"scales": 0}, "scales=0: each must be at least 1"),
        ({"tokens_per_scale": 0}, "tokens_per_scale=0"),
        ({"seg_token_ids": [1, 2, 3]}, "seg_token_ids holds 3 ids; tokens_per_scale x scales asks for 4"),
    ],
)
def test_impossible_configurations_are_refused(tiny, wrong, named):
    config = copy.deepcopy(tiny[0].config)  # a new parent resets its parts' attention, also those of a live model
    fields = {"tokens_per_scale": 2, "scales": 2, "seg_token_ids": [4, 5, 6, 7]} | wrong
    with pytest.raises(ValueError, match=named):
        PopenConfig(backbone_config=config.backbone_config, pixel_config=config.pixel_config, **fields)
