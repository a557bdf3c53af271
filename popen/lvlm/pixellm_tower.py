"""The CLIP tower that PixelLM keeps outside its checkpoint, and how its positions were stretched."""

import torch
from safetensors import SafetensorError
from torch.nn import functional as F
from transformers import CLIPVisionModel
from transformers.utils import cached_file

from popen.data.safe_io import DataError
from popen.data.torch_archive import TorchArchive

PICKLED = "pytorch_model.bin"


def load_tower(name_or_path: str) -> CLIPVisionModel:
    """A CLIP vision tower from a folder or the Hub: safetensors, or a `.bin` that is read without unpickling.

    Raises:
        DataError: it cannot be loaded.
    """
    try:
        file = cached_file(name_or_path, "model.safetensors", _raise_exceptions_for_missing_entries=False)
        if file is not None:
            return CLIPVisionModel.from_pretrained(name_or_path, use_safetensors=True)
        return _from_archive(name_or_path, TorchArchive(cached_file(name_or_path, PICKLED)))
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"--vision-tower {name_or_path}: no CLIP vision tower could be loaded from it ({reason})"
        ) from error


def _from_archive(name_or_path: str, archive: TorchArchive) -> CLIPVisionModel:
    """The tower's part of a CLIP; its weights are called `vision_model.…` in every `.bin`."""
    tower = CLIPVisionModel(CLIPVisionModel.config_class.from_pretrained(name_or_path))
    prefix = "vision_model."
    found = {name.removeprefix(prefix): own for name, own in archive.state.items() if name.startswith(prefix)}
    tower.load_state_dict({name: archive.tensor(found[name]) for name in tower.state_dict() if name in found})
    return tower


def resized_positions(positions_PC: torch.Tensor, patches: int) -> torch.Tensor:
    """CLIP's position embeddings stretched to a grid of `patches`, as PixelLM did it, (1 + patches, C).

    PixelLM took the last row for the class token's, which is the first: the grid that is stretched is off by one, and
    the last patch's row stands after it. Its weights were trained on that, so it is kept.

    Raises:
        ValueError: the patches, old or new, do not fill a square.
    """
    old, new = (round(n**0.5) for n in (len(positions_PC) - 1, patches))
    if old**2 != len(positions_PC) - 1 or new**2 != patches:
        raise ValueError(f"{len(positions_PC) - 1} and {patches} patches: both must fill a square")
    grid = positions_PC[:-1].T.unflatten(1, (old, old))[None]
    stretched = F.interpolate(grid.float(), (new, new), mode="bilinear")[0].to(positions_PC.dtype)
    return torch.cat([stretched.flatten(1).T, positions_PC[-1:]])
