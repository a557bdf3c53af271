"""A segmenter checks what it is given, says what belongs to a mask, and comes back from its folder as it was."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from popen.data.safe_io import DataError, StorageError, read_json, write_json
from popen.medical.configuration import SegmenterConfig
from popen.medical.networks import NETWORKS
from popen.medical.segmenter import Segmenter


class Own(nn.Module):
    """A network of one's own, with deep supervision."""

    def __init__(self, count: int = 2):
        super().__init__()
        self.conv = nn.Conv2d(3, count, 1)

    def forward(self, pictures):
        logits = self.conv(pictures)
        return [logits, logits[..., ::2, ::2]]


@pytest.fixture
def segmenter(tiny_config):
    return Segmenter(tiny_config("transattunet"))


@pytest.fixture
def folder(segmenter, tmp_path):
    segmenter.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_comes_back_from_its_folder(name, tiny_config, tmp_path):
    torch.manual_seed(0)
    segmenter = Segmenter(tiny_config(name, threshold=0.5, spacing=(1.0, 0.5)))
    pictures = torch.randn(2, 3, *segmenter.settings.patch_size)
    segmenter(pictures)  # BatchNorm has statistics of its own now
    segmenter.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = Segmenter.from_pretrained(tmp_path)
    assert loaded.settings == segmenter.settings and not loaded.training
    assert torch.equal(loaded(pictures), segmenter.eval()(pictures))


def test_the_same_segmenter_is_the_same_bytes(tiny_config, tmp_path):
    segmenter = Segmenter(tiny_config("residual_encoder_unet"))  # holds its encoder twice
    for name in "ab":
        segmenter.save_pretrained(tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    distinct = sum(p.numel() for p in segmenter.parameters())
    assert sum(t.numel() for t in load_file(tmp_path / "a" / "model.safetensors").values()) == distinct


def test_a_folder_is_overwritten_whole(segmenter, folder):
    segmenter.settings = replace(segmenter.settings, threshold=0.75)
    nn.init.ones_(segmenter.network.head.bias)
    segmenter.save_pretrained(folder)
    loaded = Segmenter.from_pretrained(folder)
    assert loaded.settings.threshold == 0.75 and loaded.network.head.bias.tolist() == [1, 1]


def test_deep_supervision_shows_all_levels_and_forward_the_first(tiny_config):
    segmenter = Segmenter(tiny_config("residual_encoder_unet", options={"deep_supervision": True})).eval()
    pictures = torch.randn(1, 3, 32, 32)
    levels = segmenter.all_logits(pictures)
    assert [level.shape[-1] for level in levels] == [32, 16]
    assert torch.equal(segmenter(pictures), levels[0])
    assert len(Segmenter(tiny_config("transattunet")).all_logits(pictures)) == 1


def test_a_network_of_ones_own(tiny_config, tmp_path):
    config = replace(tiny_config("unet"), network="own", options={})
    segmenter = Segmenter(config, Own())
    pictures = torch.randn(2, 3, 5, 7)
    assert segmenter.size_divisor == (1, 1) and segmenter(pictures).shape == (2, 2, 5, 7)
    segmenter.save_pretrained(tmp_path)
    loaded = Segmenter.from_pretrained(tmp_path, network=Own())
    assert torch.equal(loaded(pictures), segmenter(pictures))
    with pytest.raises(DataError, match="network 'own' is unknown"):
        Segmenter.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"network own gives \(2, 5, 5, 7\), expected \(2, 2, 5, 7\)"):
        Segmenter(config, Own(5))(pictures)


def test_independent_regions_are_cut_at_the_threshold(segmenter):
    logits = torch.tensor([0.0, 0.5, 0.6, -1.0]).reshape(1, 2, 1, 2)
    assert segmenter.masks_from(logits).flatten().tolist() == [False, True, True, False]
    segmenter.settings = replace(segmenter.settings, threshold=0.5)
    assert segmenter.masks_from(logits).flatten().tolist() == [False, False, True, False]


