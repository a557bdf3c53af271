"""Generation reads each picture once, and says what it would say to each question alone."""

import torch

from popen.lvlm.gallery import Gallery
from popen.lvlm.generation import generate

ASKED = ("Find the green thing.", "What is there?", "Please point out each of the things that you can see in it.")


def said(model, processor, images, questions):
    shown = Gallery(model, processor).show(images, list(range(len(images))))
    prompts = [list(processor.question_ids(question)) for question in questions]
    return generate(model, processor, prompts, shown.pictures, shown.rows, 12, min_new_tokens=12)


def test_questions_about_one_picture_share_what_was_read_of_it(tiny, samples):
    model, processor = tiny
    read = []
    layer = model.backbone.model.language_model.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, inputs: read.append(tuple(inputs[0].shape[:2])))
    try:
        said(model, processor, [samples[0].image] * 3, ASKED)
    finally:
        handle.remove()
    longest = max(len(processor.question_ids(question)) for question in ASKED)
    assert read == [(1, len(processor.prefix_ids)), (3, longest), *[(3, 1)] * 11]


def test_pictures_and_questions_together_are_answered_as_each_alone(tiny, samples):
    model, processor = tiny
    images = [samples[0].image, samples[1].image, samples[0].image]
    ids, states = said(model, processor, images, ASKED)
    for row, (image, question) in enumerate(zip(images, ASKED, strict=True)):
        own, alone = said(model, processor, [image], [question])
        assert torch.equal(ids[row], own[0])
        torch.testing.assert_close(states[row], alone[0], atol=1e-4, rtol=1e-4)
