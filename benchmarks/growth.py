"""How time and memory grow with images, questions about an image, targets, tokens of the prompt, K and views.

    python -m benchmarks.growth --out docs/results/bench/growth.json

A supervised forward and backward pass for the first four, whose memory is what the forward pass keeps for the
backward pass, weights among it; the ensemble of K hypotheses and that over views of the image, of one question each,
whose memory is the most that they hold at once, without the weights. An exponent of 1 is linear, below it a constant
cost is shared. Writes a chart per axis beside the JSON.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.ensemble import over_views
from benchmarks.figures import parser, report
from benchmarks.rates import allocated_peak, kept_bytes
from benchmarks.sft_step import LOOKING
from benchmarks.shapes import Shape, device, picture, question, sample, scripted, speaking_shape_here
from benchmarks.turns import take_turns
from eval.charts import line_chart
from popen.data.safe_io import write_bytes
from popen.errors import one_line_errors
from popen.lvlm.packing import supervised_batch

AXES = {
    "images": (1, 2, 4, 8),
    "questions per image": (1, 2, 4, 8),
    "targets per answer": (1, 2, 4, 8),
    "prompt tokens": (64, 128, 256, 512),
    "K": (1, 2, 4, 8),
    "views": (1, 2, 4, 8),
}
TOY_AXES = {name: values[:2] for name, values in AXES.items()}


@dataclass(frozen=True)
class Work:
    """One point of an axis: what is done, and what it takes in bytes."""

    run: Callable[[], object]
    memory: Callable[[], int]


def exponent(xs: list[float], ys: list[float]) -> float:
    """p of y ≈ c · x^p, by least squares of the logarithms.

    Raises:
        ValueError: fewer than two points, or one that is not above 0.
    """
    if len(xs) < 2 or len(xs) != len(ys) or min(*xs, *ys) <= 0:
        raise ValueError(f"{len(xs)} and {len(ys)} values: an exponent needs two points or more, all above 0")
    x, y = [math.log(v) for v in xs], [math.log(v) for v in ys]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - middle_x) ** 2 for a in x)
    return sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / spread


def training(model, processor, shape: Shape, images: int = 1, questions: int = 1, targets: int = 1) -> Work:
    """A supervised forward and backward pass."""
    samples = [sample(processor, shape, 100 * k, questions, targets) for k in range(images)]
    batch = supervised_batch(processor, samples)
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    inputs = {name: value.to(device()) for name, value in batch.items() if name not in LOOKING}

    def run() -> None:
        model(**inputs).loss.backward()
        model.zero_grad()

    return Work(run, lambda: kept_bytes(lambda: model(**inputs)))


def work(axis: str, value: int, model, processor, shape: Shape) -> Work:
    """What is done at one point of an axis."""
    if axis in ("K", "views"):
        asked = [picture(0)], [question(processor, shape, 0)]

        def answer() -> None:
            if axis == "K":
                model.segment(*asked, processor, ensemble=value)
            else:
                over_views(model, processor, *asked, value)

        return Work(answer, lambda: allocated_peak(answer))
    if axis == "prompt tokens":
        return training(model, processor, replace(shape, prompt=value))
    return training(model, processor, shape, **{axis.split()[0]: value})


def main() -> None:
    args = parser(__doc__, turns=1).parse_args()
    shape = speaking_shape_here(args.toy)
    spoken = scripted(shape, args.seed)
    shape = replace(shape, answer=64)  # room for eight targets
    axes, found = TOY_AXES if args.toy else AXES, {}
    for axis, values in axes.items():
        points = {value: work(axis, value, *spoken, shape) for value in values}
        taken = take_turns({str(value): own.run for value, own in points.items()}, args.turns, axis)
        seconds = [median(own.wall for own in taken[str(value)]) for value in values]
        cpu = [median(own.cpu for own in taken[str(value)]) for value in values]
        taken_bytes = [own.memory() for own in points.values()]
        measured = {"time": seconds, "processor time": cpu, "memory": taken_bytes}
        found[axis] = {"values": values, "seconds": seconds, "cpu_seconds": cpu, "bytes": taken_bytes}
        found[axis]["exponents"] = {name: exponent(values, own) for name, own in measured.items()}
        lines = {
            name: [(x, y / measured[name][0]) for x, y in zip(values, measured[name], strict=True)]
            for name in ("time", "memory")
        }
        chart = line_chart(f"{axis}: growth over the first point", lines)
        write_bytes(Path(args.out).with_name(f"growth_{axis.replace(' ', '_')}.svg"), chart.encode())
    report(args, [], shape=asdict(shape), growth=found)
    print("| axis | values | exponent of time | of processor time | of memory |\n|---|---|---|---|---|")
    for axis, own in found.items():
        p = own["exponents"]
        print(f"| {axis} | {own['values']} | {p['time']:.2f} | {p['processor time']:.2f} | {p['memory']:.2f} |")


if __name__ == "__main__":
    with one_line_errors("benchmarks.growth"):
        main()
