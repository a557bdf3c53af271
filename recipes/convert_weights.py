"""Turns a model folder with pickled weights (pytorch_model.bin and its like) into one with safetensors.

    python recipes/convert_weights.py --source runs/old --output_dir runs/old-safetensors

For a popen model and for a backbone alike. The files are read without unpickling them: only tensors come out, and
whatever else a pickle could do does not happen. A released PixelLM needs none of this: `popen convert-pixellm`.
"""

from dataclasses import dataclass, field

from popen.lvlm.pickled_weights import convert_weights
from popen.recipe import run


@dataclass
class ConversionArguments:
    """From where to where."""

    source: str = field(metadata={"help": "Folder of a model with pickled weights."})
    output_dir: str = field(metadata={"help": "A new folder for the same model in safetensors."})


def main(args: ConversionArguments) -> None:
    written = convert_weights(args.source, args.output_dir)
    print(f"{args.output_dir}: {', '.join(written)}")


if __name__ == "__main__":
    run(main, ConversionArguments)