def test_exclusive_regions_are_one_hot_and_the_threshold_is_over_the_background():
    config = SegmenterConfig("own", 2, 3, ("background", "core", "rim"), "softmax", (1, 4))
    logits = torch.tensor([[[1.0, 1, 1, 1]], [[2, 1, 0, 3]], [[0, 0, 3, 3]]])[None]  # voxels in columns
    plain = Segmenter(config, Own(3)).masks_from(logits)
    assert plain.dtype == torch.bool and plain.shape == logits.shape
    assert plain[0, :, 0].long().argmax(0).tolist() == [1, 0, 2, 1]  # ties go to the first
    assert (plain.sum(1) == 1).all()
    strict = Segmenter(replace(config, threshold=1.5), Own(3)).masks_from(logits)
    assert strict[0, :, 0].long().argmax(0).tolist() == [0, 0, 2, 1]
    assert (strict.sum(1) == 1).all()


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (1, 2, 4), (1, 2, 4, 4, 4)])
def test_logits_of_another_shape_have_no_masks(segmenter, shape):
    with pytest.raises(ValueError, match=r"expected \(B, 2, \*spatial\)"):
        segmenter.masks_from(torch.zeros(shape))


@pytest.mark.parametrize(
    "pictures, message",
    [
        (torch.ones(1, 1, 32, 32), r"pictures \(1, 1, 32, 32\) torch.float32: expected float \(B, 3, \*spatial\)"),
        (torch.ones(1, 3, 16, 16, 16), "with 2 spatial axes"),
        (torch.ones(1, 3, 32, 32, dtype=torch.uint8), "torch.uint8: expected float"),
        (torch.ones(1, 3, 32, 30), r"network unet needs sides divisible by \(4, 4\); pad them"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(pictures, message, tiny_config):
    with pytest.raises(ValueError, match=message):
        Segmenter(tiny_config("unet"))(pictures)


def test_no_weights_are_fetched_for_an_encoder_that_has_them(tiny_config, tmp_path):
    """The configuration still says where the encoder came from; reading the folder needs no network."""
    Segmenter(tiny_config("smp_unet")).save_pretrained(tmp_path)
    values = read_json(tmp_path / "config.json")
    values["options"]["encoder_weights"] = "imagenet"
    write_json(tmp_path / "config.json", values)
    assert Segmenter.from_pretrained(tmp_path).settings.options["encoder_weights"] == "imagenet"


def test_pickled_weights_are_never_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        DataError, match=r"saved: pickled weights \(pytorch_model.bin\) can run code and are never read"
    ):
        Segmenter.from_pretrained(folder)


def test_what_is_not_a_segmenter_is_one_line(folder, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        Segmenter.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no config\.json, not a segmenter"):
        Segmenter.from_pretrained(tmp_path)
    write_json(tmp_path / "config.json", {"model_type": "popen"})
    with pytest.raises(DataError, match="a checkpoint of architecture 'popen', not a segmenter"):
        Segmenter.from_pretrained(tmp_path)
    write_json(tmp_path / "config.json", ["popen-segmenter"])
    with pytest.raises(DataError, match="architecture None, not a segmenter"):
        Segmenter.from_pretrained(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"no model.safetensors in it"):
        Segmenter.from_pretrained(folder)


def changed(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("head.bias"), r"head.bias is missing in network transattunet; .* another architecture"),
        (lambda t: t.update(tail=torch.zeros(1)), r"tail has no place in network transattunet"),
        (lambda t: t.update({"head.bias": torch.zeros(7)}), r"head.bias is \(7,\), network transattunet has \(2,\)"),
        (lambda t: t["head.bias"].fill_(float("nan")), "head.bias has numbers that are not finite"),
    ],
)
def test_weights_of_another_architecture_are_refused(change, message, folder):
    tensors = changed(load_file(folder / "model.safetensors"))
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(DataError, match=message) as error:
        Segmenter.from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_broken_weights_are_refused(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(DataError, match=r"model\.safetensors: cannot be read"):
        Segmenter.from_pretrained(folder)


def test_errors_of_the_configuration_name_the_file(folder):
    write_json(folder / "config.json", read_json(folder / "config.json") | {"dropout": 7})
    with pytest.raises(DataError, match=r"saved/config.json: dropout 7 must be a share"):
        Segmenter.from_pretrained(folder)


def test_a_folder_that_cannot_be_written_is_one_line(segmenter, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"file: cannot be written \(File exists\); nothing was saved"):
        segmenter.save_pretrained(tmp_path / "file")
    (tmp_path / "folder" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"model\.safetensors: cannot be written .*; the old file is intact"):
        segmenter.save_pretrained(tmp_path / "folder")
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["model.safetensors"]
