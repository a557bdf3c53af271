"""How many rows go through the model at once: on a processor more are slower, not faster."""

PROCESSOR_BYTES = 2**24  # of one operation's result; the C library hands back larger blocks and faults them in anew


def rows_per_pass(model, tokens: int, most: int) -> int:
    """Rows of so many tokens in one pass: `most`, on a processor only so many that its tensors are kept in the heap.

    The largest tensor is taken to be the inner one of the language model's MLP, rows · tokens · its width.

    Args:
        model: a `PopenForReasoningSegmentation`. tokens: of a row, >= 1. most: >= 1.
    Returns:
        1..most.
    """
    if model.device.type != "cpu":
        return most
    row = tokens * model.config.get_text_config().intermediate_size * model.dtype.itemsize
    return max(1, min(most, PROCESSOR_BYTES // row))
