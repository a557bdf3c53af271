"""What a language model is told of who attends to whom in packed rows, in the form its attention takes fastest."""

import torch
from torch.nn.attention.flex_attention import BlockMask

from popen.lvlm.shared_prefix import only_chains, tree_block_mask

FLEX, EAGER = "flex_attention", "eager"


def row_attention(
    implementation: str,
    attention_mask: torch.Tensor,
    spans: torch.Tensor | None,
    readable: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor | BlockMask:
    """The mask for rows of `stack_trees`.

    Rows that are one path each need none: the kernels know causal attention and skip half of it, which (B, S) of ones
    asks for; padding stands on the right and is nobody's past.

    Args:
        implementation: transformers' name of it. attention_mask: (B, 1, S, S) bool. spans: (B, 2, S).
        readable: (B, S) bool, columns that others may attend to; None is all of them. dtype: of the logits.
    Raises:
        ValueError: FlexAttention without spans.
    """
    if implementation == FLEX:
        if spans is None:
            raise ValueError("flex_attention reads the spans of packed rows; give them, as stack_rows makes them")
        return tree_block_mask(spans, torch.ones_like(spans[:, 0], dtype=torch.bool) if readable is None else readable)
    if readable is not None:
        itself = torch.eye(readable.shape[1], dtype=torch.bool, device=readable.device)
        attention_mask = attention_mask & (readable[:, None, None] | itself)
    if implementation == EAGER:  # it adds the mask to the logits, where True would be 1
        blocked = torch.finfo(dtype).min
        return torch.zeros_like(attention_mask, dtype=dtype).masked_fill(~attention_mask, blocked)
    if readable is None and spans is not None and only_chains(spans):
        return attention_mask.new_ones(attention_mask.shape[0], attention_mask.shape[-1], dtype=torch.long)
    return attention_mask
