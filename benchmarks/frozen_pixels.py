"""What it is worth that a frozen pixel encoder remembers a training picture instead of seeing it again.

    python -m benchmarks.frozen_pixels --model runs/smol/init --data runs/camvid --out frozen_pixels.json

The model needs an encoder beside its vision tower, as popen-smol has. On a GPU nothing is remembered, so this is for
processors. Alignment leaves the language model out; a supervised step has it.
"""

import torch

from benchmarks.figures import figure, parser, report
from benchmarks.sft_step import LOOKING
from benchmarks.turns import take_turns
from popen.data.safe_io import DataError
from popen.data.schema import Sample, load_split
from popen.errors import one_line_errors
from popen.lvlm.frozen_maps import FrozenMaps
from popen.lvlm.loading import load_model
from popen.lvlm.packing import supervised_batch

ALIGNED = ("pixel_values", "target_row", "target_masks", "target_phrases", "valid")


def step_of(model, inputs: dict[str, torch.Tensor], remembers: bool):
    """A forward and backward pass, with the maps of earlier passes or without; the loss."""

    def step() -> float:
        if not remembers:
            model.pixel_encoder.frozen_maps = FrozenMaps()
        output = model(**inputs)
        output.loss.backward()
        model.zero_grad()
        return float(output.loss.detach())

    return step


def main() -> None:
    made = parser(__doc__, turns=3)
    made.add_argument("--model", required=True, help="popen model folder with a pixel encoder of its own")
    made.add_argument("--data", required=True, help="folder of a data set in popen's schema")
    made.add_argument("--split", default="train")
    made.add_argument("--batch-size", type=int, default=4)
    args = made.parse_args()
    if torch.cuda.is_available():
        raise DataError("on a CUDA device every step computes its maps; hide it: CUDA_VISIBLE_DEVICES=")
    model, processor = load_model(args.model)
    model.freeze_pixels()
    model.train()
    rows = load_split(args.data, args.split)
    samples = [Sample.from_row(rows[i]) for i in range(min(args.batch_size, len(rows)))]
    batch = supervised_batch(processor, samples)
    inputs = {
        "supervised": {name: value for name, value in batch.items() if name not in LOOKING[:-1]},
        "alignment": {name: batch[name] for name in ALIGNED},
    }
    figures = []
    for stage, own in inputs.items():
        sides = {"seen for the first time": step_of(model, own, False), "remembered": step_of(model, own, True)}
        losses = {name: step() for name, step in sides.items()}
        if len(set(losses.values())) != 1:
            raise DataError(f"{stage}: losses {losses} differ; what is remembered must be what is computed")
        what = f"{stage} step of {len(samples)} pictures: {' / '.join(sides)}"
        found = figure(what, take_turns(sides, args.turns, stage), *sides)
        found.notes["loss"] = losses["remembered"]
        figures.append(found)
    questions = sum(len(own.questions) for own in samples)
    report(args, figures, pictures=len(samples), questions=questions, side=model.config.image_size)


if __name__ == "__main__":
    with one_line_errors("benchmarks.frozen_pixels"):
        main()
