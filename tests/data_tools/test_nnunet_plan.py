"""A plan of nnU-Net becomes a recipe whose network can be built."""

import yaml

from data_tools.nnunet_plan import main
from popen.medical.configuration import SegmenterConfig
from popen.medical.networks import build_network
from tests.data.test_nnunet_plan import folder  # noqa: F401
from tests.launching import ROOT


def test_the_recipe_has_the_plans_network(folder, tmp_path, capsys):  # noqa: F811
    plans, raw = folder()
    shipped = ROOT / "recipes" / "medical" / "rn_dpo_unet3d.yaml"
    out = tmp_path / "mine.yaml"
    assert main([str(plans), str(raw), "--recipe", str(shipped), "--out", str(out)]) == 0
    assert "residual_encoder_unet, patch [32, 8, 64], spacing [0.5, 5.0, 1.0]" in capsys.readouterr().out
    found, before = yaml.safe_load(out.read_text()), yaml.safe_load(shipped.read_text())
    assert found["judge"] == before["judge"] and found["learning_rate"] == before["learning_rate"]
    assert found["output_dir"] == "runs/medical/mine"
    names = ("network", "activation", "dropout")
    config = SegmenterConfig(
        spatial_dims=3, in_channels=2, regions=("background", "a", "b"), patch_size=tuple(found["patch_size"]),
        options=found["network_options"], **{name: found[name] for name in names},
    )  # fmt: skip
    network = build_network(config)
    first = network.encoder.stages[0].blocks[0].conv1.conv
    assert first.kernel_size == (5, 1, 3) and network.size_divisor == (4, 1, 2)


def test_a_recipe_without_a_network_is_refused(folder, tmp_path, capsys):  # noqa: F811
    (tmp_path / "other.yaml").write_text("seed: 0\n")
    assert (
        main([*map(str, folder()), "--recipe", str(tmp_path / "other.yaml"), "--out", str(tmp_path / "o.yaml")]) == 1
    )
    assert "other.yaml: no network in it; take a recipe of recipes/medical" in capsys.readouterr().err
