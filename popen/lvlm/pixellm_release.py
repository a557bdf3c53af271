"""What a folder of a released PixelLM holds: its configuration, its words, its weights; nothing is unpickled."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer, CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from popen.data.safe_io import DataError, read_json
from popen.data.torch_archive import StoredTensor, TorchArchive
from popen.lvlm.families import PIXELLM, RELEASED_PIXELLM
from popen.lvlm.processing_popen import PopenProcessor

SCALES, PICTURE = 2, "<image>"
# the ImageNet values that SAM uses; PixelLM gives them to CLIP, whose own are others
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
CHAT_TEMPLATE = (
    SYSTEM
    + " {% for message in messages %}{% if message['role'] == 'user' %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<im_start><image><im_end>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class Release:
    """A released checkpoint: where it is, its flat configuration, and which file each weight is in."""

    folder: Path
    config: dict[str, Any]
    files: dict[str, "WeightFile"]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.files[name].shapes[name]

    def tensor(self, name: str) -> torch.Tensor:
        return self.files[name].tensor(name)


class SafetensorsFile:
    """One file of safetensors: `shapes` of its tensors, and each of them by name.

    Raises:
        DataError: it is broken.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with safe_open(path, "pt") as file:
                self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}); fetch it again") from error

    def tensor(self, name: str) -> torch.Tensor:
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(name)


class BinFile:
    """One `.bin` of torch, read without unpickling: `shapes` of its tensors, and each of them by name.

    Raises:
        DataError: it is broken, or holds other things than tensors by name.
    """

    def __init__(self, path: Path):
        self.path, self.archive = path, TorchArchive(path)
        for name, stored in self.archive.state.items():
            if not isinstance(stored, StoredTensor):
                raise DataError(f"{path}: {str(name)[:80]!r} is no tensor; give a checkpoint of weights alone")
        self.shapes = {name: stored.shape for name, stored in self.archive.state.items()}

    def tensor(self, name: str) -> torch.Tensor:
        return self.archive.tensor(self.archive.state[name])


WeightFile = SafetensorsFile | BinFile


def open_release(source: str | Path) -> Release:
    """Finds the weights of a released checkpoint in a folder or its `hf_model`.

    Raises:
        DataError: there is no configuration or no weights, a file is broken or holds other things, a weight is there
            twice, or the checkpoint is of another architecture.
    """
    folder = Path(source)
    if not (folder / "config.json").is_file() and (folder / "hf_model" / "config.json").is_file():
        folder = folder / "hf_model"  # where the published repositories keep them
    config = read_json(folder / "config.json")
    named = config.get("architectures") if isinstance(config, dict) else None
    if named != [RELEASED_PIXELLM]:
        raise DataError(f"{folder}: the checkpoint is of {named}, not {RELEASED_PIXELLM}; give a released PixelLM")
    opened: list[WeightFile] = [SafetensorsFile(file) for file in sorted(folder.glob("*.safetensors"))]
    opened = opened or [BinFile(file) for file in sorted(folder.glob("pytorch_model*.bin"))]
    if not opened:
        raise DataError(f"{folder}: neither .safetensors nor pytorch_model*.bin in it; fetch the weights too")
    found: dict[str, WeightFile] = {}
    for file in opened:
        for name in file.shapes:
            if name in found:
                raise DataError(f"{file.path}: {name} is also in {found[name].path.name}; keep one set of files")
            found[name] = file
    return Release(folder, config, found)


def released_processor(release: Release, image_size: int, patch_size: int, max_length: int) -> PopenProcessor:
    """The processor that prepares pictures and words as PixelLM does, from the checkpoint's own tokenizer.

    `<image>` is added to the vocabulary: PixelLM marks the picture's place by an id outside it.

    Raises:
        DataError: the tokenizer cannot be read or lacks PixelLM's tokens.
    """
    words = stripping(_tokenizer(release))
    square = {"height": image_size, "width": image_size}
    pictures = CLIPImageProcessor(
        do_resize=False, do_center_crop=False, size=square, crop_size=square, image_mean=MEAN, image_std=STD
    )
    backbone = LlavaProcessor(
        pictures,
        words,
        patch_size=2 * patch_size,  # it counts picture tokens by this, and PixelLM halves the grid of patches
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return PopenProcessor(backbone, image_size, len(segmentation_tokens(words)), max_length, family=PIXELLM)


def segmentation_tokens(tokenizer) -> list[str]:
    """`[SEG0]`, `[SEG1]`, … as far as the tokenizer has them."""
    known, names = tokenizer.get_vocab(), []
    while f"[SEG{len(names)}]" in known:
        names.append(f"[SEG{len(names)}]")
    return names


def stripping(tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer with added tokens that swallow the blanks around them, as in PixelLM's transformers 4.31."""
    whole = Tokenizer.from_str(_with_strips(tokenizer.backend_tokenizer.to_str()))
    return PreTrainedTokenizerFast(
        tokenizer_object=whole,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.unk_token,  # PixelLM's choice
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def _with_strips(serialised: str) -> str:
    whole = json.loads(serialised)
    for token in whole["added_tokens"]:
        if token["content"].startswith(("[SEG", "<im")):
            token |= {"lstrip": True, "rstrip": True, "normalized": False}
    return json.dumps(whole)


def _tokenizer(release: Release):
    try:
        tokenizer = AutoTokenizer.from_pretrained(release.folder, legacy=True, use_fast=True)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{release.folder}: its tokenizer cannot be read ({reason})") from error
    segmentation = len(segmentation_tokens(tokenizer))
    known = tokenizer.get_vocab()
    if segmentation < SCALES or segmentation % SCALES or not {"<im_start>", "<im_end>"} <= known.keys():
        raise DataError(
            f"{release.folder}: the tokenizer has {segmentation} [SEG…] tokens and "
            f"{sorted({'<im_start>', '<im_end>'} & known.keys())}; PixelLM's has N for each of {SCALES} scales, "
            "<im_start> and <im_end>"
        )
    tokenizer.add_tokens([PICTURE])
    return tokenizer
