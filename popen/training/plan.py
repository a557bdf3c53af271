"""What a training will take on each device, before it runs: `popen plan`."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm.auto import tqdm

from popen.lvlm.label_logps import tokens_at_once
from popen.training.activations import Activations, activations, without_memory
from popen.training.launch import Launch
from popen.training.memory import GIB, HALF, SINGLE, quantised_bytes, zero_split
from popen.training.muon import hidden_matrices
from popen.training.optimizer_states import Trained, optimizer_name, state_bytes
from popen.training.planned_run import PlannedRun
from popen.training.quantisation import quantised_modules

SPARE = 0.1  # of the memory: fragmentation, communication buffers and workspaces of kernels are not counted


@dataclass(frozen=True)
class Growth:
    """Activations that grow evenly from a micro-batch of `rows` rows on: `first` of these, `second` of one more."""

    rows: int
    first: Activations
    second: Activations

    def of(self, rows: int) -> Activations:
        """Of a micro-batch of so many rows."""
        more = rows - self.rows
        return Activations(
            self.first.kept + more * (self.second.kept - self.first.kept),
            self.first.peak + more * (self.second.peak - self.first.peak),
        )

    def most(self, room: int) -> int:
        """Rows of the largest micro-batch whose peak has room; fewer than `rows` where not even the first has."""
        left = room - self.first.peak
        return self.rows + left // (self.second.peak - self.first.peak) if left >= 0 else self.rows - 1


@dataclass(frozen=True)
class Plan:
    """Bytes on each device.

    Args:
        parameters, trained: numbers of weights. rows: the micro-batch that is asked for. row_tokens: of a row.
        growths: of activations, from one row on, and from the micro-batch on whose logits no longer fit into a piece.
        memory: of the device. optimizer_name: transformers' name.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    optimizer_name: str
    growths: tuple[Growth, ...]
    rows: int
    row_tokens: int
    memory: int

    @property
    def fixed(self) -> int:
        """What no micro-batch changes."""
        return self.weights + self.gradients + self.optimizer

    @property
    def room(self) -> int:
        """For activations, where a tenth of the memory stays free."""
        return int((1 - SPARE) * self.memory) - self.fixed

    def activations_of(self, rows: int) -> Activations:
        """Of a micro-batch of so many rows."""
        return next(growth for growth in reversed(self.growths) if growth.rows <= rows).of(rows)

    def total(self, rows: int) -> int:
        return self.fixed + self.activations_of(rows).peak

    @property
    def largest(self) -> int:
        """Rows of the largest micro-batch that leaves a tenth of the memory free; 0 where not even one does."""
        *before, last = self.growths
        for growth, following in zip(before, self.growths[1:], strict=True):
            if growth.most(self.room) < following.rows - 1:
                return growth.most(self.room)
        return last.most(self.room)

    def lines(self) -> list[str]:
        """A table, one line for each part, and the verdict."""
        at = self.activations_of(self.rows)
        share = f"{self.trained:,} trained ({self.trained / self.parameters:.2%})"
        parts = [
            ("weights", self.weights, f"{self.parameters:,} parameters, {share}"),
            ("gradients", self.gradients, ""),
            ("optimizer", self.optimizer, self.optimizer_name),
            ("activations", at.kept, f"kept for backward: {self.rows} rows of {self.row_tokens:,} tokens"),
            ("at work", at.peak - at.kept, "on top of these at the peak"),
            ("total", self.total(self.rows), f"of {self.memory / GIB:.2f}, of which a tenth is to stay free"),
        ]
        verdict = f"the largest micro-batch that fits is {self.largest}"
        if self.largest == 0:
            verdict = "no micro-batch fits; quantise, checkpoint activations, or split over more devices"
        fits = "fits" if self.rows <= self.largest else "does not fit"
        table = [f"{name:<12}{size / GIB:>9.3f} GiB  {note}".rstrip() for name, size, note in parts]
        return [*table, f"per_device_train_batch_size {self.rows} {fits}; {verdict}"]


