"""What a forward and a backward pass keep in memory, counted storage by storage, without weights or pictures.

The model runs on tensors that have a shape and no content, so a model of any size is counted in seconds and in no
memory. Only ids, masks and positions are real: where picture tokens stand decides shapes.
"""

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Activations:
    """Bytes of a micro-step: `kept` from forward to backward, and `peak`, the most that lives at once.

    Both without weights and gradients of weights; `peak` has what is at work on top of what is kept.
    """

    kept: int
    peak: int


def without_memory(model: nn.Module) -> tuple[nn.Module, FakeTensorMode]:
    """A model on the meta device to one whose tensors are on no device but say CPU, so that autocast knows them."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # what is tied stays tied
    with mode, torch.no_grad():
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in made:
                        made[id(tensor)] = tensor, _emptied(tensor)
                    tensors[name] = made[id(tensor)][1]
    return model, mode


def activations(
    model: nn.Module, mode: FakeTensorMode | None, batch: dict[str, torch.Tensor], autocast: torch.dtype | None
) -> Activations:
    """Bytes that `model(**batch).loss` and its backward pass take.

    Args:
        mode: of `without_memory`; None for a real model, which is measured then. Gradients are dropped as they come.
        batch: real tensors, whose bytes count where they are kept for backward.
        autocast: dtype of mixed precision; None without.
    """
    live = LiveStorages(mode, own={p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())})
    hooks = [p.register_post_accumulate_grad_hook(_drop) for p in model.parameters() if p.requires_grad]
    try:
        with mode or nullcontext(), live:
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                kept, loss = kept_for_backward(lambda: model(**batch).loss, live.own)
            loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return Activations(kept, live.peak)


def kept_for_backward(run: Callable[[], torch.Tensor], own: set[int]) -> tuple[int, torch.Tensor]:
    """Bytes of all that autograd saves while `run` makes a loss, each storage once, and that loss.

    Args:
        own: keys of the storages of weights and buffers, which are counted elsewhere.
    """
    saved = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run()
    return sum(storage.nbytes() for key, storage in saved.items() if key not in own), loss


class LiveStorages(TorchDispatchMode):
    """Follows the bytes of all storages that operations make, and of fake tensors runs no operation.

    Where `mode` is given, operations on real tensors alone stay real: ids decide shapes.
    """

    def __init__(self, mode: FakeTensorMode | None, own: set[int]):
        super().__init__()
        self.mode, self.own = mode, own
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = self._run(func, args, kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _run(self, func, args, kwargs):
        if self.mode is None:
            return func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if not any(isinstance(tensor, FakeTensor) for tensor in given):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is torch.ops.aten.index.Tensor:  # how many entries a mask selects is known: it is real
            args = (args[0], [column for index in args[1] for column in _columns(index)])
        return func(*args, **kwargs)

    def _follow(self, storage) -> None:
        key = storage._cdata
        if key in self._alive or key in self.own:
            return
        self._alive[key] = storage.nbytes()
        self.now += self._alive[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._alive.pop(key)


def _columns(index: torch.Tensor | None) -> list[torch.Tensor | None]:
    if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
        return [index]
    with unset_fake_temporarily():
        return list(index.nonzero().unbind(1))


def _emptied(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="cpu")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _drop(parameter: nn.Parameter) -> None:
    parameter.grad = None
