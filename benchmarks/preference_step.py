"""A preference step of ours against TRL's DPOTrainer on the same model, pictures and words: samples per second.

    python -m benchmarks.preference_step --out docs/results/bench/preference_step.json

A pair has 576 picture tokens, 64 of the prompt and 64 of each answer; the model is a LLaVA with adapters. Ours reads
the prefix once for both answers and takes the reference's log-probabilities from the pair; TRL's (1.16) reads it twice
and runs the reference, which is the adapter switched off. The second row has more to do than TRL: for every pair also
a picture whose masks are trained. Collating is left out on both sides.
"""

from dataclasses import asdict
from tempfile import TemporaryDirectory

import torch
from tqdm.auto import tqdm

from benchmarks.figures import figure, parser, report
from benchmarks.preference_pairs import ours, theirs
from benchmarks.rates import flops, matmul_rate, speeds
from benchmarks.shapes import deep_shape_here
from benchmarks.turns import take_turns
from popen.errors import one_line_errors


def main() -> None:
    args = parser(__doc__, turns=4).parse_args()
    shape = deep_shape_here(args.toy)
    with TemporaryDirectory() as folder:
        side, peer = ours(shape, args.seed, folder), theirs(shape, args.seed, folder)
        sides = {"ours": side(False), "ours with masks": side(True), "TRL": peer}
        work = {name: flops(own.step) for name, own in tqdm(sides.items(), desc="counting", unit="side")}
        logps = {name: own.chosen_logps for name, own in sides.items()}
        taken = take_turns({name: own.step for name, own in sides.items()}, args.turns, "preference step")
    rate = matmul_rate(getattr(torch, shape.dtype))
    read = shape.batch * (shape.picture + shape.prompt + 2 * shape.answer)  # of pairs: the same for both
    figures = []
    for name, bar in (("ours", 2.2), ("ours with masks", None)):
        own = figure(
            f"preference step, samples/s of {name} / TRL's", taken, "TRL", name, at_least=bar,
            limit=f"{work['TRL'] / work[name]:.2f} by FLOPs",
        )  # fmt: skip
        own.notes["chosen_logps"] = {side: logps[side] for side in (name, "TRL")}
        own.notes.update({side: speeds(work[side], read, seconds, rate) for side, seconds in own.seconds.items()})
        figures.append(own)
    report(args, figures, shape=asdict(shape), matmul_flops_per_s=rate)


if __name__ == "__main__":
    with one_line_errors("benchmarks.preference_step"):
        main()