def plan(run: PlannedRun, launch: Launch, memory: int) -> Plan:
    """Counts weights, gradients and states of a run, and follows a step of it on tensors without content.

    Args:
        memory: of each device, in bytes.
    Raises:
        DataError: the model's folder, the data or the preferences cannot be used.
    """
    _, row_tokens = run.heaviest
    model = run.model()
    pieces_from = 1 + tokens_at_once(model.config.get_text_config().vocab_size) // len(run.batch(1)["token_labels"])
    compute = _compute(run, launch)
    if launch.engine == "fsdp" and compute is not None:  # accelerate widens what is trained
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)
    engine_casts = launch.engine == "deepspeed" and compute is not None
    trained = _trained(model, run)
    split = zero_split(launch.zero_stage, launch.processes)
    count = sum(weight.entries for weight in trained)
    weights, gradients = _weight_bytes(model, run), sum(weight.entries * weight.itemsize for weight in trained)
    states = state_bytes(optimizer_name(run.training), trained, bool(getattr(run.training, "muon_learning_rate", 0)))
    parameters = sum(p.numel() for p in model.parameters())
    if engine_casts:
        weights, gradients = HALF * parameters, HALF * count
        wide = [Trained(weight.entries, SINGLE, weight.embedding, weight.hidden_matrix) for weight in trained]
        states = SINGLE * count + state_bytes(optimizer_name(run.training), wide)
        model = model.to(compute)
    elif launch.engine == "copies" and launch.processes > 1:
        gradients *= 2  # DistributedDataParallel holds them once more, in the buckets it sends
    follow = partial(_follow, run, *without_memory(model), compute, engine_casts)
    found = Plan(
        parameters, count,
        0 if launch.offloads_weights else weights // split[3],
        gradients // split[2],
        0 if launch.offloads_optimizer else states // split[1],
        optimizer_name(run.training), (follow(1),), run.training.per_device_train_batch_size, row_tokens, memory,
    )  # fmt: skip
    if 1 < pieces_from <= max(found.rows, found.largest + 1):
        found = replace(found, growths=(*found.growths, follow(pieces_from)))
    return found


def _compute(run: PlannedRun, launch: Launch) -> torch.dtype | None:
    asked = {None: None, "no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[launch.mixed_precision]
    return run.compute or asked


def _trained(model: nn.Module, run: PlannedRun) -> list[Trained]:
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    matrices = hidden_matrices(model)
    return [
        Trained(p.numel(), p.element_size(), id(p) in embeddings, name in matrices)
        for name, p in model.named_parameters()
        if p.requires_grad
    ]


def _weight_bytes(model: nn.Module, run: PlannedRun) -> int:
    """As they are loaded, buffers and all; a frozen copy where the reference is live and no adapter can be off."""
    whole = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    if getattr(run.training, "reference", "cached") == "live" and not run.lora.use_peft:
        whole *= 2
    if not run.quantisation.wanted:
        return whole
    found = quantised_modules(_without_adapters(model), run.quantisation)
    layers = [module.weight for module in found if not module.weight.requires_grad]  # no adapters
    entries = sum(weight.numel() for weight in layers)
    packed = quantised_bytes(entries, run.quantisation.use_bnb_nested_quant)
    return (
        whole
        - sum(w.numel() * w.element_size() for w in layers)
        + (packed if run.quantisation.load_in_4bit else entries)
    )


def _without_adapters(model: nn.Module) -> nn.Module:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _follow(
    run: PlannedRun, model: nn.Module, mode: FakeTensorMode, compute: torch.dtype | None, engine_casts: bool, rows: int
) -> Growth:
    """Activations from `rows` rows on; an engine that casts has the model in `compute` and casts the inputs."""
    found = []
    for size in tqdm((rows, rows + 1), desc="following a step", unit="micro-batch"):
        batch = run.batch(size)
        if engine_casts:
            batch = {name: t.to(compute) if t.is_floating_point() else t for name, t in batch.items()}
        found.append(activations(model, mode, batch, None if engine_casts else compute))
    return Growth(rows, *found)
