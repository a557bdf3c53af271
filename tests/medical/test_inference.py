"""Patches and mirrored views give what one forward gives, where they must."""

import pytest
import torch
from torch import nn

from popen.medical.inference import mean_of_views, predict_logits
from tests.medical.stand_in import StandIn


class Convolution(StandIn):
    """Looks at neighbours, and left and right differ."""

    def __init__(self, dims, **changed):
        super().__init__(dims, channels=2, regions=("background", "b", "c"), **changed)
        torch.manual_seed(0)
        self.network = (nn.Conv2d if dims == 2 else nn.Conv3d)(2, 3, 3, padding=1)
        self.calls = []

    def forward(self, pictures):
        self.calls.append(tuple(pictures.shape))
        return self.network(pictures)


def picture(*size):
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_picture_of_one_patch_is_a_direct_forward(dims):
    model, image = Convolution(dims).eval(), picture(*(8,) * dims)
    assert torch.equal(predict_logits(model, image, (8,) * dims), model(image[None])[0])
    assert not predict_logits(model, image, (8,) * dims).requires_grad


@pytest.mark.parametrize("size", [(20, 13), (9, 8, 17)])
@pytest.mark.parametrize("overlap", [0, 0.5])
def test_patches_do_not_matter_to_a_network_of_single_voxels(size, overlap):
    model, image = StandIn(len(size)).eval(), picture(*size)[:1]
    logits = predict_logits(model, image, (8,) * len(size), overlap)
    assert logits.shape == (1, *size)
    assert torch.allclose(logits, model(image[None])[0], atol=1e-5)


def test_a_large_picture_is_seen_in_patches_alone():
    model = Convolution(2).eval()
    predict_logits(model, picture(20, 20), (8, 8))
    assert {shape[2:] for shape in model.calls} == {(8, 8)}
    logits = predict_logits(model, picture(5, 20), (8, 8))  # padded along one axis, cut back
    assert logits.shape == (3, 5, 20)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_flips_average_probabilities(activation):
    model, image = Convolution(2, activation=activation).eval(), picture(8, 8)
    views = [model(image.flip(axes)[None])[0].flip(axes) for axes in ((), (1,), (2,), (1, 2))]
    squash = torch.sigmoid if activation == "sigmoid" else lambda z: z.softmax(0)
    logits = predict_logits(model, image, (8, 8), flips=(0, 1))
    assert torch.allclose(squash(logits), torch.stack([squash(view) for view in views]).mean(0), atol=1e-6)
    single = predict_logits(model, image, (8, 8), flips=(1,))
    assert torch.allclose(squash(single), (squash(views[0]) + squash(views[2])) / 2, atol=1e-6)
    mirrored = predict_logits(model, image.flip(1), (8, 8), flips=(0, 1))
    assert torch.allclose(mirrored.flip(1), logits, atol=1e-5)  # which is what averaging buys


def test_the_mean_of_two_views_by_hand():
    """σ(ln 3) = 3/4 and σ(−ln 3) = 1/4: the mean 1/2 has the logit 0; with σ(0) = 1/2 the mean 5/8 has ln 5/3."""
    three = torch.tensor(3.0).log()
    views = torch.stack([torch.stack([three, three]), torch.stack([-three, torch.tensor(0.0)])])[:, :, None]
    expected = torch.tensor([0.0, torch.tensor(5 / 3).log()])
    assert torch.allclose(mean_of_views(views, "sigmoid")[:, 0], expected, atol=1e-6)
    softmax = mean_of_views(views, "softmax")[:, 0].exp()  # (1/2, 1/2) and (1/4, 3/4)
    assert torch.allclose(softmax, torch.tensor([0.375, 0.625]), atol=1e-6)


def test_views_that_agree_keep_their_logits_however_large():
    logits = torch.tensor([-80.0, -1.0, 0.0, 3.0, 90.0]).view(1, 5, 1).repeat(4, 1, 1)
    assert torch.allclose(mean_of_views(logits, "sigmoid"), logits[0], atol=1e-4)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"patch_size": (8, 8, 8)}, "do not fit"),
        ({"overlap": 1.0}, "do not fit"),
        ({"flips": (2,)}, "give spatial axes from 0 to 1, each once"),
        ({"flips": (0, 0)}, "each once"),
    ],
)
def test_settings_that_do_not_fit(changed, message):
    with pytest.raises(ValueError, match=message):
        predict_logits(StandIn().eval(), picture(8, 8)[:1], **{"patch_size": (8, 8), **changed})


def test_dropout_at_work_is_refused():
    with pytest.raises(ValueError, match=r"in training mode, and its dropout would be at work; call eval\(\)"):
        predict_logits(StandIn().train(), picture(8, 8)[:1], (8, 8))
