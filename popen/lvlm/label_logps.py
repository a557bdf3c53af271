"""Log-probabilities of labels from hidden states, with the logits of a piece of the tokens in memory at a time."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from popen.distributed.sharing import is_shared, most_of_all
from popen.objectives.scores import per_token_logps

LOGITS_AT_ONCE = 2**25  # 128 MiB in float32; 256 tokens of 131,072 words still keep a GPU's matmul busy


def tokens_at_once(vocabulary: int) -> int:
    """How many tokens' logits are in memory together."""
    return max(LOGITS_AT_ONCE // vocabulary, 1)


def label_logps(head: nn.Module, states: torch.Tensor, labels: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Log-probability of each label under the logits that `head` makes of its state.

    In training the logits of several pieces are made again, one piece after another, when their gradient is due;
    those of a single piece are kept. Any head will do, as it is called as a module, adapters and all.

    Args:
        head: the output embedding, (n, H) to (n, V). states: (N, H). labels: int64 (N,), each in 0..V-1.
        vocabulary: V.
    Returns:
        (N,) natural log-probabilities in float32 or better, those of `per_token_logps` on all logits at once.
    """

    def logps_of(states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return per_token_logps(head(states), labels)

    pieces = list(_pieces(head, states, labels, tokens_at_once(vocabulary)))
    if len(pieces) == 1:
        return logps_of(states, labels)
    if not torch.is_grad_enabled():
        return torch.cat([logps_of(*piece) for piece in pieces])
    return torch.cat([checkpoint(logps_of, *piece, use_reentrant=False) for piece in pieces])


def _pieces(
    head: nn.Module, states: torch.Tensor, labels: torch.Tensor, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pieces of at most `size` tokens, at least one; where ranks share the head, equally many on each, some empty."""
    number = max(-(-len(labels) // size), 1)
    yield from zip(states.split(size), labels.split(size), strict=True)
    if is_shared(head.parameters()):
        for _ in range(most_of_all(number, states.device) - number):
            yield states[:0], labels[:0]
