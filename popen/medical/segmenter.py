"""A segmenter: a network from pictures to logits, the configuration that gives them meaning, a folder for both."""

import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from popen.data.safe_io import DataError, read_json, storage_error, write_json
from popen.medical.configuration import SegmenterConfig
from popen.medical.networks import build_network
from popen.medical.segmenter_folder import MODEL_TYPE

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class Segmenter(nn.Module):
    """Maps pictures (B, C, *spatial) to a logit per voxel and declared region, (B, K, *spatial).

    Args:
        config: what it is made of; `config.network` is built where no network is given.
        network: any module from pictures to logits, or to a list of logits with the full resolution first.
    """

    def __init__(self, config: SegmenterConfig, network: nn.Module | None = None):
        super().__init__()
        self.settings = config
        self.network = build_network(config) if network is None else network

    @property
    def size_divisor(self) -> tuple[int, ...]:
        """By what each side of a picture must be divisible; 1 for networks of one's own."""
        return getattr(self.network, "size_divisor", (1,) * self.settings.spatial_dims)

    def forward(self, pictures: torch.Tensor, every_level: bool = False) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Logits (B, K, *spatial) of full resolution, or what `all_logits` gives; errors as there."""
        levels = self.all_logits(pictures)
        return levels if every_level else levels[0]  # one forward for wrappers such as DDP, which know no other call

    def all_logits(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of every deep-supervision level, the full resolution first; one level for other networks.

        Args:
            pictures: float (B, C, *spatial); sides divisible by `size_divisor`.
        Raises:
            ValueError: pictures of another shape, or a network that gives other than (B, K, *spatial).
        """
        self._check(pictures)
        output = self.network(pictures)
        levels = tuple(output) if isinstance(output, list | tuple) else (output,)
        expected = (len(pictures), len(self.settings.regions), *pictures.shape[2:])
        if levels[0].shape != expected:
            raise ValueError(f"network {self.settings.network} gives {tuple(levels[0].shape)}, expected {expected}")
        return levels

    def masks_from(self, logits: torch.Tensor, flips: bool = False) -> torch.Tensor:
        """Masks bool (B, K, *spatial) of logits float (B, K, *spatial); with `flips`, of those averaged over flips.

        "sigmoid": logits above the threshold. "softmax": one region per voxel, the arg max after the threshold was
        added to the background; the first wins a tie.

        Raises:
            ValueError: the second axis has not K entries.
        """
        count = len(self.settings.regions)
        if logits.dim() != self.settings.spatial_dims + 2 or logits.shape[1] != count:
            raise ValueError(f"logits {tuple(logits.shape)}: expected (B, {count}, *spatial)")
        if self.settings.activation == "sigmoid":
            return logits > self.settings.threshold_of(flips)
        background, others = logits[:, :1] + self.settings.threshold_of(flips), logits[:, 1:]
        best = torch.cat([background, others], 1).argmax(1, keepdim=True)
        return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, best, True)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors; weights carry the network's own names, each tensor once.

        Raises:
            StorageError: the disk refused.
        """
        folder = Path(folder)
        file, temporary = folder / WEIGHTS, folder / f".{WEIGHTS}.{os.getpid()}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, folder, "nothing was saved") from error
        whole = torch.contiguous_format  # copies: safetensors takes no tensor that shares its memory with another
        tensors = {name: t.detach().cpu().clone(memory_format=whole) for name, t in _tensors(self.network).items()}
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
            os.replace(temporary, file)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            cause = error if isinstance(error, OSError) else OSError(str(error))
            raise storage_error(cause, file, "the old file is intact") from error
        write_json(folder / CONFIG, {"model_type": MODEL_TYPE, **self.settings.to_dict()})

    @classmethod
    def from_pretrained(cls, folder: str | Path, network: nn.Module | None = None) -> "Segmenter":
        """A segmenter as `save_pretrained` wrote it, in eval mode, on the CPU.

        Args:
            network: of the same architecture, where it is one of your own; its weights are overwritten.
        Raises:
            DataError: no such folder, not a segmenter's, pickled or broken weights, or those of another architecture.
        """
        folder = Path(folder)
        config = _read_config(folder)
        if not (folder / WEIGHTS).is_file():
            pickled = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in PICKLED)
            if pickled:
                raise DataError(
                    f"{folder}: pickled weights ({pickled[0]}) can run code and are never read; save them again"
                )
            raise DataError(f"{folder}: no {WEIGHTS} in it; copy it there or train the segmenter first")
        fetched = {"encoder_weights"}  # the folder has the weights; none are fetched to be overwritten
        offline = replace(config, options={k: v for k, v in config.options.items() if k not in fetched})
        segmenter = cls(config, build_network(offline) if network is None else network)
        _load(segmenter.network, folder / WEIGHTS, config.network)
        return segmenter.eval()

    def _check(self, pictures: torch.Tensor) -> None:
        dims, channels, divisor = self.settings.spatial_dims, self.settings.in_channels, self.size_divisor
        if pictures.dim() != dims + 2 or pictures.shape[1] != channels or not pictures.is_floating_point():
            raise ValueError(
                f"pictures {tuple(pictures.shape)} {pictures.dtype}: expected float (B, {channels}, *spatial) with "
                f"{dims} spatial axes"
            )
        if any(side % by for side, by in zip(pictures.shape[2:], divisor, strict=True)):
            raise ValueError(
                f"pictures {tuple(pictures.shape)}: network {self.settings.network} needs sides divisible by "
                f"{divisor}; pad them"
            )


def _read_config(folder: Path) -> SegmenterConfig:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give one that Segmenter.save_pretrained wrote")
    file = folder / CONFIG
    values = read_json(file) if file.is_file() else None
    found = values.pop("model_type", None) if isinstance(values, dict) else None
    if found != MODEL_TYPE:
        what = "no config.json" if values is None else f"a checkpoint of architecture {found!r}"
        raise DataError(f"{folder}: {what}, not a segmenter; give a folder that Segmenter.save_pretrained wrote")
    return SegmenterConfig.from_dict(values, str(file))


def _tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, each under its first; some networks hold a part twice."""
    once: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        once.setdefault(id(tensor), (name, tensor))
    return dict(once.values())


@torch.no_grad()
def _load(network: nn.Module, file: Path, name: str) -> None:
    """Copies weights into a network, all or none."""
    try:
        saved = load_file(file)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{file}: cannot be read ({reason}); copy the whole folder again") from error
    wanted = _tensors(network)
    for key in sorted(wanted.keys() ^ saved.keys()):
        where = "is missing" if key in wanted else "has no place"
        raise DataError(f"{file}: {key} {where} in network {name}; the weights belong to another architecture")
    for key, tensor in saved.items():
        if tensor.shape != wanted[key].shape:
            shapes = f"{tuple(tensor.shape)}, network {name} has {tuple(wanted[key].shape)}"
            raise DataError(f"{file}: {key} is {shapes}; the weights belong to another configuration")
        if not tensor.isfinite().all():
            raise DataError(f"{file}: {key} has numbers that are not finite; take an earlier checkpoint")
    for key, tensor in saved.items():
        wanted[key].copy_(tensor)
