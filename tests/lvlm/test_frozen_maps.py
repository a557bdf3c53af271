"""A frozen pixel encoder sees each picture once in training; what learns, or changes, is computed anew."""

import copy

import pytest
import torch
from torch import nn

from popen.lvlm.frozen_maps import FrozenMaps


class Counting(nn.Module):
    """An encoder of two maps that counts the pictures it is shown."""

    def __init__(self):
        super().__init__()
        self.shallow, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 2, 4, 4)
        self.register_buffer("shift", torch.zeros(1))
        self.seen = 0

    def forward(self, pictures):
        self.seen += len(pictures)
        return self.shallow(pictures) + self.shift, self.deep(pictures)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Counting().requires_grad_(False).eval()


@pytest.fixture
def pictures():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_picture_is_encoded_once_whatever_stands_beside_it(encoder, pictures):
    maps = FrozenMaps()
    first = maps.of(encoder, pictures, encoder)
    again = maps.of(encoder, pictures.flip(0)[:2], encoder)
    assert encoder.seen == 3
    for own, other, level in zip(first, again, encoder(pictures), strict=True):
        assert torch.equal(own.flip(0)[:2], other)
        assert torch.allclose(own, level, atol=1e-6)


def test_what_is_remembered_has_the_bits_of_what_is_computed(encoder, pictures):
    remembered, fresh = FrozenMaps(), FrozenMaps()
    remembered.of(encoder, pictures, encoder)
    pairs = zip(remembered.of(encoder, pictures[1:], encoder), fresh.of(encoder, pictures[1:], encoder), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_pictures_of_another_precision_or_shape_are_other_pictures(encoder):
    maps = FrozenMaps()
    zeros = torch.zeros(1, 3, 8, 8)
    a, b = maps.of(encoder, zeros, encoder)[0], maps.of(encoder, zeros.reshape(1, 3, 4, 16), encoder)[0]
    assert a.shape == (1, 4, 8, 8) and b.shape == (1, 4, 4, 16)
    c = maps.of(encoder.double(), zeros.double(), encoder)[0]
    assert c.dtype == torch.float64


@pytest.mark.parametrize("name", ["shallow.weight", "shift"])
def test_changed_weights_are_noticed(encoder, pictures, name):
    maps = FrozenMaps()
    before = maps.of(encoder, pictures, encoder)[0]
    encoder.load_state_dict(encoder.state_dict() | {name: encoder.state_dict()[name] + 1})
    after = maps.of(encoder, pictures, encoder)[0]
    assert encoder.seen == 6 and not torch.equal(before, after)


def test_the_oldest_are_forgotten_first(encoder, pictures):
    one = sum(level.nbytes for level in encoder(pictures[:1]))
    encoder.seen = 0
    maps = FrozenMaps(kept_bytes=2 * one)
    for index in (0, 1, 0, 2, 0, 1):  # 0 is used again and stays; 1 is forgotten for 2
        maps.of(encoder, pictures[index : index + 1], encoder)
    assert encoder.seen == 4
    assert FrozenMaps(kept_bytes=0).of(encoder, pictures, encoder)[0].shape == (3, 4, 8, 8)


def test_a_copy_starts_empty(encoder, pictures):
    maps = FrozenMaps()
    maps.of(encoder, pictures, encoder)
    copy.deepcopy(maps).of(encoder, pictures, encoder)
    assert encoder.seen == 6


def test_they_serve_frozen_encoders_alone(encoder, pictures):
    assert FrozenMaps.serve(encoder, pictures)
    assert not FrozenMaps.serve(encoder.train(), pictures)
    assert not FrozenMaps.serve(encoder.eval(), pictures.clone().requires_grad_())
    encoder.deep.requires_grad_(True)
    assert not FrozenMaps.serve(encoder, pictures)


def test_tensors_without_values_are_no_pictures(encoder, pictures):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert not FrozenMaps.serve(encoder, mode.from_tensor(pictures))


def test_weights_that_ranks_share_are_gathered_by_all(encoder, pictures):
    """As DeepSpeed marks them under ZeRO-3: a rank that skips the encoder would leave the others waiting."""
    encoder.deep.weight.ds_id = 0
    assert not FrozenMaps.serve(encoder, pictures)
