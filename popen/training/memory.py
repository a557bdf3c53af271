"""How much memory a training step or mining takes on each device, from counts alone (ours; docs/memory.md)."""

from dataclasses import dataclass

from popen.lvlm.label_logps import tokens_at_once

GIB = 2**30
HALF, SINGLE = 2, 4  # bytes of bfloat16 and float32
MASTER_AND_MOMENTS = 3 * SINGLE  # AdamW in mixed precision: a float32 copy of a weight and its two moments
TRAINED_LOGIT = 4 * SINGLE  # itself, its exponential and two parts of its gradient
READ_LOGIT = 2 * SINGLE  # itself and its exponential


@dataclass(frozen=True)
class Shape:
    """The sizes that decide: of the language model, and of one packed row of a step.

    Args:
        layers, hidden, intermediate, vocabulary: of the language model.
        row_tokens: picture, questions and answers of a row. answer_tokens: of these, tokens that are predicted.
        targets: masks in a row. canvas: side of the picture in pixels. decoder_dim: of the mask decoder.
    """

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    row_tokens: int
    answer_tokens: int
    targets: int
    canvas: int
    decoder_dim: int


@dataclass(frozen=True)
class Footprint:
    """Bytes on each device."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def footprint(parameters: int, trainable: int, shape: Shape, rows: int, devices: int, zero_stage: int) -> Footprint:
    """Bytes per device of a step in bfloat16 with AdamW and activation checkpointing (ZeRO: Rajbhandari et al. 2020).

    weights 2P, gradients 2T, optimizer 12T; stage 1 splits the optimizer over devices, stage 2 the gradients too and
    stage 3 the weights too.

    Args:
        parameters: P, of the whole model. trainable: T. rows: packed rows per device and micro-step.
        zero_stage: 0 (data parallel) to 3.
    Raises:
        ValueError: a stage that does not exist, or fewer than one device or row.
    """
    if zero_stage not in (0, 1, 2, 3) or devices < 1 or rows < 1:
        raise ValueError(
            f"zero_stage {zero_stage}, devices {devices}, rows {rows}: stages are 0 to 3, the others at least 1"
        )
    split = zero_split(zero_stage, devices)
    return Footprint(
        weights=HALF * parameters // split[3],
        gradients=HALF * trainable // split[2],
        optimizer=MASTER_AND_MOMENTS * trainable // split[1],
        activations=step_activations(shape, rows),
    )


def zero_split(zero_stage: int, devices: int) -> dict[int, int]:
    """Over how many devices optimizer states (1), gradients (2) and weights (3) are spread."""
    return {stage: devices if zero_stage >= stage else 1 for stage in (1, 2, 3)}


def quantised_bytes(quantised: int, nested: bool) -> int:
    """Bytes of Q weights in 4 bits and their scales: 4 for each 64 weights; nested 1, and 4 for each 256 scales."""
    scales = quantised // 64 + SINGLE * (quantised // (64 * 256)) if nested else SINGLE * (quantised // 64)
    return quantised // 2 + scales


def quantised_footprint(
    parameters: int, trainable: int, quantised: int, shape: Shape, rows: int, nested: bool
) -> Footprint:
    """Bytes on a device where the language model's linear layers are in 4 bits (QLoRA: Dettmers et al. 2023).

    A scale of 4 bytes for each 64 weights; nested, one of a byte, and of 4 bytes for each 256 scales. All other
    weights, gradients and moments are in float32, and there is no second copy of a weight.

    Args:
        parameters: P, of the whole model. trainable: T. quantised: Q, weights in 4 bits.
        rows: packed rows per device and micro-step. nested: whether scales are quantised.
    Raises:
        ValueError: more are quantised than are left frozen, or fewer than one row.
    """
    if not 0 <= quantised <= parameters - trainable or rows < 1:
        raise ValueError(
            f"quantised {quantised} of {parameters}, {trainable} trained, rows {rows}: only frozen weights can be "
            "quantised, and there is at least one row"
        )
    return Footprint(
        weights=quantised_bytes(quantised, nested) + SINGLE * (parameters - quantised),
        gradients=SINGLE * trainable,
        optimizer=2 * SINGLE * trainable,
        activations=step_activations(shape, rows),
    )


def step_activations(shape: Shape, rows: int) -> int:
    """Bytes that packed rows keep, and the logits of their answers."""
    logits = logits_at_once(rows * shape.answer_tokens, shape.vocabulary)
    return rows * row_activations(shape) + logits * TRAINED_LOGIT


def logits_at_once(tokens: int, vocabulary: int) -> int:
    """How many logits are in memory together: of all tokens or of a piece."""
    return min(tokens, tokens_at_once(vocabulary)) * vocabulary


def row_activations(shape: Shape) -> int:
    """Bytes that one packed row keeps: the input of every layer, one layer at work, attention mask, masks.

    With activation checkpointing a layer's inside is there only while its gradient is computed: queries, keys,
    values, attention output and norms (≈ 8 H per token) and the gated MLP (≈ 4 I). A target has feature maps at 1/14
    of the canvas, twice doubled.
    """
    tokens = shape.row_tokens
    between_layers = shape.layers * tokens * shape.hidden * HALF
    one_layer = tokens * (8 * shape.hidden + 4 * shape.intermediate) * HALF
    mask = tokens * tokens
    coarse = (shape.canvas // 14) ** 2
    decoder = shape.targets * (coarse + 4 * coarse) * shape.decoder_dim * 24 * HALF
    return between_layers + one_layer + mask + decoder


def step_seconds(
    language_parameters: int, row_tokens: int, rows: int, steps_accumulated: int, flops: float, used: float
) -> float:
    """Seconds of an optimizer step with frozen weights and adapters: 6 N per token (forward, recomputed, gradients).

    Args:
        language_parameters: N, of the language model. flops: peak of the device per second in bfloat16.
        used: share of it that training reaches, 0..1.
    """
    return 6 * language_parameters * row_tokens * rows * steps_accumulated / (flops * used)


def mining_bytes(parameters: int, shape: Shape, key_value_width: int, questions: int) -> int:
    """Bytes of mining in bfloat16: weights, the cache of keys and values, and the logits of the reference's numbers.

    Args:
        parameters: of the whole model. shape: of a question's row. questions: generated together.
        key_value_width: entries of a token's keys in one layer, heads that share them counted once.
    """
    cache = 2 * shape.layers * key_value_width * HALF * shape.row_tokens
    logits = logits_at_once(questions * shape.answer_tokens, shape.vocabulary)
    return HALF * parameters + questions * cache + logits * READ_LOGIT


def mining_seconds(
    language_parameters: int,
    row_tokens: int,
    new_tokens: int,
    questions: int,
    batch: int,
    reads: float,
    flops: float,
    bandwidth: float,
    used: float,
) -> float:
    """Seconds of mining on a device: 2 N per token that is read, and all weights from memory per token drawn.

    Args:
        language_parameters: N. row_tokens: of a question's row. new_tokens: drawn for each.
        questions: how many in all. batch: generated together. reads: how often a row is read: to answer, for the
            reference's numbers, for candidate masks.
        flops, bandwidth: peaks of the device, in operations and bytes per second. used: share of both, 0..1.
    """
    read = reads * 2 * language_parameters * row_tokens / flops
    drawn = new_tokens * HALF * language_parameters / (batch * bandwidth)
    return questions * (read + drawn) / used
