"""What an ensemble costs over a single pass: eight embedding-space hypotheses, and four views of the picture.

    python -m benchmarks.ensemble --out docs/results/bench/ensemble.json

A single pass generates an answer and decodes its masks. Hypotheses of the embedding run no further language pass, only
light mask decodes; views of the picture read the answer again on each, together. Their limit is one pass and a prefill
per view: `prefill` is pictures and prompts alone, which a view reads anew and at least.
"""

from dataclasses import asdict
from statistics import median

import torch

from benchmarks.figures import figure, parser, report
from benchmarks.rates import gpu_flops, matmul_rate, speeds
from benchmarks.shapes import picture, question, scripted, speaking_shape_here
from benchmarks.turns import take_turns
from popen.errors import one_line_errors
from popen.lvlm.gallery import Gallery
from popen.lvlm.generation import read_prefix
from popen.lvlm.hypotheses import attended_drafts, hypothesis_scores, view_hypotheses
from popen.lvlm.inference import decode_drafts, generate_drafts
from popen.lvlm.segmentation import Answer, finish
from popen.preference.sampling import noise_rectangle

HYPOTHESES, VIEWS = 8, 4


@torch.no_grad()
def over_views(model, processor, images, questions, count: int) -> list[Answer]:
    """The preference ensemble over noise-rectangle views: POPEN's own."""
    drafts = generate_drafts(model, processor, images, questions)
    views = [[noise_rectangle(k, 0.08, 0.15, 0.5) for k in range(count)] for _ in drafts]
    hypotheses = view_hypotheses(model, processor, images, questions, drafts, views)
    scores = hypothesis_scores(model, drafts, hypotheses)
    drafts = attended_drafts(drafts, hypotheses, scores, model.config.ensemble_sharpness)
    decoded = decode_drafts(model, drafts)
    logits = [draft.canvas.restore(own) for draft, (own, _) in zip(drafts, decoded, strict=True)]
    return finish(drafts, decoded, logits, model.config.ensemble_threshold)


@torch.no_grad()
def prefill(model, processor, images) -> None:
    """Each picture, and the prefix that holds it, read once."""
    shown = Gallery(model, processor).show(images, list(range(len(images))))
    read_prefix(model, list(processor.prefix_ids), shown.pictures)


def main() -> None:
    args = parser(__doc__, turns=3).parse_args()
    shape = speaking_shape_here(args.toy)
    model, processor = scripted(shape, args.seed)
    figures, rate = [], matmul_rate(model.dtype)
    for count in (1, 8):
        images = [picture(args.seed + k) for k in range(count)]
        questions = [question(processor, shape, args.seed + k) for k in range(count)]
        hypotheses, views = f"{HYPOTHESES} hypotheses", f"{VIEWS} views"
        ways = {
            "one pass": lambda i=images, q=questions: model.segment(i, q, processor),
            hypotheses: lambda i=images, q=questions: model.segment(i, q, processor, ensemble=HYPOTHESES),
            views: lambda i=images, q=questions: over_views(model, processor, i, q, VIEWS),
            "prefill": lambda i=images: prefill(model, processor, i),
        }
        work = gpu_flops(ways)
        taken = take_turns(ways, args.turns, f"ensemble, {count} questions")
        gpu = torch.cuda.is_available()
        share = median(own.wall for own in taken["prefill"]) / median(own.wall for own in taken["one pass"])
        limits = {hypotheses: "1", views: f"{1 + VIEWS * share:.2f}: one pass, {VIEWS} prefills of {share:.2f} pass"}
        for name, bar in ((hypotheses, 1.1 if gpu else 1.4), (views, 1.3 if gpu else 2.5)):
            what = f"ensemble of {name} / one pass, {count} question{'s' * (count > 1)} at a time"
            own = figure(what, taken, name, "one pass", at_most=bar, limit=limits[name])
            tokens = count * shape.answer  # those said
            own.notes["answer_tokens_per_s"] = {way: tokens / seconds for way, seconds in own.seconds.items()}
            own.notes.update({way: speeds(work[way], tokens, own.seconds[way], rate) for way in own.seconds if work})
            figures.append(own)
    report(args, figures, shape=asdict(shape), matmul_flops_per_s=rate)


if __name__ == "__main__":
    with one_line_errors("benchmarks.ensemble"):
        main()
