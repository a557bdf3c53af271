"""Passes of a processor hold few rows; what they say does not depend on it."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig

from popen.lvlm import pass_size
from popen.lvlm.inference import forced_drafts
from popen.lvlm.pass_size import PROCESSOR_BYTES, rows_per_pass


@dataclass
class Model:
    """What `rows_per_pass` reads of a model."""

    device: torch.device
    dtype: torch.dtype
    mlp: int

    @property
    def config(self):
        return LlamaConfig(intermediate_size=self.mlp)


@pytest.mark.parametrize(("tokens", "most", "rows"), [(672, 32, 8), (672, 5, 5), (64, 32, 32), (10**6, 32, 1)])
def test_rows_of_a_processor_keep_the_widest_tensor_small(tokens, most, rows):
    model = Model(torch.device("cpu"), torch.float32, 704)
    assert rows_per_pass(model, tokens, most) == rows
    assert rows in (1, most) or rows * tokens * 704 * 4 <= PROCESSOR_BYTES < (rows + 1) * tokens * 704 * 4


def test_half_the_bytes_are_twice_the_rows_and_a_gpu_takes_them_all():
    assert rows_per_pass(Model(torch.device("cpu"), torch.bfloat16, 704), 672, 32) == 17
    assert rows_per_pass(Model(torch.device("cuda"), torch.float32, 704), 672, 32) == 32


def test_answers_do_not_depend_on_how_many_rows_a_pass_holds(tiny, monkeypatch):
    model, processor = tiny
    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(0, 256, (48, 48, 3), dtype=np.uint8)) for _ in range(5)]
    questions, answers = ["Find the red ball."] * 5, ["The red ball <seg> is here."] * 3 + ["It <seg>."] * 2
    reads, read = [], model.read
    monkeypatch.setattr(
        model, "read", lambda *inputs, **others: reads.append(len(inputs[0])) or read(*inputs, **others)
    )
    whole = forced_drafts(model, processor, images, questions, answers)
    monkeypatch.setattr(pass_size, "PROCESSOR_BYTES", 1)
    alone = forced_drafts(model, processor, images, questions, answers)
    assert reads == [5, 1, 1, 1, 1, 1]
    for one, other in zip(whole, alone, strict=True):
        assert one.decoded == other.decoded
        torch.testing.assert_close(one.embeddings, other.embeddings, atol=1e-4, rtol=1e-4)
        for map_, own in zip(one.features, other.features, strict=True):
            torch.testing.assert_close(map_, own, atol=1e-4, rtol=1e-4)
