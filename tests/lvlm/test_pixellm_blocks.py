"""PixelLM's modules against a forward written from its published description, block by block, to 1e-5."""

import copy
import dataclasses

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from popen.lvlm.canvas import PixelLMCanvas
from popen.lvlm.families.pixellm import halved, shown_patches
from popen.lvlm.inference import decode_drafts, forced_drafts
from popen.lvlm.loading import load_model
from popen.lvlm.packing import question_branches, stack_rows, supervised_batch
from popen.lvlm.pixellm_blocks import PixelLMMaskDecoder, PixelLMProjector, mean_probability
from popen.lvlm.pixellm_checkpoint import convert
from popen.lvlm.pixellm_tower import resized_positions
from tests.lvlm import pixellm_reference as reference

ASIDE = ("token_sequence", "sequence_row", "look_row", "look_column", "look_target")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
QUESTION, ANSWER = "Where is the tall cone?", "It is <seg> and <seg>."


@pytest.fixture(scope="module")
def W():
    return reference.released_state(len(reference.words([QUESTION, ANSWER])))


@pytest.fixture(scope="module")
def clip():
    return reference.tower()


@pytest.fixture(scope="module")
def converted(W, clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pixellm")
    reference.write(folder / "released", reference.words([QUESTION, ANSWER]), W)
    clip.save_pretrained(folder / "clip")
    convert(folder / "released", folder / "popen", str(folder / "clip"))
    return load_model(folder / "popen")


@pytest.fixture(scope="module")
def picture():
    """90 × 51: scaled to 112 × 63, so that of 8 rows of patches 5 are seen (63 / 14 = 4.5)."""
    return Image.effect_mandelbrot((90, 51), (-2, -1, 1, 1), 40).convert("RGB")


@pytest.fixture(scope="module")
def pixels(picture):
    """SAM's preprocessing: longest side, bilinear, (x − mean) / std of 8-bit values, zeros right and below."""
    values = torch.tensor(list(picture.resize((112, 63), Image.Resampling.BILINEAR).getdata())).float()
    values = (values - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor([58.395, 57.12, 57.375])
    return F.pad(values.T.reshape(1, 3, 63, 112), (0, 0, 0, 112 - 63))


@pytest.fixture(scope="module")
def maps(W, clip, pixels):
    with torch.no_grad():
        states = reference.tower_states(clip, pixels, reference.patch_mask(63, 112))
        return states, tuple(reference.neck(W, states[layer][0, 1:]) for layer in (-2, -11))


@pytest.fixture(scope="module")
def embeddings():
    return torch.randn(3, 2, reference.DIM, generator=torch.Generator().manual_seed(3))


def decode(model, level, maps, embeddings, previous=None):
    return model.mask_decoder.decode(level, maps.expand(len(embeddings), -1, -1, -1), embeddings, previous)


def test_pixels(converted, picture, pixels):
    _, processor = converted
    square, canvas = processor.place(picture)
    assert (canvas.scaled_height, canvas.scaled_width) == (63, 112)
    torch.testing.assert_close(processor.pixel_values([square]), pixels, **CLOSE)
    assert (processor.pixel_values([square])[:, :, 63:] == 0).all()


def test_halves_are_rounded_up_as_sam_does():
    """5 of 112 pixels at scale 1/2 are 2.5, which Python would round to 2."""
    assert PixelLMCanvas.fit(5, 224, 112).scaled_height == 3
    assert PixelLMCanvas.fit(1, 2000, 112).scaled_height == 1  # 0.056: a picture never vanishes


def test_position_embeddings(converted, clip):
    """Row 0, CLIP's class token, is stretched as if it were the corner patch; the last row stays last."""
    old = clip.embeddings.position_embedding.weight
    new = converted[0].backbone.model.vision_tower.embeddings.position_embedding.weight
    torch.testing.assert_close(new, reference.resized(old), **CLOSE)
    torch.testing.assert_close(new[[0, -1]], old[[0, -1]], **CLOSE)


@pytest.mark.parametrize("rows, patches", [(30, 64), (37, 60)])
def test_positions_that_are_no_square(rows, patches):
    with pytest.raises(ValueError, match=f"{rows - 1} and {patches} patches: both must fill a square"):
        resized_positions(torch.zeros(rows, 4), patches)


def test_padding_by_first_pixels(pixels):
    """Row 4 begins at pixel 56 < 63 and is seen, row 5 begins at 70."""
    shown = shown_patches(pixels, 14)[0]
    assert shown[:5].all() and not shown[5:].any()
    assert torch.equal(shown.float(), reference.patch_mask(63, 112))


@torch.no_grad()
def test_tower_projectors_and_neck(converted, W, pixels, maps):
    model, _ = converted
    states, expected = maps
    seen = model.encode_pictures(pixels)
    for own, level in zip(seen.features, expected, strict=True):
        torch.testing.assert_close(own, level, **CLOSE)
    torch.testing.assert_close(seen.language[0], reference.picture_tokens(W, states[-2][0, 1:]), **CLOSE)
    assert seen.shown[0].tolist() == [True] * 12 + [False] * 4  # rows 0, 2, 4 of patches are seen, row 6 is not


@torch.no_grad()
def test_unmasked_padding_would_be_seen(converted, W, clip, pixels, maps):
    """What the mask is for: without it the tower's states of the picture change by a thousand times the rounding."""
    _, expected = maps
    loose = reference.tower_states(clip, pixels, torch.ones(8, 8))
    assert (reference.neck(W, loose[-2][0, 1:]) - expected[0])[:, :, :4].abs().max() > 0.01


def test_halved_is_the_mean_of_four():
    grid = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert halved(grid).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


@torch.no_grad()
def test_token_fusion(converted, W):
    states = torch.randn(4, 6, reference.HIDDEN, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(converted[0].codebook(states), reference.fused(W, states), **CLOSE)


@torch.no_grad()
def test_prompts_and_positions(converted, W, embeddings):
    own = converted[0].mask_decoder.prompts
    for a, b in zip(own(embeddings[:, 0], 8, 8), reference.prompts(W, embeddings[:, 0], 8), strict=True):
        torch.testing.assert_close(a, b)
    assert isinstance(own.positions.positional_embedding, torch.Tensor)
    assert not any("position" in name for name, _ in converted[0].mask_decoder.named_parameters())


@torch.no_grad()
def test_level_0(converted, W, maps, embeddings):
    own = decode(converted[0], 0, maps[1][0], embeddings[:, 0])
    assert own.shape == (3, 16, 16)
    torch.testing.assert_close(own, reference.decoded(W, 0, maps[1][0], embeddings[:, 0]), **CLOSE)


@torch.no_grad()
def test_level_1(converted, W, maps, embeddings):
    previous = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(4)) * 3
    own = decode(converted[0], 1, maps[1][1], embeddings[:, 1], previous)
    assert own.shape == (3, 32, 32)
    torch.testing.assert_close(own, reference.decoded(W, 1, maps[1][1], embeddings[:, 1], previous), **CLOSE)
    assert (own - decode(converted[0], 1, maps[1][1], embeddings[:, 1], -previous)).abs().max() > 0.01


@torch.no_grad()
def test_mask_path(converted, W, maps, embeddings):
    own, confidence = converted[0].decode_masks(maps[1], torch.zeros(3, dtype=torch.long), embeddings)
    expected = reference.masks(W, maps[1], embeddings)
    torch.testing.assert_close(own, expected, **CLOSE)
    for mask, score in zip(expected, confidence, strict=True):
        torch.testing.assert_close(score, mask[mask > 0].sigmoid().mean(), **CLOSE)


def test_mean_probability_by_hand():
    """σ(0) = 1/2 is not inside, σ(ln 3) = 3/4 is; an empty mask has no confidence."""
    logits = torch.tensor([[[0.0, 1.0986123], [-2.0, 1.0986123]], [[-1.0, -1.0], [-1.0, -1.0]]])
    torch.testing.assert_close(mean_probability(logits), torch.tensor([0.75, 0.0]))


def reference_states(W, processor, states, ids):
    """LLaMA's states of a sequence whose picture tokens are the tower's."""
    ids = torch.tensor(ids)
    is_picture = ids == processor.tokenizer.convert_tokens_to_ids("<image>")
    embedded = W["model.embed_tokens.weight"][ids.masked_fill(is_picture, 0)]
    embedded[is_picture] = reference.picture_tokens(W, states[-2][0, 1:])
    seen = torch.ones(len(ids), dtype=torch.bool)
    seen[is_picture] = reference.patch_mask(63, 112)[::2, ::2].flatten().bool()
    return reference.hidden_states(W, embedded, seen)


@torch.no_grad()
def test_packed_rows_hide_padding(converted, W, pixels, maps):
    """Two questions about one picture in one row: each branch has the states of its sequence alone."""
    model, processor = converted
    pairs = [(QUESTION, ANSWER), ("And the ball?", "Here: <seg>")]
    row = question_branches(processor, pairs, "row")
    inputs = stack_rows([row], processor.tokenizer.pad_token_id)
    seen = model.encode_pictures(pixels)
    arguments = inputs["input_ids"], inputs["position_ids"], inputs["attention_mask"]
    hidden, _ = model.read(*arguments, seen)
    for number, (question, answer) in enumerate(pairs):
        prompt = [*processor.prefix_ids, *processor.question_ids(question)]
        expected = reference_states(W, processor, maps[0], [*prompt, *processor.answer_ids(answer)])
        torch.testing.assert_close(hidden[0, row.predictor[row.sequence == number]], expected[len(prompt) - 1 : -1])
    loose, _ = model.read(*arguments, type(seen)(seen.language, seen.features))
    assert (hidden - loose)[0, row.predictor].abs().max() > 1e-3


@torch.no_grad()
def test_greedy_words(converted, W, maps, picture):
    """Left-padded, cached generation beside a longer question says what step-by-step recomputation says."""
    model, processor = converted
    ids = [*processor.prefix_ids, *processor.question_ids(QUESTION)]
    start = len(ids)
    while len(ids) < start + 8:
        ids.append(int((W["lm_head.weight"] @ reference_states(W, processor, maps[0], ids)[-1]).argmax()))
    other = Image.new("RGB", (40, 80), (200, 30, 30))
    questions = [QUESTION, "A longer question: where is the tall cone?"]
    answers = model.segment([picture, other], questions, processor, max_new_tokens=8)
    assert answers[0].text == processor.decode_answer(ids[start:]).text


@torch.no_grad()
def test_from_picture_and_words_to_masks(converted, W, maps, picture):
    """The whole path, and back to the picture's own 51 × 90 pixels."""
    model, processor = converted
    (draft,) = forced_drafts(model, processor, [picture], [QUESTION], [ANSWER])
    ((logits, _),) = decode_drafts(model, [draft])
    prompt = [*processor.prefix_ids, *processor.question_ids(QUESTION)]
    ids = [*prompt, *processor.answer_ids(ANSWER)]
    hidden = reference_states(W, processor, maps[0], ids)
    before = [column - 1 for column, token in enumerate(ids) if token in processor.seg_token_ids]
    expected = reference.masks(W, maps[1], reference.fused(W, hidden[before].reshape(2, 6, -1)))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)  # two transformers' rounding, one after another
    whole = F.interpolate(expected[None], size=(112, 112), mode="bilinear", align_corners=False)[..., :63, :]
    whole = F.interpolate(whole, size=(51, 90), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(draft.canvas.restore(logits), whole, atol=1e-4, rtol=1e-4)


def test_parameters_at_full_size():
    """Published counts: two transformers of 3,291,264; a decoder of 7,571,940 of which three hypernetworks (139,808
    each) and the IoU head (132,612) are never read; popen adds the "no mask" prompt (256) and two scale weights."""
    with torch.device("meta"):
        decoder, projector = PixelLMMaskDecoder(256, 2, 8, 2048, 2), PixelLMProjector(1024, 4096)
    count = [sum(p.numel() for p in module.parameters()) for module in (*decoder.transformers, decoder, projector)]
    assert count == [3_291_264, 3_291_264, 7_571_940 - 3 * 139_808 - 132_612 + 256 + 2, 41_955_328]


def test_gradient_and_no_targets(converted, maps):
    model, _ = converted
    logits, confidence = model.decode_masks(maps[1], torch.zeros(0, dtype=torch.long), torch.zeros(0, 2, 32))
    assert logits.shape == (0, 32, 32) and confidence.shape == (0,)
    model.zero_grad()
    model.decode_masks(maps[1], torch.tensor([0]), torch.randn(1, 2, 32))[0].square().mean().backward()
    still = [n for n, p in model.mask_decoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert [n for n in still if not n.endswith("k_proj.bias")] == []
    model.zero_grad()


def test_it_goes_on_learning(converted, samples):
    """One supervised step reaches what PixelLM trains and what it left as it was drawn: neck, prompt, fusion."""
    model, processor = copy.deepcopy(converted[0]).train(), converted[1]
    short = [dataclasses.replace(samples[0], questions=samples[0].questions[:2])]
    output = model(**{k: v for k, v in supervised_batch(processor, short).items() if k not in ASIDE})
    output.loss.backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    expected = (
        "codebook.fusion", "codebook.project.0.weight", "pixel_encoder.neck.0.weight",
        "pixel_encoder.project.0.weight",
        "mask_decoder.scale_weights", "mask_decoder.prompts.no_mask.weight", "mask_decoder.widen.0.weight",
        "backbone.model.multi_modal_projector.0.weight", "backbone.lm_head.weight",
    )  # fmt: skip
    assert set(expected) <= reached


@pytest.mark.parametrize(
    "shape, sizes, named",
    [((3, 3, 32), (8, 8), r"embeddings \(3, 3, 32\) and 2 feature maps; the decoder has 2 levels"),
     ((3, 2, 32), (8,), r"embeddings \(3, 2, 32\) and 1 feature maps"),
     ((3, 2, 32), (8, 16), r"maps \(1, 32, 8, 8\) and \(1, 32, 16, 16\); PixelLM's are alike")],
)  # fmt: skip
def test_wrong_shapes(converted, shape, sizes, named):
    maps = tuple(torch.zeros(1, 32, side, side) for side in sizes)
    with pytest.raises(ValueError, match=named):
        converted[0].decode_masks(maps, torch.zeros(3, dtype=torch.long), torch.zeros(shape))


def test_other_numbers_of_levels():
    with pytest.raises(ValueError, match="scales=3: PixelLM's mask decoder has two levels; set scales to 2"):
        PixelLMMaskDecoder(32, 2, 8, 64, 3)
