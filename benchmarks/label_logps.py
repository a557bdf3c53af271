"""Log-probabilities of many tokens in a large vocabulary: their logits in pieces against all at once.

    python -m benchmarks.label_logps --out docs/results/bench/label_logps.json

The output embedding alone, frozen as beside adapters, forward and backward: the most bytes of tensors that live at
once, and the time. In pieces every logit is computed twice.
"""

import torch
from torch import nn

from benchmarks.figures import Figure, figure, parser, report
from benchmarks.rates import allocated_peak
from benchmarks.shapes import device
from benchmarks.turns import take_turns
from popen.errors import one_line_errors
from popen.lvlm.label_logps import label_logps, tokens_at_once
from popen.objectives.scores import per_token_logps

TOKENS, VOCABULARY = 2048, 131_072


def main() -> None:
    args = parser(__doc__, turns=3).parse_args()
    on_gpu = torch.cuda.is_available()
    width, dtype = (4096, torch.bfloat16) if on_gpu else (512, torch.float32)  # LLaVA-7B's, and an eighth of it
    tokens = 20 if args.toy else TOKENS
    torch.manual_seed(args.seed)
    head = nn.Linear(8 if args.toy else width, VOCABULARY, bias=False, device=device(), dtype=dtype)
    head.requires_grad_(False)
    states = torch.randn(tokens, head.in_features, device=device(), dtype=dtype, requires_grad=True)
    labels = torch.randint(VOCABULARY, (tokens,), device=device())

    def in_pieces() -> torch.Tensor:
        return label_logps(head, states, labels, VOCABULARY)

    def at_once() -> torch.Tensor:
        return per_token_logps(head(states), labels)

    def step(logps_of):
        states.grad = None
        logps_of().mean().backward()
        return states.grad

    sides = {"in pieces": lambda: step(in_pieces), "at once": lambda: step(at_once)}
    gradients = [work().float() for work in sides.values()]
    apart = float((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max())
    what = f"{tokens} tokens of {VOCABULARY:,} words, forward and backward: in pieces / at once"
    peaks = {name: allocated_peak(work) for name, work in sides.items()}
    ratio = peaks["in pieces"] / peaks["at once"]
    notes = {"megabytes": {name: peak / 1e6 for name, peak in peaks.items()}, "gradients_apart": apart}
    figures = [
        Figure(what=f"peak memory, {what}", median=ratio, low=ratio, high=ratio, turns=1, notes=notes),
        figure(f"time, {what}", take_turns(sides, args.turns, "label_logps"), *sides),
    ]
    report(args, figures, width=head.in_features, dtype=str(dtype), piece=tokens_at_once(VOCABULARY))


if __name__ == "__main__":
    with one_line_errors("benchmarks.label_logps"):
        main()
