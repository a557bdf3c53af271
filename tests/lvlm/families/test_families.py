"""Every family of backbones, on tiny random configurations of the real classes."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image

from popen.data.safe_io import DataError
from popen.lvlm.canvas import Canvas
from popen.lvlm.families import FAMILIES, family_of
from popen.lvlm.inference import forced_drafts
from popen.lvlm.loading import load_model
from popen.lvlm.packing import preference_branches, stack_rows, supervised_batch
from popen.objectives.scores import per_token_logps
from tests.lvlm.families.tiny_backbones import BACKBONES

NAMES = sorted(BACKBONES)
ASIDE = ("token_sequence", "sequence_row", "look_row", "look_column", "look_target")
OWN_INPUTS = ("image_sizes", "image_grid_thw", "mm_token_type_ids", "pixel_attention_mask")


def test_every_family_is_tested():
    assert sorted(FAMILIES) == NAMES


def test_an_unknown_family_is_refused_by_name():
    with pytest.raises(DataError, match=r"'blip-2' is none that popen knows \(internvl, .*docs/models.md"):
        family_of("blip-2")


def training_inputs(processor, samples):
    return {k: v for k, v in supervised_batch(processor, samples).items() if k not in ASIDE}


def own_logits(model, processor, square: Image.Image, ids: list[int]) -> torch.Tensor:
    """(S, V) from the backbone alone, its own processor and its own numbering of positions; nothing of popen's."""
    own = processor.backbone(
        text=processor._before_image + processor.backbone.image_token, images=[square], add_special_tokens=False,
        return_tensors="pt", **processor.family.image_options,
    )  # fmt: skip
    extra = {k: v for k, v in own.items() if k in OWN_INPUTS}
    if "mm_token_type_ids" in extra:
        more = torch.zeros(1, len(ids) - extra["mm_token_type_ids"].shape[1], dtype=torch.int)
        extra["mm_token_type_ids"] = torch.cat([extra["mm_token_type_ids"], more], 1)
    backbone = copy.deepcopy(model.backbone)
    pixels = own["pixel_values"].to(model.dtype)
    return backbone(input_ids=torch.tensor([ids]), pixel_values=pixels, **extra).logits[0]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_pair_on_one_prefix_is_two_sequences_of_the_backbone(name, composed, samples):
    """Log-probabilities of `[picture question | chosen | rejected]` against each answer alone, to 1e-4."""
    model, processor = composed(name)
    picture, question = samples[0].image, samples[0].questions[0]
    chosen, rejected = question.answer, samples[1].questions[1].answer + " and more"
    row = preference_branches(processor, question.question, chosen, rejected, "pair")
    inputs = stack_rows([row], processor.tokenizer.pad_token_id)
    square, _ = processor.place(picture)
    pictures = model.encode_pictures(processor.pixel_values([square]))
    hidden, _ = model.read(inputs["input_ids"], inputs["position_ids"], inputs["attention_mask"], pictures)
    logits = model.get_output_embeddings()(hidden[0, row.predictor])
    prompt = [*processor.prefix_ids, *processor.question_ids(question.question)]
    for number, answer in enumerate((chosen, rejected)):
        ids = [*prompt, *processor.answer_ids(answer)]
        expected = own_logits(model, processor, square, ids)[len(prompt) - 1 : -1]
        torch.testing.assert_close(logits[row.sequence == number], expected, atol=1e-4, rtol=1e-4)


def pair_logps(model, processor, square, row, mask=None) -> torch.Tensor:
    """Log-probabilities of both answers' tokens in one packed row."""
    inputs = stack_rows([row], processor.tokenizer.pad_token_id)
    pictures = model.encode_pictures(processor.pixel_values([square]).to(model.dtype))
    mask = inputs["attention_mask"] if mask is None else mask
    hidden, _ = model.read(inputs["input_ids"], inputs["position_ids"], mask, pictures)
    return model.label_logps(hidden[0, row.predictor], inputs["token_labels"])


