"""Builds a popen model around a pretrained vision-language backbone, for `recipes/sft.py` to train.

    python recipes/compose.py --backbone llava-hf/llava-1.5-7b-hf --image_size 336 --output_dir runs/popen-llava
    python recipes/compose.py --backbone Qwen/Qwen2.5-VL-3B-Instruct --image_size 448 --output_dir runs/popen-qwen
        --pixel_encoder facebook/sam-vit-base

Words come from the backbone, the mask parts are fresh. The backbone must fit into memory once, in `dtype`.
"""

from dataclasses import dataclass, field

import torch

from popen.lvlm.composing import compose, load_backbone
from popen.lvlm.pixel_backbones import trained_encoder
from popen.recipe import run


@dataclass
class ComposeArguments:
    """The backbone, the pixels, and the codebook."""

    backbone: str = field(metadata={"help": "Folder or Hub id of a vision-language model."})
    image_size: int = field(metadata={"help": "Side of the square canvas in pixels."})
    output_dir: str = field(metadata={"help": "Where the model folder goes."})
    max_length: int = field(default=1024, metadata={"help": "Longest picture, question and answer in tokens."})
    tokens_per_scale: int = field(default=3, metadata={"help": "N of the codebook (PixelLM: 3)."})
    pixel_encoder: str | None = field(
        default=None, metadata={"help": "SAM, an AutoBackbone or an open_clip model; else the backbone's tower."}
    )
    open_clip_architecture: str | None = field(
        default=None, metadata={"help": "Name of an open_clip pixel encoder's architecture, such as ViT-B-16."}
    )
    pixel_size: int | None = field(default=None, metadata={"help": "Pixels that an open_clip encoder is built for."})
    dtype: str = field(default="bfloat16", metadata={"help": "Type of the weights."})
    seed: int = field(default=0, metadata={"help": "Seed of the mask parts."})


def main(args: ComposeArguments) -> None:
    backbone, processor = load_backbone(args.backbone, getattr(torch, args.dtype))
    encoder = None
    if args.pixel_encoder is not None:
        encoder = trained_encoder(args.pixel_encoder, args.open_clip_architecture, args.pixel_size)
    model, processor = compose(
        backbone, processor, args.image_size, args.max_length, args.seed, encoder, args.tokens_per_scale
    )
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{args.output_dir}: {millions:.1f} M parameters, a picture is {processor.picture_tokens} tokens")


if __name__ == "__main__":
    run(main, ComposeArguments)
