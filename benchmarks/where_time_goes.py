"""Where the time of a step goes: a supervised and a preference step, mining and answering, at three sizes of model.

    python -m benchmarks.where_time_goes --out docs/results/bench/where_time_goes.json

Parts of a forward pass are timed on the clock at the borders of the model's modules, the rest is what stands between
them. Beside the seconds stand the FLOPs that torch counts and the share of this machine's matmul rate that they reach.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import nn
from tqdm.auto import tqdm

from benchmarks.figures import parser, report
from benchmarks.preference_pairs import LORA, ours
from benchmarks.rates import flops, matmul_rate
from benchmarks.sft_step import LOOKING
from benchmarks.shapes import CPU, CUDA, TOY, Shape, build, device, picture, question, sample, scripted
from benchmarks.turns import timed, wait_for_gpu
from popen.errors import one_line_errors
from popen.lvlm.candidates import seg_row
from popen.lvlm.hypotheses import view_hypotheses
from popen.lvlm.inference import forced_drafts, generate_drafts
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.packing import supervised_batch
from popen.preference.sampling import noise_rectangle
from popen.training.lora import with_lora

SHAPES = {
    "tiny": replace(TOY, width=128, layers=4, heads=4, mlp=320, vision_width=104, vision_layers=4, image_size=112),
    "smol": replace(CPU, width=576, layers=30, heads=9, mlp=1536, vocabulary=49152, answer=32),
    "7B, two layers": replace(
        CUDA, layers=2, vision_layers=2, answer=32, batch=1, dtype="bfloat16" if device() == "cuda" else "float32"
    ),
}
QUESTIONS, VIEWS = 4, 6
BACKWARD, REST = "backward", "rest"


@dataclass(frozen=True)
class Job:
    """Work to time; with `backward`, `run` gives the loss that a training step goes backward from."""

    model: nn.Module
    run: Callable[[], object]
    backward: bool = False


def parts_of(model: nn.Module) -> dict[str, nn.Module]:
    """The model's parts by name; none lies within another."""
    own = next(inside for inside in model.modules() if isinstance(inside, PopenForReasoningSegmentation))
    inner = own.backbone.model
    return {
        "vision tower": inner.vision_tower,
        "language model": inner.language_model,
        "output embedding": own.get_output_embeddings(),
        "pixel encoder": own.pixel_encoder,
        "mask decoder": own.mask_decoder,
        "preference head": own.preference_head,
    }


@contextmanager
def clocked(parts: dict[str, nn.Module]) -> Iterator[dict[str, float]]:
    """Seconds that go by inside each part, added up over its calls."""
    spent, began, handles = dict.fromkeys(parts, 0.0), {}, []

    def begin(name: str) -> Callable:
        return lambda *_: began.update({name: now()})

    def end(name: str) -> Callable:
        return lambda *_: spent.update({name: spent[name] + now() - began[name]})

    for name, part in parts.items():
        handles += [part.register_forward_pre_hook(begin(name)), part.register_forward_hook(end(name))]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def now() -> float:
    wait_for_gpu()
    return time.perf_counter()


def jobs(shape: Shape, seed: int, folder: str) -> Iterator[tuple[str, Job]]:
    """What is timed at one size, one after another: models of an earlier one can be given up."""
    model, processor = build(shape, seed)
    batch = supervised_batch(processor, [sample(processor, shape, seed)])
    inputs = {name: value.to(device()) for name, value in batch.items() if name not in LOOKING}
    model = with_lora(model, LORA).train()
    yield "supervised step", Job(model, lambda: model(**inputs).loss, backward=True)
    side = ours(shape, seed, folder)(True)
    loss = side.trainer.compute_loss
    yield "preference step", Job(side.trainer.model, lambda: loss(side.trainer.model, dict(side.batch)), backward=True)
    model, processor = scripted(shape, seed)
    asked = [question(processor, shape, seed + k) for k in range(QUESTIONS)]
    images = [picture(seed)] * QUESTIONS
    yield f"answering, {QUESTIONS} questions", Job(model, lambda: model.segment(images, asked, processor))
    whole = sample(processor, shape, seed)
    yield "mining, 1 question", Job(model, lambda: mined(model, processor, whole, seed))


def mined(model, processor, whole, seed: int) -> None:
    """What mining computes for one question: a sampled answer, the true one read, and six views of it ranked."""
    own, image = whole.questions[0], [whole.image]
    generate_drafts(model, processor, image, [own.question], seeds=[seed])
    drafts = forced_drafts(model, processor, image, [own.question], [own.answer])
    views = [noise_rectangle(seed + k, 0.08, 0.15, 0.5) for k in range(VIEWS)]
    stacked = view_hypotheses(model, processor, image, [own.question], drafts, [views])[0]
    seg_row(model, whole, drafts[0].features, drafts[0].canvas, stacked, 0, 1e-9)


def shares(job: Job, turns: int) -> tuple[float, dict[str, float]]:
    """Median seconds of the job, and the share of each part in it, medians over turns that add up to about 1."""
    found: list[tuple[float, dict[str, float]]] = []
    for turn in range(turns + 1):
        with clocked(parts_of(job.model)) as spent:
            start = now()
            result = job.run()
            backward = timed(result.backward).wall if job.backward else 0.0
            seconds = now() - start
        job.model.zero_grad()
        parts = {name: own for name, own in spent.items() if own} | ({BACKWARD: backward} if job.backward else {})
        parts[REST] = seconds - sum(parts.values())
        if turn:  # the first finds kernels and fills caches
            found.append((seconds, {name: own / seconds for name, own in parts.items()}))
    return median(own for own, _ in found), {name: median(own[name] for _, own in found) for name in found[0][1]}


def whole(job: Job) -> None:
    """The job once, with its backward pass."""
    result = job.run()
    if job.backward:
        result.backward()
        job.model.zero_grad()


def main() -> None:
    made = parser(__doc__, turns=3)
    made.add_argument("--sizes", nargs="+", choices=SHAPES, default=list(SHAPES))
    args = made.parse_args()
    sizes = {"toy": TOY} if args.toy else {size: SHAPES[size] for size in args.sizes}
    types = {shape.dtype for shape in sizes.values()}
    rates, found = {name: matmul_rate(getattr(torch, name)) for name in types}, []
    for size, shape in sizes.items():
        with TemporaryDirectory() as folder:
            for name, job in tqdm(jobs(shape, args.seed, folder), desc=size, unit="job", total=4):
                seconds, parts = shares(job, args.turns)
                work = flops(lambda own=job: whole(own))
                found.append({"size": size, "what": name, "seconds": seconds, "shares": parts, "flops": work})
                found[-1]["share_of_matmul_rate"] = work / seconds / rates[shape.dtype]
    report(
        args, [], shapes={size: asdict(shape) for size, shape in sizes.items()}, matmul_flops_per_s=rates, where=found
    )
    print("| size | what | seconds | of the matmul rate | where the time goes |\n|---|---|---|---|---|")
    for own in found:
        largest = sorted(own["shares"].items(), key=lambda part: -part[1])
        told = ", ".join(f"{name} {share:.0%}" for name, share in largest if share >= 0.02)
        print(f"| {own['size']} | {own['what']} | {own['seconds']:.2f} | {own['share_of_matmul_rate']:.0%} | {told} |")


if __name__ == "__main__":
    with one_line_errors("benchmarks.where_time_goes"):
        main()
