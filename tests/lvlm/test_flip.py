"""Flip augmentation: words and pictures are mirrored together."""

import pytest
import torch
from PIL import Image, ImageOps

from popen.lvlm.flip import flip_logits, mirrored_words
from popen.lvlm.inference import decode_drafts, forced_drafts


@pytest.mark.parametrize(
    "text, mirrored",
    [
        ("What is left of the ball?", "What is right of the ball?"),
        ("Left or right?", "Right or left?"),
        ("The leftmost thing is the cone <seg>.", "The rightmost thing is the cone <seg>."),
        ("left, right, left.", "right, left, right."),
        ("A bright leftover copyright.", "A bright leftover copyright."),
        ("Segment the ball above the box.", "Segment the ball above the box."),
        ("", ""),
    ],
)
def test_mirrored_words_and_back(text, mirrored):
    assert mirrored_words(text) == mirrored
    assert mirrored_words(mirrored) == text


@pytest.fixture(scope="module")
def symmetric(samples):
    """The left half of a scene beside its own mirror image."""
    half = samples[0].image.crop((0, 0, 48, 96))
    picture = Image.new("RGB", (96, 96))
    picture.paste(half, (0, 0))
    picture.paste(ImageOps.mirror(half), (48, 0))
    return picture


def test_a_symmetric_picture_gets_a_symmetric_mask(taught, symmetric):
    """Both passes see the same pixels, so the mean is the plain mask and its mirror image, halved."""
    model, processor = taught
    questions, answer = ["Find the ball.", "Find the pink thing."], "It is the orange ball <seg>."
    images = [symmetric, symmetric]
    drafts = forced_drafts(model, processor, images, questions, [answer, "There is no pink thing here."])
    logits, none = flip_logits(model, processor, images, questions, drafts)
    torch.testing.assert_close(logits, logits.flip(-1), atol=1e-4, rtol=1e-4)
    plain = drafts[0].canvas.restore(decode_drafts(model, drafts)[0][0])
    torch.testing.assert_close(logits, (plain + plain.flip(-1)) / 2, atol=1e-4, rtol=1e-4)
    assert len(none) == 0 and not torch.allclose(plain, plain.flip(-1), atol=1e-2)


def test_the_mirrored_picture_is_asked_the_mirrored_question(taught, samples):
    """A wide picture: the mean of what the picture and its mirror image say, each forced with its own words."""
    model, processor = taught
    image = samples[1].image.crop((0, 20, 96, 70))
    question, answer = "Which thing is the leftmost?", "The leftmost thing is the blue ball <seg>."
    drafts = forced_drafts(model, processor, [image], [question], [answer])
    (found,) = flip_logits(model, processor, [image], [question], drafts)
    other = forced_drafts(
        model,
        processor,
        [ImageOps.mirror(image)],
        [question.replace("left", "right")],
        [answer.replace("left", "right")],
    )
    plain, mirrored = (d.canvas.restore(decode_drafts(model, [d])[0][0]) for d in (drafts[0], other[0]))
    assert found.shape == (1, 50, 96)
    torch.testing.assert_close(found, (plain + mirrored.flip(-1)) / 2, atol=1e-4, rtol=1e-4)
