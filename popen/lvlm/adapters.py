"""Puts a PEFT adapter from a folder on the popen model it was made for, and says plainly where it does not fit."""

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from popen.data.safe_io import DataError, read_json
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation

if TYPE_CHECKING:
    from peft import PeftModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def base_of(folder: Path, name: str) -> str:
    """The base model that an adapter folder names; `name` is the adapter's in errors.

    Raises:
        DataError: no safetensors adapter in the folder, or it names none.
    """
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise DataError(
            f"{name}: no {CONFIG} with {WEIGHTS}; pickled weights (.bin) are never read, "
            "ask its author to save the adapter again with PEFT's save_pretrained"
        )
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not base:
        raise DataError(f"{name}: it does not name its base model; give base=")
    return base


def with_adapter(model: PopenForReasoningSegmentation, folder: Path, name: str, base: str) -> "PeftModel":
    """The model with a folder's adapter on it; `name` and `base` are theirs in errors.

    Raises:
        DataError: it was made for another architecture, or some of its weights have no place.
    """
    from peft import PeftModel, get_peft_model_state_dict  # most models have no adapter and need not wait for it

    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            saved = set(file.keys())
        adapted = PeftModel.from_pretrained(model, str(folder))
    except (ValueError, RuntimeError, KeyError, TypeError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name}: does not fit {base} ({reason}); give the base model it was made for") from error
    lost = saved ^ set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if lost:
        raise DataError(f"{name}: {len(lost)} weights do not fit {base}, first {min(lost)}; give its own base")
    return adapted
