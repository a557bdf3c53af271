"""`segment` on eight questions together against one at a time: without a key-value cache, as PixelLM does, and with.

    python -m benchmarks.segment --out docs/results/bench/segment.json

The model says the same words to every question, with one target; both sides must give equal words and masks. The peer
without a cache still encodes its picture once per answer, where PixelLM's code does it at every token.
"""

from dataclasses import asdict

import numpy as np
import torch

from benchmarks.figures import figure, parser, report
from benchmarks.rates import gpu_flops, matmul_rate, speeds
from benchmarks.shapes import picture, question, scripted, speaking_shape_here
from benchmarks.turns import take_turns
from popen.data.safe_io import DataError
from popen.errors import one_line_errors
from popen.lvlm.gallery import Gallery
from popen.lvlm.inference import Draft, decode_drafts
from popen.lvlm.segmentation import Answer, finish
from popen.lvlm.shared_prefix import Branch, pack_tree, stack_trees

QUESTIONS = 8


def without_cache(model, processor, images, questions) -> list[Answer]:
    """One question at a time; every token is computed from the whole sequence."""
    drafts = [spoken(model, processor, image, asked) for image, asked in zip(images, questions, strict=True)]
    decoded = [decode_drafts(model, [draft])[0] for draft in drafts]
    logits = [draft.canvas.restore(own) for draft, (own, _) in zip(drafts, decoded, strict=True)]
    return finish(drafts, decoded, logits, model.config.mask_threshold)


@torch.no_grad()
def spoken(model, processor, image, asked: str) -> Draft:
    """A greedy answer, without a cache."""
    shown = Gallery(model, processor).show([image], [0])
    start, said = [*processor.prefix_ids, *processor.question_ids(asked)], list[int]()
    while processor.tokenizer.eos_token_id not in said:
        row = stack_trees([pack_tree([Branch(-1, tuple(start + said))])], processor.tokenizer.pad_token_id)
        inputs = (row[name].to(model.device) for name in ("input_ids", "position_ids", "attention_mask"))
        hidden, _ = model.read(*inputs, shown.pictures, spans=row["spans"].to(model.device))
        said.append(int(model.get_output_embeddings()(hidden[0, -1]).argmax()))
    decoded = processor.decode_answer(said)
    embeddings = model.codebook(hidden[0][torch.tensor(decoded.groups) + len(start) - 1])
    return Draft(decoded, embeddings, tuple(level[0] for level in shown.pictures.features), shown.canvases[0])


def one_by_one(model, processor, images, questions) -> list[Answer]:
    """A call of `segment` per question."""
    return [model.segment([image], [q], processor)[0] for image, q in zip(images, questions, strict=True)]


def together(model, processor, images, questions) -> list[Answer]:
    """One call of `segment`."""
    return model.segment(images, questions, processor)


def check_same(found: dict[str, list[Answer]]) -> float:
    """The least share of equal pixels between the ways' masks.

    Raises:
        DataError: the ways say different words, or no answer has a target.
    """
    first, *others = found.values()
    shares = []
    for other in others:
        for own, answer in zip(first, other, strict=True):
            if own.text != answer.text or not own.targets:
                raise DataError(f"{own.text[:60]!r} and {answer.text[:60]!r}: answers must be equal, with a target")
            shares += [float(np.mean(a.mask == b.mask)) for a, b in zip(own.targets, answer.targets, strict=True)]
    return min(shares)


def main() -> None:
    args = parser(__doc__, turns=2).parse_args()
    shape = speaking_shape_here(args.toy)
    model, processor = scripted(shape, args.seed)
    questions = [question(processor, shape, args.seed + k) for k in range(QUESTIONS)]
    several = [picture(args.seed + k) for k in range(QUESTIONS)]
    one = [several[0]] * QUESTIONS
    figures, rate = [], matmul_rate(model.dtype)
    for what, images, ways, bar in (
        ("segment, 8 questions about 8 pictures", several, {"one by one without cache": without_cache}, 4.0),
        ("segment, 8 questions about 8 pictures", several, {"one by one": one_by_one}, None),
        ("segment, 8 questions about one picture", one, {"one by one": one_by_one}, 3.0),
    ):
        ways = ways | {"together": together}
        equal = check_same({name: way(model, processor, images, questions) for name, way in ways.items()})
        calls = {name: lambda w=way, i=images: w(model, processor, i, questions) for name, way in ways.items()}
        work = gpu_flops(calls)
        slow = next(iter(ways))
        taken = take_turns(calls, args.turns, what, warm_up=0)  # the check was the first turn
        own = figure(f"{what}: {slow} / together", taken, slow, "together", at_least=bar)
        own.notes.update({"least_share_of_equal_pixels": equal})
        tokens = QUESTIONS * shape.answer  # those said
        own.notes["answer_tokens_per_s"] = {name: tokens / seconds for name, seconds in own.seconds.items()}
        own.notes.update({name: speeds(work[name], tokens, own.seconds[name], rate) for name in own.seconds if work})
        figures.append(own)
    report(args, figures, shape=asdict(shape), matmul_flops_per_s=rate)


if __name__ == "__main__":
    with one_line_errors("benchmarks.segment"):
        main()
