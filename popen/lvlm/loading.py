"""Loads a popen model and its processor together and says plainly what is wrong with the folder."""

from pathlib import Path

from safetensors import SafetensorError
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from popen.data.safe_io import DataError, read_json
from popen.lvlm import adapters
from popen.lvlm.configuration_popen import PopenConfig
from popen.lvlm.families import FAMILIES, RELEASED_PIXELLM
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.pickled_weights import pickled_weights, way_out
from popen.lvlm.processing_popen import PopenProcessor
from popen.lvlm.row_attention import FLEX

WEIGHTS = (SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME)


def load_model(name_or_path: str | Path, **kwargs) -> tuple[PopenForReasoningSegmentation, PopenProcessor]:
    """Model and processor from a folder or a Hub id; weights from safetensors only.

    A folder with a PEFT adapter gives its base model with the adapter merged into it.

    Args:
        kwargs: of `from_pretrained`; `revision`, `token` and `cache_dir` hold for the processor, too.
    Raises:
        DataError: the folder or repository is missing, is not a popen model, or has no weights or others than its
            configuration asks for.
    """
    folder = Path(name_or_path)
    if (folder / adapters.CONFIG).is_file():
        base = adapters.base_of(folder, str(name_or_path))
        model, processor = load_model(base, **kwargs)
        return adapters.with_adapter(model, folder, str(name_or_path), base).merge_and_unload(), processor
    flex = kwargs.pop("attn_implementation") if kwargs.get("attn_implementation") == FLEX else None
    where = {name: kwargs[name] for name in ("revision", "token", "cache_dir") if name in kwargs}
    if folder.exists():
        if not (folder / "config.json").is_file():
            raise DataError(f"{folder}: no config.json in it; give a folder that save_pretrained of popen wrote")
        _check_architecture(folder, where)
        if not (folder / "popen_processor.json").is_file():
            raise DataError(
                f"{folder}: no popen_processor.json in it; give a folder that save_pretrained of popen wrote"
            )
        if not list(folder.glob("*.safetensors")):
            raise DataError(f"{folder}: no .safetensors weights in it; {_pickled_in(folder)}")
    elif str(name_or_path).startswith((".", "/")) or str(name_or_path).count("/") != 1:
        raise DataError(f"{name_or_path}: no such model folder, and it does not look like a Hub id (owner/name)")
    else:
        _check_architecture(name_or_path, where)
    try:
        model, report = PopenForReasoningSegmentation.from_pretrained(
            str(name_or_path), use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        processor = PopenProcessor.from_pretrained(name_or_path, **where)
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
    if flex is not None:  # of the language model alone, so not for transformers to set everywhere
        model.set_attn_implementation(flex)
    return model, processor


def _check_architecture(name_or_path: str | Path, where: dict) -> None:
    """Refuses another architecture and pickled weights; on the Hub before any weights are fetched."""
    file = find_file(name_or_path, "config.json", where)
    config = {} if file is None else read_json(file)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != PopenConfig.model_type:
        found = "no config.json" if file is None else f"a checkpoint of architecture {kind!r}"
        raise DataError(f"{name_or_path}: {found}, not a popen model; {_way_out(name_or_path, config)}")
    if not Path(name_or_path).exists() and not any(find_file(name_or_path, name, where) for name in WEIGHTS):
        raise DataError(
            f"{name_or_path}: no .safetensors weights there, and pickled ones (.bin, .pt) are never read; "
            f"fetch it (hf download {name_or_path} --local-dir FOLDER) and {way_out('FOLDER')}"
        )


def _way_out(name_or_path: str | Path, config: object) -> str:
    """How a checkpoint of another architecture becomes a popen model, where it can."""
    if isinstance(config, dict) and config.get("architectures") == [RELEASED_PIXELLM]:
        return f"convert it: popen convert-pixellm {name_or_path} NEW_FOLDER"
    if isinstance(config, dict) and config.get("model_type") in FAMILIES:
        return f"build one around it: python recipes/compose.py --backbone {name_or_path} …"
    return "give one that save_pretrained of popen wrote"


def _pickled_in(folder: Path) -> str:
    """The way out of a folder without safetensors."""
    for file in pickled_weights(folder):
        return f"{file.name} is pickled, and pickles are never loaded; {way_out(folder)}"
    return "copy them there or train the model first"


def find_file(name_or_path: str | Path, file: str, where: dict) -> str | None:
    """A file of the folder or repository on this machine; None where it has none of that name."""
    try:
        return cached_file(str(name_or_path), file, _raise_exceptions_for_missing_entries=False, **where)
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name_or_path}: no such folder, nor a model on the Hub within reach ({reason})") from error
