"""The skeleton of docs/models.md is a family: it names all that can differ, is short, and does what LLaVA-1.5 does."""

import inspect
import re
import runpy

import pytest
import torch

from popen.lvlm.composing import compose
from popen.lvlm.families import FAMILIES, Family
from tests.launching import ROOT
from tests.lvlm.families.tiny_backbones import tiny_backbone

SKELETON = next(
    block for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "models.md").read_text(), re.DOTALL)
    if "class Mine(Family)" in block
)  # fmt: skip


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(SKELETON)
    return runpy.run_path(str(tmp_path / "mine.py"))["Mine"]


def public(kind) -> dict:
    return {name: value for name, value in vars(kind).items() if not name.startswith("_")}


def test_it_names_all_that_can_differ_in_under_60_lines(mine):
    own, default = public(mine), public(Family)
    assert own.keys() == default.keys()
    for name, value in own.items():
        if inspect.isfunction(value):
            assert list(inspect.signature(value).parameters) == list(inspect.signature(default[name]).parameters)
        else:
            assert value == default[name]
    assert len(SKELETON.splitlines()) < 60


def test_it_sees_what_llava_sees(mine, samples, monkeypatch):
    corpus = [text for s in samples for q in s.questions for text in (q.question, q.answer)]

    def answers():
        side, backbone, processor = tiny_backbone("llava", corpus)
        model, processor = compose(backbone, processor, side, 300, decoder_dim=16, decoder_heads=2, decoder_mlp_dim=32)
        images, questions = [s.image for s in samples[:2]], [s.questions[0].question for s in samples[:2]]
        found = model.eval().encode_pictures(processor.pixel_values([image.resize((side, side)) for image in images]))
        return found, [answer.text for answer in model.segment(images, questions, processor, max_new_tokens=4)]

    with torch.no_grad():
        expected, words = answers()
        monkeypatch.setitem(FAMILIES, "llava", mine())
        found, again = answers()
    assert again == words
    for one, other in zip(found.features, expected.features, strict=True):
        torch.testing.assert_close(one, other)


def test_a_canvas_that_does_not_fit_is_told(mine):
    _, backbone, _ = tiny_backbone("llava", ["a"])
    size = backbone.config.vision_config.image_size
    assert mine().misfit(backbone.config, size) is None
    told = mine().misfit(backbone.config, size + 1)
    assert told == Family().misfit(backbone.config, size + 1) and f"takes {size} pixels, not {size + 1}" in told
