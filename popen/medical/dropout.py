"""Dropout as a source of hypotheses: put into a network without any, switched on alone, and seeded per picture and k.

MC dropout of Gal & Ghahramani 2016, as MAPO samples. Only dropout modules are seen: a rate that stands in a function
call, in `nn.MultiheadAttention` or in stochastic depth stays as `eval()` leaves it.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from popen.preference.sampling import item_seed

KINDS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
CHANNELWISE = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
NORMS = (*BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm)
INJECTED = "injected_dropout"
WAY_OUT = "build it with the config's `dropout` above 0, or call inject_dropout(model, p) and train it so"


def inject_dropout(model: nn.Module, p: float) -> int:
    """Lets every convolution block lose a share of its channels in training, in a network without dropout.

    The place is behind the block's normalisation and before its activation (MONAI's order), which an output
    convolution has none of; a network without normalisation layers drops behind each convolution wider than one pixel,
    the last one excepted. Nothing that has a single channel is dropped. Weights keep their names, so checkpoints fit
    with and without; `deepcopy` copies the dropout, too. Calling it again sets the rate anew. Convert to SyncBatchNorm
    before, not after: the conversion makes new modules without it.

    Args:
        model: changed in place; a part of a network, such as its decoder, may be given as well.
        p: share in (0, 1); what is left is scaled by 1 / (1 − p).
    Returns:
        The number of places.
    Raises:
        ValueError: p out of range, the network has dropout of its own, or no convolution block.
    """
    _check_rate("p", p)
    for name in _dropouts(model):
        if name.rpartition(".")[2] != INJECTED:
            raise ValueError(f"the network has dropout of its own ({name}); set its rate by the config's `dropout`")
    convolutions = [module for module in model.modules() if isinstance(module, CONVOLUTIONS)]
    places = [module for module in model.modules() if isinstance(module, NORMS) and _channels(module) > 1]
    if not places:
        wide = [module for module in convolutions if max(module.kernel_size) > 1 and module.out_channels > 1]
        places = [module for module in wide if module is not convolutions[-1]]
    if not convolutions or not places:
        raise ValueError("no convolution block in the network to drop channels of; add nn.Dropout where it belongs")
    dims = max(module.weight.dim() for module in convolutions) - 2
    for place in places:
        if INJECTED in place._modules:
            getattr(place, INJECTED).p = p
        else:
            place.add_module(INJECTED, CHANNELWISE[dims](p).train(place.training))
            place.register_forward_hook(_drop_output)
    return len(places)


@contextmanager
def stochastic(model: nn.Module, rate: float | None = None) -> Iterator[None]:
    """Inside, dropout alone is in training mode; BatchNorm and all else are as in `eval()`.

    Args:
        rate: share in (0, 1) for every dropout module whose own rate is above 0; None keeps their own.
    Raises:
        ValueError: rate out of range, or a network without dropout.
    """
    if rate is not None:
        _check_rate("rate", rate)
    dropouts = _needed(model).values()
    own = {dropout: dropout.p for dropout in dropouts}
    with _resting(model):
        try:
            for dropout in dropouts:
                dropout.train()
                dropout.p = own[dropout] if rate is None else rate
            yield
        finally:
            for dropout, p in own.items():
                dropout.p = p


@torch.no_grad()
def dropout_hypotheses(
    model: nn.Module,
    pictures: torch.Tensor,
    rates: Sequence[float],
    seed: int,
    names: Sequence[str],
    at_once: int = 1,
) -> torch.Tensor:
    """K hypotheses per picture, the k-th under dropout at `rates[k]`, K × `at_once` rows in one forward.

    What a row drops is drawn on the CPU from a generator seeded by `seed`, the picture's name and k. Kernels round
    by the number of rows, so every forward has the same number of them: a picture's k-th hypothesis is the same, bit
    for bit, whatever batch it comes in. A part of the network that is handed the pictures themselves and has no
    dropout in it runs once per picture, not K times: the encoder, where dropout is injected into the decoder.

    Args:
        model: maps pictures to logits, or to a list of logits with the full resolution first; batch first throughout.
        pictures: float (B, C, *spatial), 2-D or 3-D.
        rates: K shares in [0, 1), for every dropout module whose own rate is above 0; 0 is the clean pass.
        names: B names of the pictures, the same in every run.
        at_once: pictures per forward, >= 1; more are quicker on a GPU and fill up the last forward with repeats.
    Returns:
        Logits (B, K, C, *spatial) without gradient.
    Raises:
        ValueError: a value out of range, unequal counts, or a network without dropout.
    """
    if pictures.dim() not in (4, 5) or not pictures.is_floating_point() or not len(pictures):
        raise ValueError(f"pictures {tuple(pictures.shape)} {pictures.dtype}: expected float (B, C, *spatial), B >= 1")
    if len(names) != len(pictures):
        raise ValueError(f"{len(names)} names for {len(pictures)} pictures; give each its own")
    if at_once < 1 or not rates or not all(0 <= rate < 1 for rate in rates):
        raise ValueError(f"rates {list(rates)} must be shares in [0, 1), one or more, and at_once {at_once} >= 1")
    dropouts = set(_needed(model).values())
    still = list(_still_parts(model, dropouts))
    found = []
    with _resting(model):
        for start in range(0, len(pictures), at_once):
            index = [min(i, len(pictures) - 1) for i in range(start, start + at_once)]
            masks = _RowMasks(
                rates, [item_seed(seed, "dropout", names[i], k) for i in index for k in range(len(rates))]
            )
            output = _forward_rows(model, pictures[index], len(rates), dropouts, still, masks)
            found.append(output.unflatten(0, (at_once, len(rates)))[: len(pictures) - start])
    return torch.cat(found)


class _RowMasks:
    """What each row of a batch keeps, from a generator per row that its dropout modules draw from in turn."""

    def __init__(self, rates: Sequence[float], seeds: list[int]):
        self.rates = [rate for _ in range(len(seeds) // len(rates)) for rate in rates]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def drop(self, module: nn.Module, inputs: tuple[torch.Tensor], _output: torch.Tensor) -> torch.Tensor:
        """A forward hook of a dropout module in eval mode."""
        features, rows = inputs[0], len(self.rates)
        if features.shape[0] % rows:
            raise ValueError(
                f"dropout of features {tuple(features.shape)}: the first axis is not that of the {rows} rows; "
                "seeded hypotheses need a network that is batch first throughout"
            )
        each = features.shape[0] // rows  # windows of one row stand together
        shape = (each, *features.shape[1:])
        if not isinstance(module, nn.Dropout):
            shape = (*shape[:2], *(1 for _ in shape[2:]))
        kept = [
            (torch.rand(shape, generator=generator) >= rate) / (1 - rate)
            for generator, rate in zip(self.generators, self.rates, strict=True)
        ]
        return features * torch.cat(kept).to(features)


def _forward_rows(
    model: nn.Module,
    distinct: torch.Tensor,
    k: int,
    dropouts: set[nn.Module],
    still: list[nn.Module],
    masks: _RowMasks,
) -> torch.Tensor:
    """Logits of every picture k times, rows of one picture side by side; `still` parts see each picture once."""
    rows = distinct.repeat_interleave(k, 0)

    def narrow(_module, inputs):
        return (distinct,) if len(inputs) == 1 and inputs[0] is rows else None

    def widen(module, inputs, output):
        if len(inputs) == 1 and inputs[0] is distinct:
            wide = _repeated(output, len(distinct), k)
            return module.forward(rows) if wide is None else wide
        return None

    with ExitStack() as stack:
        for module in dropouts:
            stack.callback(module.register_forward_hook(masks.drop).remove)
        for module in still:
            stack.callback(module.register_forward_pre_hook(narrow).remove)
            stack.callback(module.register_forward_hook(widen).remove)
        output = model(rows)
    return output[0] if isinstance(output, list | tuple) else output


def _repeated(output, count: int, k: int):
    """Tensors of a batch of `count` with each row k times, in the lists they came in; None for anything else."""
    if isinstance(output, torch.Tensor):
        return output.repeat_interleave(k, 0) if output.dim() and len(output) == count else None
    if type(output) not in (list, tuple):
        return None
    parts = [_repeated(part, count, k) for part in output]
    return None if any(part is None for part in parts) else type(output)(parts)


def _still_parts(model: nn.Module, dropouts: set[nn.Module]) -> Iterator[nn.Module]:
    """The largest parts of a network without dropout in them."""
    for child in model.children():
        if dropouts.isdisjoint(child.modules()):
            yield child
        else:
            yield from _still_parts(child, dropouts)


@contextmanager
def _resting(model: nn.Module) -> Iterator[None]:
    """The model in `eval()`, and afterwards every module in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)  # a resting nn.TransformerEncoderLayer passes its dropout by
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes.items():
            module.training = training


def _dropouts(model: nn.Module) -> dict[str, nn.Module]:
    """Dropout modules by name; those of rate 0 are what libraries leave where none was asked for."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.AlphaDropout | nn.FeatureAlphaDropout) and module.p > 0:
            raise ValueError(
                f"{name}: {type(module).__name__} is not supported, its masks shift what they keep; use nn.Dropout"
            )
        if isinstance(module, KINDS) and module.p > 0:
            found[name] = module
    return found


def _needed(model: nn.Module) -> dict[str, nn.Module]:
    found = _dropouts(model)
    if not found:
        raise ValueError(f"the network has no dropout, so all its passes are equal; {WAY_OUT}")
    return found


def _check_rate(name: str, rate: float) -> None:
    if not 0 < rate < 1:
        raise ValueError(f"{name} = {rate}: dropout needs a share in (0, 1)")


def _channels(norm: nn.Module) -> int:
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features


def _drop_output(module: nn.Module, _inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    return getattr(module, INJECTED)(output)
