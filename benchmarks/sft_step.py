"""What segmentation adds to the bare backbone: our supervised forward and backward pass against the backbone's own.

    python -m benchmarks.sft_step --out docs/results/bench/sft_step.json

The same picture, question and answer, the same adapters trained. The backbone alone computes logits for every token,
as transformers' own loss does; in the second row for the answer's tokens only, which is all that its loss needs.
"""

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


def their_step(shape, seed: int, answers_only: bool):
    """The bare backbone's forward and backward pass on the same words."""
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
    keep = {}
    if answers_only:
        # the state before the first token of the answer predicts it; the last state predicts nothing
        keep, labels = {"logits_to_keep": shape.answer + 1}, labels[:, -shape.answer - 1 :]

    def step() -> float:
        output = backbone(input_ids=ids, pixel_values=pixels, labels=labels, use_cache=False, **keep)
        output.loss.backward()
        backbone.zero_grad()
        return float(output.loss.detach())

    return step


def main() -> None:
    args = parser(__doc__, turns=4).parse_args()
    shape = deep_shape_here(args.toy)
    whole, answers = "backbone", "backbone, logits of answers only"
    sides = {
        "ours": our_step(shape, args.seed),
        whole: their_step(shape, args.seed, answers_only=False),
        answers: their_step(shape, args.seed, answers_only=True),
    }
    losses = {name: step() for name, step in sides.items()}
    work = {name: flops(step) for name, step in sides.items()}
    taken = take_turns(sides, args.turns, "SFT step")
    rate = matmul_rate(getattr(torch, shape.dtype))
    tokens = shape.batch * (shape.picture + shape.prompt + shape.answer)
    figures = []
    for name, bar in ((whole, 1.10), (answers, None)):
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
