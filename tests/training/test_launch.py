"""accelerate's configurations, ours and wrong ones."""

from pathlib import Path

import pytest

from popen.data.safe_io import DataError
from popen.training.launch import Launch, read_launch

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    "file, expected",
    [
        ("accelerate_config.yaml", Launch("copies", 1, mixed_precision="no")),
        ("recipes/accelerate/zero2.yaml", Launch("deepspeed", 8, 2, mixed_precision="bf16")),
        ("recipes/accelerate/zero3.yaml", Launch("deepspeed", 8, 3, mixed_precision="bf16")),
    ],
)
def test_the_shipped_ones(file, expected):
    assert read_launch(ROOT / file) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("distributed_type: MULTI_GPU\nnum_processes: 4", Launch("copies", 4)),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 2, offload_optimizer_device: cpu}",
            Launch("deepspeed", 1, 2, offloads_optimizer=True),
        ),
        (
            "distributed_type: FSDP\nnum_processes: 2\n"
            "fsdp_config: {fsdp_version: 2, fsdp_reshard_after_forward: false}",
            Launch("fsdp", 2, 2),
        ),
    ],
    ids=["copies", "offloaded", "fsdp"],
)
def test_what_they_mean(text, expected, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    assert read_launch(tmp_path / "a.yaml") == expected


@pytest.mark.parametrize(
    "text, named",
    [
        ("[1, 2]", "not a mapping"),
        ("a: [", "not YAML"),
        ("distributed_type: TPU", "distributed_type 'TPU': plan knows NO, MULTI_GPU"),
        ("num_processes: none", "num_processes 'none': give a number"),
        ("mixed_precision: fp8", "mixed_precision 'fp8'"),
        ("distributed_type: DEEPSPEED", "no deepspeed_config"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 4}", "zero_stage 4: give 0 to 3"),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}", "fsdp_version 1: plan knows 2"),
    ],
)
def test_wrong_ones_are_named(text, named, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(DataError, match=named) as refusal:
        read_launch(tmp_path / "a.yaml")
    assert str(refusal.value).startswith(str(tmp_path)) and "\n" not in str(refusal.value)


def test_a_missing_one(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_launch(tmp_path / "a.yaml")
