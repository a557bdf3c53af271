"""Trained pixel encoders from a folder: open_clip's and AutoBackbone's, with random weights and few layers."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoBackbone, ConvNextConfig, ConvNextImageProcessor, ConvNextModel

from popen.data.safe_io import DataError
from popen.lvlm.pixel_backbones import OpenClipVisionConfig, trained_encoder

CUT = "ViT-L-14-336-cut"  # as published, but six narrow layers


@pytest.fixture
def open_clip(tmp_path):
    clip = pytest.importorskip("open_clip", reason="open_clip is not installed: pip install popen-seg[clip]")
    for name, published in ((CUT, "ViT-L-14-336"), (f"{CUT}-quickgelu", "ViT-L-14-336-quickgelu")):
        config = clip.get_model_config(published)
        config["embed_dim"] = 16
        config["vision_cfg"] |= {"layers": 6, "width": 64}
        config["text_cfg"] |= {"layers": 1, "width": 64, "heads": 1}
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        clip.add_model_config(tmp_path / f"{name}.json")
    return clip


@pytest.fixture
def saved(open_clip, tmp_path):
    """The weights of a model at its own 336 pixels, in a folder; every patch has the same position."""
    torch.manual_seed(0)
    model = open_clip.create_model(CUT)
    with torch.no_grad():
        model.visual.positional_embedding[1:] = torch.randn(64)
    folder = tmp_path / "clip"
    folder.mkdir()
    save_file(
        {name: weight.contiguous() for name, weight in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder, model


def test_open_clip_at_448_pixels(saved):
    """24 × 24 positions become 32 × 32, that of the class token stays; all other weights are the saved ones."""
    folder, model = saved
    encoder = trained_encoder(str(folder), CUT, 448)
    assert isinstance(encoder.config, OpenClipVisionConfig) and (encoder.side, encoder.config.image_size) == (448, 448)
    own, found = model.visual.state_dict(), encoder.module.visual.state_dict()
    assert found["positional_embedding"].shape == (1 + 32 * 32, 64)
    torch.testing.assert_close(found["positional_embedding"][0], own["positional_embedding"][0])
    torch.testing.assert_close(found["positional_embedding"][1:], own["positional_embedding"][1].expand(32 * 32, -1))
    assert own.keys() == found.keys()
    assert all(torch.equal(own[name], found[name]) for name in own if name != "positional_embedding")
    with torch.no_grad():
        maps = encoder.module.eval()(torch.randn(1, 3, 448, 448)).feature_maps
    assert [tuple(level.shape) for level in maps] == [(1, 64, 32, 32)] * 2
    assert encoder.module.channels == [64, 64] and len(encoder.image_mean) == len(encoder.image_std) == 3


@pytest.mark.parametrize(
    ("own", "asked", "right"),
    [(True, CUT, rf"{CUT}-quickgelu"), (False, f"{CUT}-quickgelu", CUT)],
    ids=["OpenAI's", "LAION's"],
)
def test_the_other_activation_is_refused(saved, own, asked, right):
    folder, _ = saved
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": own}}))
    with pytest.raises(
        DataError, match=rf"clip: its activation is .*GELU, .* is another; give the architecture {right}$"
    ):
        trained_encoder(str(folder), asked, 448)
    trained_encoder(str(folder), right, 448)


def test_a_convnext_from_a_folder(tmp_path):
    """Any model of AutoBackbone: its two deepest stages, with the weights and the normalisation of its folder."""
    torch.manual_seed(0)
    model = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1])).eval()
    model.save_pretrained(tmp_path)
    ConvNextImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path)
    encoder = trained_encoder(str(tmp_path))
    assert encoder.module.channels == [16, 24] and encoder.side is None
    assert (encoder.image_mean, encoder.image_std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    again = AutoBackbone.from_config(encoder.config).eval()
    again.load_state_dict(encoder.module.state_dict())
    picture = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = encoder.module.eval()(picture).feature_maps
        stages = model(picture, output_hidden_states=True).hidden_states
        for level, rebuilt in zip(maps, again(picture).feature_maps, strict=True):
            torch.testing.assert_close(level, rebuilt)
    assert [tuple(level.shape) for level in maps] == [(1, 16, 4, 4), (1, 24, 2, 2)]
    for level, stage, norm in zip(maps, stages[-2:], encoder.module.hidden_states_norms.values(), strict=True):
        torch.testing.assert_close(level, norm(stage))
