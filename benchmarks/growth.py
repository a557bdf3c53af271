"""How time and memory grow with images, questions about an image, targets, tokens of the prompt, and K.

    python -m benchmarks.growth --out docs/results/bench/growth.json

A supervised forward and backward pass for the first four, the ensemble of K hypotheses of one question for K. Memory
is what the forward pass keeps for the backward pass, weights among it; the ensemble keeps none. An exponent of 1 is
linear, below it a constant cost is shared. Writes a chart per axis beside the JSON.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.figures import parser, report
from benchmarks.rates import kept_bytes
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
}
TOY_AXES = {name: values[:2] for name, values in AXES.items()}


@dataclass(frozen=True)
class Work:
    """One point of an axis: what is done, and its forward pass alone where it keeps anything."""

    run: Callable[[], object]
    forward: Callable[[], object] | None = None


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

    return Work(run, lambda: model(**inputs))


def work(axis: str, value: int, model, processor, shape: Shape) -> Work:
    """What is done at one point of an axis."""
    if axis == "K":
        asked = [question(processor, shape, 0)]
        return Work(lambda: model.segment([picture(0)], asked, processor, ensemble=value))
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
        kept = [kept_bytes(own.forward) for own in points.values() if own.forward is not None]
        found[axis] = {"values": values, "seconds": seconds, "cpu_seconds": cpu, "kept_bytes": kept or None}
        found[axis]["exponents"] = {"time": exponent(values, seconds), "processor time": exponent(values, cpu)}
        lines = {"time": list(zip(values, [s / seconds[0] for s in seconds], strict=True))}
        if kept:
            found[axis]["exponents"]["memory"] = exponent(values, kept)
            lines["memory"] = list(zip(values, [b / kept[0] for b in kept], strict=True))
        chart = line_chart(f"{axis}: growth over the first point", lines)
        write_bytes(Path(args.out).with_name(f"growth_{axis.replace(' ', '_')}.svg"), chart.encode())
    report(args, [], shape=asdict(shape), growth=found)
    print("| axis | values | exponent of time | of processor time | of memory |\n|---|---|---|---|---|")
    for axis, own in found.items():
        p = own["exponents"]
        memory = f"{p['memory']:.2f}" if "memory" in p else "–"
        print(f"| {axis} | {own['values']} | {p['time']:.2f} | {p['processor time']:.2f} | {memory} |")


if __name__ == "__main__":
    with one_line_errors("benchmarks.growth"):
        main()
