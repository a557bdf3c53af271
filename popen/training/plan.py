"""What a training will take on each device, before it runs: `popen plan`."""

from dataclasses import dataclass

import torch
from torch import nn
from tqdm.auto import tqdm

from popen.training.activations import Activations, activations, without_memory
from popen.training.launch import Launch
from popen.training.memory import GIB, HALF, SINGLE, quantised_bytes, zero_split
from popen.training.muon import hidden_matrices
from popen.training.optimizer_states import Trained, optimizer_name, state_bytes
from popen.training.planned_run import PlannedRun
from popen.training.quantisation import quantised_modules

SPARE = 0.1  # of the memory: fragmentation, communication buffers and workspaces of kernels are not counted


@dataclass(frozen=True)
class Plan:
    """Bytes on each device; activations of micro-batches of one and of two rows, between which they grow evenly.

    Args:
        parameters, trained: numbers of weights. rows: the micro-batch that is asked for. row_tokens: of a row.
        memory: of the device. optimizer_name: transformers' name.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    optimizer_name: str
    one_row: Activations
    two_rows: Activations
    rows: int
    row_tokens: int
    memory: int

    @property
    def fixed(self) -> int:
        """What no micro-batch changes."""
        return self.weights + self.gradients + self.optimizer

    def activations_of(self, rows: int) -> Activations:
        """Of a micro-batch of so many rows."""
        kept, peak = (
            one + (rows - 1) * (two - one)
            for one, two in (
                (self.one_row.kept, self.two_rows.kept),
                (self.one_row.peak, self.two_rows.peak),
            )
        )
        return Activations(kept, peak)

    def total(self, rows: int) -> int:
        return self.fixed + self.activations_of(rows).peak

    @property
    def largest(self) -> int:
        """Rows of the largest micro-batch that leaves a tenth of the memory free; 0 where not even one does."""
        room = int((1 - SPARE) * self.memory) - self.total(1)
        return 0 if room < 0 else 1 + room // (self.two_rows.peak - self.one_row.peak)

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
    one, two = _activations(run, model, None if engine_casts else compute, compute if engine_casts else None)
    return Plan(
        parameters, count,
        0 if launch.offloads_weights else weights // split[3],
        gradients // split[2],
        0 if launch.offloads_optimizer else states // split[1],
        optimizer_name(run.training), one, two, run.training.per_device_train_batch_size, row_tokens, memory,
    )  # fmt: skip


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


def _activations(
    run: PlannedRun, model: nn.Module, autocast: torch.dtype | None, cast: torch.dtype | None
) -> list[Activations]:
    """Of micro-batches of one and of two rows; `cast` is what an engine makes of the inputs' dtype."""
    empty, mode = without_memory(model)
    found = []
    for rows in tqdm((1, 2), desc="following a step", unit="micro-batch"):
        batch = run.batch(rows)
        if cast is not None:
            batch = {name: t.to(cast) if t.is_floating_point() else t for name, t in batch.items()}
        found.append(activations(empty, mode, batch, autocast))
    return found