def own_logps(model, processor, square, prompt: list[int], answers: tuple[list[int], ...]) -> torch.Tensor:
    """The same of the backbone alone, one answer after another."""
    found = []
    for ids in answers:
        logits = own_logits(model, processor, square, [*prompt, *ids])[len(prompt) - 1 : -1]
        found.append(per_token_logps(logits, torch.tensor(ids)))
    return torch.cat(found)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_in_bfloat16_a_pair_is_two_sequences_to_its_rounding(name, composed, samples, record_property):
    """Log-probabilities within 0.02 (docs/models.md), about what bfloat16 is from float32; those of a rejected answer
    that sees the chosen one are farther off."""
    model, processor = composed(name)
    half, apart, rounding, seen = copy.deepcopy(model).to(torch.bfloat16), [], [], []
    for sample, other in zip(samples, samples[1:] + samples[:1], strict=True):
        question = sample.questions[0]
        texts = question.answer, other.questions[0].answer + " and more"
        row = preference_branches(processor, question.question, *texts, "pair")
        square, _ = processor.place(sample.image)
        given = square, [*processor.prefix_ids, *processor.question_ids(question.question)]
        answers = tuple(processor.answer_ids(text) for text in texts)
        packed, alone = pair_logps(half, processor, square, row), own_logps(half, processor, *given, answers)
        apart.append((packed - alone).abs())
        rounding.append((alone - own_logps(model, processor, *given, answers)).abs())
        causal = torch.ones_like(row.tree.attention).tril()[None, None]
        seen.append((pair_logps(half, processor, square, row, causal) - alone).abs())
    apart, rounding, seen = (float(torch.cat(found).max()) for found in (apart, rounding, seen))
    record_property(name, {"apart": apart, "from float32": rounding, "other answer seen": seen})
    assert apart < 0.02 and apart < 2 * rounding
    assert seen > 0.05


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_batch_of_mixed_sizes_is_its_pictures_one_by_one(name, composed, samples):
    """Greedy words alike, mask IoU of at least 0.999 (bar of the project), with a picture asked twice."""
    model, processor = composed(name)
    sizes = [(70, 41), (33, 90), (96, 96), (120, 64)]
    images = [samples[0].image.resize(size) for size in sizes]
    questions = [q.question for q in samples[0].questions[:3]] + ["What is it?"]
    together = model.segment(images, questions, processor, max_new_tokens=8)
    forced = forced_drafts(model, processor, images, questions, ["It <seg> is."] * 4)
    for index in range(4):
        (alone,) = model.segment([images[index]], [questions[index]], processor, max_new_tokens=8)
        assert together[index].text == alone.text
        (single,) = forced_drafts(model, processor, [images[index]], [questions[index]], ["It <seg> is."])
        masks = []
        for draft in (forced[index], single):
            logits, _ = model.decode_masks(
                tuple(f[None] for f in draft.features), torch.zeros(1, dtype=torch.long), draft.embeddings
            )
            masks.append(draft.canvas.restore(logits)[0] > logits.median())
        assert masks[0].shape == images[index].size[::-1]
        assert (masks[0] & masks[1]).sum() >= 0.999 * (masks[0] | masks[1]).sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_all_parts_learn(name, composed, samples):
    model, processor = composed(name)
    model = copy.deepcopy(model).train()
    output = model(**training_inputs(processor, samples[:2]))
    output.loss.backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    vision = "visual" if "qwen" in name else "vision"
    for part in (vision, model.family.language_model, "codebook", "pixel_encoder", "mask_decoder"):
        assert any(part in n for n in reached), part
    assert model.get_output_embeddings().weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_changes_nothing(name, composed, samples):
    model, processor = composed(name)
    inputs, found = training_inputs(processor, samples[:1]), []
    for checkpointing in (False, True):
        own = copy.deepcopy(model).train()
        if checkpointing:
            own.gradient_checkpointing_enable()
        own(**inputs).loss.backward()
        found.append({n: p.grad for n, p in own.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][key], atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_lora_and_files(name, composed, samples, tmp_path):
    """An adapter on the language model alone: saved and loaded it says the same, switched off it is the base."""
    model, processor = composed(name)
    model = copy.deepcopy(model)
    inputs = training_inputs(processor, samples[:1])
    with torch.no_grad():
        base = model(**inputs).logps
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    targets = rf".*backbone\.model\.{model.family.language_model}\..*\.(q_proj|v_proj)"
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    with torch.no_grad():
        changed = tuned(**inputs).logps
        assert not torch.allclose(changed, base, atol=1e-3)
        with tuned.disable_adapter():
            torch.testing.assert_close(tuned(**inputs).logps, base)
    tuned.save_pretrained(tmp_path / "adapter")
    loaded, loaded_processor = load_model(tmp_path / "base")
    assert loaded_processor.prefix_ids == processor.prefix_ids
    found = dict(loaded.named_buffers())  # those that no file has, too
    assert all(torch.equal(found[key], own) for key, own in model.named_buffers())
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logps, base)
        again = PeftModel.from_pretrained(loaded, tmp_path / "adapter")
        torch.testing.assert_close(again(**inputs).logps, changed)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16(name, composed, samples):
    """The same loss to the precision of eight bits, and masks to answer with."""
    model, processor = composed(name)
    inputs = training_inputs(processor, samples[:2])
    half = copy.deepcopy(model).to(torch.bfloat16)
    low = {k: v.to(torch.bfloat16) if k == "pixel_values" else v for k, v in inputs.items()}
    with torch.no_grad():
        full, output = model(**inputs), half(**low)
    assert output.mask_logits.dtype == torch.bfloat16
    assert abs(output.loss - full.loss) < 0.05 * full.loss
    assert half.segment([samples[0].image], ["What is it?"], processor, max_new_tokens=4)[0].text is not None


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_the_pictures(name, composed, samples):
    """What a pixel encoder beside the tower sees is the canvas, normalised by the backbone's processor."""
    model, processor = composed(name)
    squares = [processor.place(s.image)[0] for s in samples[:2]]
    pixels = processor.pixel_values(squares)
    pictures = model.family.pictures(pixels, model.config.backbone_config)
    own = processor.backbone.image_processor
    mean, std = torch.tensor(own.image_mean), torch.tensor(own.image_std)
    back = pictures * std[:, None, None] + mean[:, None, None]
    for square, seen in zip(squares, back, strict=True):
        raw = torch.tensor(list(square.getdata())).reshape(*square.size[::-1], 3).permute(2, 0, 1) / 255
        torch.testing.assert_close(seen, raw, atol=5e-3, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_tower_maps_stand_where_the_picture_is(name, composed):
    """A picture that differs in one corner: of the tower's first states only that corner's differ most."""
    model, processor = composed(name)
    side = processor.image_size
    plain = Image.new("RGB", (side, side), (90, 120, 60))
    other = plain.copy()
    other.paste((250, 20, 200), (0, side - side // 4, side // 4, side))  # bottom left
    pixels = processor.pixel_values([plain, other])
    maps = model.family.see(model.backbone, pixels, side, (0,)).maps[0]
    changed = (maps[0] - maps[1]).abs().sum(0)
    rows, columns = (changed > 1e-3).nonzero(as_tuple=True)
    quarter = changed.shape[0] // 4 or 1
    assert len(rows) and rows.min() >= changed.shape[0] - quarter - 1 and columns.max() <= quarter


@pytest.mark.parametrize(
    "name, side, message",
    [
        ("llava", 48, "takes 32 pixels, not 48; set image_size to that"),
        ("llava_next", 48, r"no grid of tiles is 48 pixels square; set image_size to one of \[64\]"),
        ("qwen2_5_vl", 72, "image_size 72 is no multiple of its merge block; set it to 64"),
        ("qwen3_vl", 40, "image_size 40 is no multiple of its merge block"),
        ("smolvlm", 64, "takes 32 pixels, not 64"),
        ("internvl", 64, "takes 32 pixels, not 64"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_at_once(name, side, message, composed):
    model, _ = composed(name)
    config = copy.deepcopy(model.config)
    config.image_size = side
    with pytest.raises(ValueError, match=f"backbone '{name}': .*{message}"):
        type(model)(config)


def test_tokens_that_are_no_grid_refuse_what_needs_one(composed):
    model, _ = composed("llava_next")
    config = copy.deepcopy(model.config)
    config.look_weight = 1.0
    with pytest.raises(ValueError, match="picture tokens are no plain grid; set pixel_fusion: false and look_weight"):
        type(model)(config)


def test_canvas_of_every_family_is_square(composed, samples):
    for name in NAMES:
        _, processor = composed(name)
        square, canvas = processor.place(samples[0].image.resize((50, 30)))
        assert isinstance(canvas, Canvas) and square.size == (processor.image_size,) * 2
