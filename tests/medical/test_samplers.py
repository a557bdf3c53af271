"""Hypotheses of saved networks: one per folder, in the order given, and only of networks for the same task."""

import pytest
import torch

from popen.data.safe_io import DataError
from popen.medical.pair_choices import PairArguments, sampler_of
from popen.medical.segmenter import Segmenter, SegmenterConfig


def segmenter(seed, **changes):
    torch.manual_seed(seed)
    values = {
        "network": "unet", "spatial_dims": 2, "in_channels": 1, "regions": ("disc",), "activation": "sigmoid",
        "patch_size": (16, 16), "options": {"channels": (4, 8), "num_res_units": 0},
    }  # fmt: skip
    return Segmenter(SegmenterConfig(**values | changes)).eval()


def test_each_checkpoint_is_a_hypothesis(tmp_path):
    networks = [segmenter(seed) for seed in range(3)]
    for number, network in enumerate(networks):
        network.save_pretrained(tmp_path / str(number))
    args = PairArguments(sampler="checkpoints", checkpoints=[str(tmp_path / "2"), str(tmp_path / "1")])
    pictures = torch.randn(3, 1, 16, 16)
    found = sampler_of(args, 2, 0.0, 0)(networks[0], pictures, ["a", "b", "c"])
    with torch.no_grad():
        torch.testing.assert_close(found, torch.stack([networks[2](pictures), networks[1](pictures)], dim=1))


def test_each_checkpoint_sees_each_flip(tmp_path):
    networks = [segmenter(seed) for seed in range(2)]
    for number, network in enumerate(networks):
        network.save_pretrained(tmp_path / str(number))
    folders = [str(tmp_path / "0"), str(tmp_path / "1")]
    pictures = torch.randn(3, 1, 16, 16)
    args = PairArguments(sampler="checkpoints_and_flips", checkpoints=folders)
    found = sampler_of(args, 2, 0.0, 0)(networks[0], pictures, ["a", "b", "c"])
    assert found.shape == (3, 2 * 4, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(found[:, 4], networks[1](pictures))
        torch.testing.assert_close(found[:, 7], networks[1](pictures.flip(2, 3)).flip(2, 3))


def test_checkpoints_of_another_task_are_refused(tmp_path):
    segmenter(0).save_pretrained(tmp_path / "a")
    segmenter(0, regions=("square",)).save_pretrained(tmp_path / "b")
    pictures = torch.zeros(1, 1, 16, 16)
    args = PairArguments(sampler="checkpoints", checkpoints=[str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(DataError, match=r"b: regions \('square',\), the model has \('disc',\); take checkpoints of"):
        sampler_of(args, 2, 0.0, 0)(segmenter(0), pictures, ["a"])
    with pytest.raises(DataError, match="checkpoints: 1 folders, and hypotheses are at least 2; name more"):
        sampler_of(PairArguments(sampler="checkpoints", checkpoints=["a"]), 2, 0.0, 0)(segmenter(0), pictures, ["a"])
