"""A configuration of nnU-Net's plans in the words of `recipes/medical.py`.

nnU-Net (v2.5 and newer) counts axes as its arrays have them, z first, after `transpose_forward`; here they are counted
as a NIfTI counts them, x first.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from popen.data.nnunet_raw import read_dataset_json
from popen.data.safe_io import DataError, read_json

NETWORKS = {"ResidualEncoderUNet": "residual_encoder_unet", "PlainConvUNet": "plain_conv_unet"}
DEPTHS = {"ResidualEncoderUNet": "n_blocks_per_stage", "PlainConvUNet": "n_conv_per_stage"}
Z_SCORE = "ZScoreNormalization"


def read_nnunet_plan(plans: str | Path, configuration: str, raw: str | Path) -> dict[str, Any]:
    """Settings of `recipes/medical.py` that a plan decides: network, patch, spacing, batch and activation.

    Args:
        plans: nnUNetPlans.json. configuration: of it, volumes only, such as 3d_fullres.
        raw: the raw folder of the data set, whose dataset.json says whether labels are classes or regions.
    Raises:
        DataError: not such a plan, no such configuration, a 2-D or cascaded one, a network without its counterpart
            here, or a normalisation other than the z-score; names file and key.
    """
    content = read_json(plans, max_bytes=2**28)  # with the fingerprint of many cases it takes megabytes
    configurations = _asked(content, "configurations", plans)
    plan = _asked(configurations, configuration, f"{plans}: configurations")
    where = f"{plans}: {configuration}"
    if "inherits_from" in plan or plan.get("previous_stage"):
        raise DataError(f"{where} builds on another configuration; take one that stands alone, such as 3d_fullres")
    order = _axes(_asked(content, "transpose_forward", plans), plans)
    spacing = _turned(_asked(plan, "spacing", where), order, f"{where}: spacing")
    schemes = _asked(plan, "normalization_schemes", where)
    if any(scheme != Z_SCORE for scheme in schemes):
        raise DataError(f"{where}: normalization_schemes {schemes}; only {Z_SCORE} has its counterpart here")
    architecture = _asked(plan, "architecture", f"{where}; plan anew with nnU-Net 2.5 or newer")
    kind = str(_asked(architecture, "network_class_name", where)).rpartition(".")[2]
    if kind not in NETWORKS:
        raise DataError(f"{where}: network_class_name {kind}; there are {', '.join(NETWORKS)}")
    options = _asked(architecture, "arch_kwargs", where)
    sides = {
        name: [_turned(stage, order, f"{where}: {name}") for stage in _asked(options, name, where)]
        for name in ("strides", "kernel_sizes")
    }
    depths = (DEPTHS[kind], "n_conv_per_stage_decoder")
    return {
        "data": str(raw),
        "network": NETWORKS[kind],
        "network_options": {
            "features_per_stage": list(_asked(options, "features_per_stage", where)),
            **sides,
            **{name: _asked(options, name, where) for name in depths},
            "deep_supervision": True,
        },
        "activation": read_dataset_json(raw).regions.activation,
        "patch_size": _turned(_asked(plan, "patch_size", where), order, f"{where}: patch_size"),
        "spacing": spacing,
        "fit": "pad",
        "scale": "z-score",
        "per_device_train_batch_size": _asked(plan, "batch_size", where),
    }


def _asked(table: Any, key: str, where: str | Path) -> Any:
    if not isinstance(table, Mapping) or key not in table:
        known = f"; it has {', '.join(map(str, table))[:120]}" if isinstance(table, Mapping) else ""
        raise DataError(f"{where}: no {key}{known}")
    return table[key]


def _axes(forward: Any, plans: str | Path) -> list[int]:
    """For each axis of a NIfTI, x first, its place in the plan."""
    if not isinstance(forward, Sequence) or sorted(forward) != [0, 1, 2]:
        raise DataError(f"{plans}: transpose_forward {forward}; expected an order of 0, 1 and 2")
    return [list(forward).index(2 - axis) for axis in range(3)]


def _turned(sides: Any, order: list[int], where: str) -> list:
    if not isinstance(sides, Sequence) or len(sides) != len(order):
        raise DataError(f"{where} {sides} is not of three axes; take a configuration of volumes, such as 3d_fullres")
    return [sides[axis] for axis in order]
