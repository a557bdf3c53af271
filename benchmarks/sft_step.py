"""What segmentation adds to the bare backbone: our supervised forward and backward pass against the backbone's own.

    python -m benchmarks.sft_step --out docs/results/bench/sft_step.json

The same picture, question and answer, the same adapters trained. The backbone alone computes logits for every token,
as transformers' own loss does; in the second row for the answer's tokens only, which is all that its loss needs.
"""

from collections.abc import Callable
from dataclasses import asdict

import torch
from peft import get_peft_model

from benchmarks.figures import figure, parser, report
from benchmarks.preference_pairs import LORA, their_lora
from benchmarks.rates import flops, matmul_rate, speeds
from benchmarks.shapes import build, deep_shape_here, device, sample
from benchmarks.turns import take_turns
from popen.errors import one_line_errors
from popen.lvlm.packing import supervised_batch
from popen.training.lora import with_lora

LOOKING = ("token_sequence", "sequence_row", "look_row", "look_column", "look_target", "target_phrases")
WHOLE, ANSWERS = "backbone", "backbone, logits of answers only"


def our_step(shape, seed: int):
    """A forward and backward pass on words and masks."""
    model, processor = build(shape, seed)
    batch = supervised_batch(processor, [sample(processor, shape, seed + 10 * k) for k in range(shape.batch)])
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    inputs = {name: value.to(device()) for name, value in batch.items() if name not in LOOKING}
    model = with_lora(model, LORA).train()

    def step() -> float:
        output = model(**inputs)
        output.loss.backward()
        model.zero_grad()
        return float(output.ce_loss.detach())

    return step


def their_steps(shape, seed: int) -> dict[str, Callable[[], float]]:
    """The bare backbone's forward and backward pass on the same words: with all logits, and with those of answers.

    Both are of one model: three of LLaVA-7B's size leave a GPU of 80 GB little room for the steps.
    """
    model, processor = build(shape, seed)
    samples = [sample(processor, shape, seed + 10 * k) for k in range(shape.batch)]
    rows = []
    for own in samples:
        asked = own.questions[0]
        prompt = processor.prefix_ids + processor.question_ids(asked.question)
        rows.append((prompt, processor.answer_ids(asked.answer)))
    ids = torch.tensor([prompt + said for prompt, said in rows], device=device())
    labels = torch.tensor([[-100] * len(prompt) + list(said) for prompt, said in rows], device=device())
    pixels = processor.pixel_values([processor.place(own.image)[0] for own in samples]).to(device(), model.dtype)
    backbone = get_peft_model(model.backbone, their_lora()).train()

    def step(kept: int) -> float:
        # the state before the first token of the answer predicts it; the last state predicts nothing
        output = backbone(
            input_ids=ids, pixel_values=pixels, labels=labels[:, -kept:], use_cache=False, logits_to_keep=kept
        )
        output.loss.backward()
        backbone.zero_grad()
        return float(output.loss.detach())

    return {WHOLE: lambda: step(ids.shape[1]), ANSWERS: lambda: step(shape.answer + 1)}


def main() -> None:
    args = parser(__doc__, turns=4).parse_args()
    shape = deep_shape_here(args.toy)
    sides = {"ours": our_step(shape, args.seed), **their_steps(shape, args.seed)}
    losses = {name: step() for name, step in sides.items()}
    work = {name: flops(step) for name, step in sides.items()}
    taken = take_turns(sides, args.turns, "SFT step")
    rate = matmul_rate(getattr(torch, shape.dtype))
    tokens = shape.batch * (shape.picture + shape.prompt + shape.answer)
    figures = []
    for name, bar in ((WHOLE, 1.10), (ANSWERS, None)):
        own = figure(
            f"supervised step: ours / {name}", taken, "ours", name, at_most=bar,
            limit=f"{work['ours'] / work[name]:.2f} by FLOPs",
        )  # fmt: skip
        own.notes["cross_entropy"] = {side: losses[side] for side in ("ours", name)}
        own.notes.update({side: speeds(work[side], tokens, seconds, rate) for side, seconds in own.seconds.items()})
        figures.append(own)
    report(args, figures, shape=asdict(shape), matmul_flops_per_s=rate)


if __name__ == "__main__":
    with one_line_errors("benchmarks.sft_step"):
        main()
