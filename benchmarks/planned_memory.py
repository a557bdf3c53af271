"""Peak memory of a real step at LLaVA-7B's size against what `popen plan` predicts; on a GPU.

    python -m benchmarks.planned_memory --out docs/results/bench_gpu/planned_memory.json

Weights, gradients and states are counted, the activations of a supervised step with adapters are followed on tensors
without values (`popen.training.activations`). The peak is the allocator's over a whole step, optimizer and all.
"""

from dataclasses import asdict, replace

import torch

from benchmarks.figures import Figure, parser, report
from benchmarks.preference_pairs import LORA
from benchmarks.rates import allocated_peak
from benchmarks.sft_step import LOOKING
from benchmarks.shapes import Shape, build, deep_shape_here, device, sample
from popen.errors import one_line_errors
from popen.lvlm.packing import supervised_batch
from popen.training.activations import activations, without_memory
from popen.training.lora import with_lora
from popen.training.optimizer_states import Trained, state_bytes

CASES = ((4, True), (2, False), (1, True))  # rows of the micro-batch, whether activations are recomputed


def planned_and_measured(shape: Shape, seed: int, recomputed: bool) -> dict[str, int]:
    """Bytes of one step: of each part as planned, in all, and at the measured peak."""
    model, processor = build(shape, seed)
    batch = supervised_batch(processor, [sample(processor, shape, seed + 10 * k) for k in range(shape.batch)])
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    inputs = {name: value.to(device()) for name, value in batch.items() if name not in LOOKING}
    if recomputed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model = with_lora(model, LORA).train()
    if recomputed:
        model.enable_input_require_grads()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def step() -> None:
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # the states are made in the first one
    kept = [*model.parameters(), *model.buffers()]
    fixed = {
        "weights": sum(t.numel() * t.element_size() for t in kept),
        "gradients": sum(t.numel() * t.element_size() for t in trained),
        "optimizer": state_bytes("adamw_torch", [Trained(t.numel(), t.element_size()) for t in trained]),
    }
    held = torch.cuda.memory_allocated() if torch.cuda.is_available() else fixed["weights"] + fixed["optimizer"]
    measured = held + allocated_peak(step)
    found = activations(*without_memory(model), {name: value.cpu() for name, value in inputs.items()}, None)
    planned = sum(fixed.values()) + found.peak
    at_work = found.peak - found.kept
    return {**fixed, "activations": found.kept, "at_work": at_work, "planned": planned, "measured": measured}


def main() -> None:
    args = parser(__doc__, turns=1).parse_args()
    shape = deep_shape_here(args.toy)
    figures = []
    for rows, recomputed in CASES[-1:] if args.toy else CASES:
        found = planned_and_measured(replace(shape, batch=rows), args.seed, recomputed)
        ratio = found["planned"] / found["measured"]
        how = "recomputed" if recomputed else "kept"
        figures.append(
            Figure(
                what=f"planned / measured peak, {rows} rows, activations {how}", median=ratio, low=ratio, high=ratio,
                turns=1, limit="1", notes=found,
            )
        )  # fmt: skip
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    report(args, figures, shape=asdict(shape))


if __name__ == "__main__":
    with one_line_errors("benchmarks.planned_memory"):
        main()
