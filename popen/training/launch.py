"""How a training is launched, read from an `accelerate launch --config_file`: processes, sharding, precision."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from popen.data.safe_io import DataError, read_text

COPIES = ("NO", "MULTI_GPU", "MULTI_CPU")


@dataclass(frozen=True)
class Launch:
    """What `accelerate` is told that decides about memory.

    Args:
        engine: "copies" (one process, or a copy on each), "deepspeed" or "fsdp".
        processes: over all machines. zero_stage: 0 to 3; FSDP is 3, or 2 where weights stay whole after the forward
            pass.
        offloads_optimizer, offloads_weights: to the host's memory.
        mixed_precision: "no", "bf16" or "fp16"; None where the training's arguments decide.
    """

    engine: str = "copies"
    processes: int = 1
    zero_stage: int = 0
    offloads_optimizer: bool = False
    offloads_weights: bool = False
    mixed_precision: str | None = None

    def __str__(self) -> str:
        name = {"copies": "", "deepspeed": f"ZeRO-{self.zero_stage} on ", "fsdp": "FSDP2 on "}[self.engine]
        return f"{name}{self.processes} process{'es' if self.processes > 1 else ''}"


def read_launch(file: str | Path) -> Launch:
    """Reads an accelerate configuration.

    Raises:
        DataError: it is missing, is no YAML mapping, or asks for what is not planned for; names the key.
    """
    config = read_yaml(file)
    kind, processes = config.get("distributed_type", "NO"), config.get("num_processes", 1)
    precision = config.get("mixed_precision")
    if not isinstance(processes, int) or processes < 1:
        raise DataError(f"{file}: num_processes {processes!r}: give a number, at least 1")
    if precision not in (None, "no", "bf16", "fp16"):
        raise DataError(f"{file}: mixed_precision {precision!r}: plan knows no, bf16 and fp16")
    if kind in COPIES:
        return Launch("copies", processes, mixed_precision=precision)
    if kind == "DEEPSPEED":
        own = _section(file, config, "deepspeed_config")
        stage = own.get("zero_stage")
        if stage not in (0, 1, 2, 3):
            raise DataError(f"{file}: zero_stage {stage!r}: give 0 to 3")
        offloads = [own.get(f"offload_{part}_device", "none") != "none" for part in ("optimizer", "param")]
        return Launch("deepspeed", processes, stage, *offloads, precision)
    if kind == "FSDP":
        own = _section(file, config, "fsdp_config")
        if own.get("fsdp_version") != 2:
            raise DataError(f"{file}: fsdp_version {own.get('fsdp_version')!r}: plan knows 2")
        stage = 3 if own.get("fsdp_reshard_after_forward", True) else 2
        offload = bool(own.get("fsdp_offload_params", False))
        return Launch("fsdp", processes, stage, offload, offload, precision)
    raise DataError(f"{file}: distributed_type {kind!r}: plan knows {', '.join(COPIES)}, DEEPSPEED and FSDP")


def read_yaml(file: str | Path) -> dict[str, Any]:
    """A YAML mapping; DataError where it is missing or something else."""
    try:
        found = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise DataError(f"{file}: not YAML ({' '.join(str(error).split())[:200]}); correct it") from None
    if not isinstance(found, dict):
        raise DataError(f"{file}: not a mapping of keys to values; see recipes/ for one")
    return found


def _section(file: str | Path, config: dict, name: str) -> dict:
    section = config.get(name)
    if not isinstance(section, dict):
        raise DataError(f"{file}: no {name} in it; see recipes/accelerate/ for one")
    return section
