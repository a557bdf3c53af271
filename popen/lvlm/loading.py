"""Loads a popen model and its processor together and says plainly what is wrong with the folder."""

from pathlib import Path

from safetensors import SafetensorError

from popen.data.safe_io import DataError
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.processing_popen import PopenProcessor


def load_model(name_or_path: str | Path, **kwargs) -> tuple[PopenForReasoningSegmentation, PopenProcessor]:
    """Model and processor from a folder or a Hub id; weights from safetensors only.

    Raises:
        DataError: the folder is missing, is not a popen model, or has no weights or others than its
            configuration asks for.
    """
    folder = Path(name_or_path)
    if folder.exists():
        for needed in ("config.json", "popen_processor.json"):
            if not (folder / needed).is_file():
                raise DataError(f"{folder}: no {needed} in it; give a folder that save_pretrained of popen wrote")
        if not list(folder.glob("*.safetensors")):
            raise DataError(f"{folder}: no .safetensors weights in it; copy them there or train the model first")
    elif str(name_or_path).startswith((".", "/")) or str(name_or_path).count("/") != 1:
        raise DataError(f"{name_or_path}: no such model folder, and it does not look like a Hub id (owner/name)")
    try:
        model, report = PopenForReasoningSegmentation.from_pretrained(
            str(name_or_path), use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        processor = PopenProcessor.from_pretrained(name_or_path)
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name_or_path}: cannot be loaded ({reason}); copy the whole model again") from error
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(map(str, report[key]))
        if names:
            raise DataError(
                f"{name_or_path}: {len(names)} {key.replace('_', ' ')} in the weights, first {names[0]}; "
                "the weights belong to another configuration"
            )
    return model, processor
