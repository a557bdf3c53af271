"""Shifted views: where they look, and the mean of their masks by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from popen.lvlm.inference import Draft, decode_drafts, forced_drafts, restored_masks
from popen.lvlm.shifted_views import MASKS, WORDS, shifted_views, view_mean_logits, view_offsets
from popen.preference.sampling import shifted


@pytest.fixture(scope="module")
def answered(taught, samples):
    """Questions about two pictures of different sizes, with their true answers; some have no target."""
    model, processor = taught
    pictures = [samples[0].image, samples[1].image.resize((150, 100))]
    asked = [(picture, q) for picture, s in zip(pictures, samples[:2], strict=True) for q in s.questions]
    images, questions = [p for p, _ in asked], [q.question for _, q in asked]
    return images, forced_drafts(model, processor, images, questions, [q.answer for _, q in asked])


def test_offsets_are_shares_of_a_picture_token(taught):
    """Eight tokens on a side: 12 pixels of a picture of 96, 50 of one of 400 × 300."""
    _, processor = taught
    small, large = Image.new("RGB", (96, 96)), Image.new("RGB", (400, 300))
    assert view_offsets(processor, small, 4, WORDS) == [(6, 0), (0, 6), (-6, 0), (0, -6)]
    assert view_offsets(processor, large, 4, MASKS) == [(6, 0), (0, 6), (-6, 0), (0, -6)]
    assert view_offsets(processor, small, 0, WORDS) == []


def test_views_have_the_size_of_the_picture(taught, samples):
    views = shifted_views(taught[1], samples[0].image, 3, WORDS)
    assert [view.size for view in views] == [samples[0].image.size] * 3
    assert len({view.tobytes() for view in views}) == 3


def test_without_views_it_is_the_single_pass(taught, answered):
    model, processor = taught
    images, drafts = answered
    for one, other in zip(
        view_mean_logits(model, processor, images, drafts, 0), restored_masks(model, drafts), strict=True
    ):
        assert torch.equal(one, other)


def test_the_mean_by_hand(taught, answered):
    """Two views, each encoded alone, decoded with the draft's embeddings and moved back with numpy."""
    model, processor = taught
    images, drafts = answered
    found = view_mean_logits(model, processor, images, drafts, 2, batch_size=1)
    assert any(len(own) == 0 for own in found) and any(len(own) > 1 for own in found)
    for image, draft, own in zip(images, drafts, found, strict=True):
        maps = [restored_masks(model, [draft])[0].numpy()]
        for right, down in view_offsets(processor, image, 2, MASKS):
            view = Image.fromarray(shifted(np.asarray(image.convert("RGB")), right, down))
            with torch.no_grad():
                features = model.encode_pictures(processor.pixel_values([processor.place(view)[0]])).features
            alone = Draft(draft.decoded, draft.embeddings, tuple(level[0] for level in features), draft.canvas)
            back = shifted(restored_masks(model, [alone])[0].numpy().transpose(1, 2, 0), -right, -down)
            maps.append(back.transpose(2, 0, 1))
        np.testing.assert_allclose(own.numpy(), sum(maps) / 3, atol=1e-4)


def test_drafts_are_left_alone(taught, answered):
    model, processor = taught
    images, drafts = answered
    before = [logits.clone() for logits, _ in decode_drafts(model, drafts)]
    view_mean_logits(model, processor, images, drafts, 1)
    for one, (other, _) in zip(before, decode_drafts(model, drafts), strict=True):
        assert torch.equal(one, other)
