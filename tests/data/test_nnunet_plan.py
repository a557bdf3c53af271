"""Plans of nnU-Net: their axes run z, y, x behind a transpose, a NIfTI's run x, y, z."""

import copy
import json

import pytest

from popen.data.nnunet_plan import read_nnunet_plan
from popen.data.safe_io import DataError

# thick slices along y, which the planner puts first: its axes are y, z, x
PLANS = {
    "transpose_forward": [1, 0, 2],
    "configurations": {
        "2d": {"patch_size": [64, 32], "spacing": [1.0, 0.5], "batch_size": 12, "normalization_schemes": []},
        "3d_fullres": {
            "batch_size": 3,
            "patch_size": [8, 64, 32],
            "spacing": [5.0, 1.0, 0.5],
            "normalization_schemes": ["ZScoreNormalization", "ZScoreNormalization"],
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
                "arch_kwargs": {
                    "n_stages": 2,
                    "features_per_stage": [4, 8],
                    "conv_op": "torch.nn.modules.conv.Conv3d",
                    "kernel_sizes": [[1, 3, 5], [3, 3, 3]],
                    "strides": [[1, 1, 1], [1, 2, 4]],
                    "n_blocks_per_stage": [1, 3],
                    "n_conv_per_stage_decoder": [1],
                },
            },
        },
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    },
}
DATASET = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "a": 1, "b": 2}}


@pytest.fixture
def folder(tmp_path):
    """Called with a change to the plans: writes them and a dataset.json, and gives the arguments of the reader."""

    def write(change=lambda plans: None):
        plans = copy.deepcopy(PLANS)
        change(plans)
        (tmp_path / "nnUNetPlans.json").write_text(json.dumps(plans))
        (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
        return tmp_path / "nnUNetPlans.json", tmp_path

    return write


def read(plans, raw, configuration="3d_fullres"):
    return read_nnunet_plan(plans, configuration, raw)


def test_axes_are_turned(folder):
    """x is the plan's third, y its first, z its second."""
    found = read(*folder())
    assert found["patch_size"] == [32, 8, 64] and found["spacing"] == [0.5, 5.0, 1.0]
    options = found["network_options"]
    assert options["strides"] == [[1, 1, 1], [4, 1, 2]] and options["kernel_sizes"] == [[5, 1, 3], [3, 3, 3]]
    assert options["n_blocks_per_stage"] == [1, 3] and options["n_conv_per_stage_decoder"] == [1]
    assert (found["network"], found["activation"]) == ("residual_encoder_unet", "softmax")
    assert found["per_device_train_batch_size"] == 3


def test_without_a_transpose_they_are_reversed(folder):
    found = read(*folder(lambda plans: plans.update(transpose_forward=[0, 1, 2])))
    assert found["patch_size"] == [32, 64, 8] and found["spacing"] == [0.5, 1.0, 5.0]


def test_plain_convolutions_have_another_name_for_their_depth(folder):
    def plain(plans):
        architecture = plans["configurations"]["3d_fullres"]["architecture"]
        architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
        architecture["arch_kwargs"]["n_conv_per_stage"] = architecture["arch_kwargs"].pop("n_blocks_per_stage")

    found = read(*folder(plain))
    assert found["network"] == "plain_conv_unet" and found["network_options"]["n_conv_per_stage"] == [1, 3]


def of_full(**changes):
    return lambda plans: plans["configurations"]["3d_fullres"].update(changes)


@pytest.mark.parametrize(
    ("change", "configuration", "message"),
    [
        (lambda plans: None, "3d_lowres", "no 3d_lowres; it has 2d, 3d_fullres, 3d_cascade_fullres"),
        (lambda plans: None, "2d", "2d: spacing .* is not of three axes; take a configuration of volumes"),
        (lambda plans: None, "3d_cascade_fullres", "builds on another configuration; take one that stands alone"),
        (lambda plans: plans.pop("configurations"), "3d_fullres", "no configurations; it has transpose_forward"),
        (lambda plans: plans.update(transpose_forward=[0, 1]), "3d_fullres", r"transpose_forward \[0, 1\]; expected"),
        (of_full(normalization_schemes=["CTNormalization"]), "3d_fullres", "only ZScoreNormalization has its counter"),
        (of_full(patch_size=[8, 8]), "3d_fullres", "patch_size .* is not of three axes"),
        (of_full(architecture={"network_class_name": "a.VNet"}), "3d_fullres", "network_class_name VNet; there are"),
        (
            lambda plans: plans["configurations"]["3d_fullres"].pop("architecture"),
            "3d_fullres",
            "plan anew with nnU-Net 2.5 or newer: no architecture",
        ),
    ],
)
def test_what_cannot_be_taken_over_is_named(change, configuration, message, folder):
    with pytest.raises(DataError, match=f"nnUNetPlans.json.*{message}"):
        read(*folder(change), configuration)
