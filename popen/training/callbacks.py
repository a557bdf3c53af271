"""What the trainers share: part-losses in the log, steps that are left out or explained, whole checkpoints."""

import gc
import shutil
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from accelerate.utils import DistributedType, gather_object
from transformers import Trainer, TrainerCallback

from popen.data.safe_io import DataError, StorageError
from popen.distributed.pulse import watched_peers
from popen.training.finite_steps import FiniteSteps
from popen.training.fsdp import complete_states, prepare_fsdp
from popen.training.muon import MuonWithAdamW, hidden_matrices
from popen.training.out_of_memory import device_memory, named_batch, named_evaluation, named_rest, rows_that_fit


@contextmanager
def deterministic_kernels():
    """Same seed, same bytes: otherwise the threads of a CPU add the gradients of gathered rows in any order.

    What has no deterministic kernel on a GPU warns and runs.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads it, and filling takes time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill


class PartLossTrainer(Trainer):
    """A Trainer that logs means of named parts between two log lines and takes no step that is not finite."""

    counters: ClassVar[dict[str, Callable[[dict], int]]] = {}  # what sums of a batch are divided by, counted in it

    def __init__(self, *args, processor=None, **kwargs):
        super().__init__(*args, processing_class=None, **kwargs)
        prepare_fsdp(self.accelerator, self.model, self.args)
        self.processor = processor
        self._parts: dict[str, list[float]] = defaultdict(list)
        self._shares: dict[str, float] = {}
        self.finite_steps = FiniteSteps(self.accelerator)
        self.add_callback(self.finite_steps)
        if processor is not None:
            self.add_callback(ProcessorCallback(processor))

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """AdamW as transformers makes it, or Muon beside it where `muon_learning_rate` is set."""
        if self.optimizer is None and getattr(self.args, "muon_learning_rate", None):
            model = self.model if model is None else model
            matrices, decayed = hidden_matrices(model), set(self.get_decay_parameter_names(model))
            groups: tuple[list, list, list] = ([], [], [])
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    groups[0 if name in matrices else 1 if name in decayed else 2].append(parameter)
            args = self.args
            betas = (args.adam_beta1, args.adam_beta2)
            self.optimizer = MuonWithAdamW(
                *groups, args.learning_rate, args.muon_learning_rate, betas, args.weight_decay
            )
        return super().create_optimizer(model)

    def train(self, *args, **kwargs):
        try:
            with deterministic_kernels(), watched_peers(), self._out_of_memory(named_rest):
                return super().train(*args, **kwargs)
        finally:
            self._shares = {}

    def training_step(self, model, inputs, *args, **kwargs) -> torch.Tensor:
        """As the Trainer's; in the logged mean a loss that is not finite counts as 0, beside `skipped_steps`."""
        with self._out_of_memory(named_batch, lambda: self._rows_that_fit(inputs)):
            loss = super().training_step(model, inputs, *args, **kwargs)
        return loss.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def evaluation_loop(self, *args, **kwargs):
        with self._out_of_memory(named_evaluation):
            return super().evaluation_loop(*args, **kwargs)

    def model_inputs(self, inputs: dict) -> dict | None:
        """What of a batch makes `model(…).loss` a step of about the same memory; None where nothing does."""
        return None

    def watch(self, loss: torch.Tensor) -> None:
        """Has the step left out on every process where a loss is not finite on any."""
        self.finite_steps.watch(loss)

    @contextmanager
    def _out_of_memory(self, named: Callable, *more):
        with named(self.args, self.state.global_step, *more):
            yield

    def _rows_that_fit(self, inputs: dict) -> int | None:
        """By calculation; None where weights are in pieces or in few bits, and where the device is a processor."""
        given, memory = self.model_inputs(inputs), device_memory(self.args.device)
        kind = self.accelerator.distributed_type
        whole = kind in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
        if given is None or memory is None or not whole or getattr(self.model, "is_quantized", False):
            return None
        rows, copies = self.args.per_device_train_batch_size, 1 if kind == DistributedType.NO else 2
        return rows_that_fit(self.model, given, rows, self.args, memory, copies)

    def note(self, **parts: torch.Tensor | float) -> None:
        """Remembers values for the next log line."""
        for name, value in parts.items():
            self._parts[name].append(float(value.detach() if isinstance(value, torch.Tensor) else value))

    def get_batch_samples(self, *args, **kwargs):
        """As the Trainer's; what is counted is counted over all that is accumulated for a step, on all ranks."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._shares = self._shares_over(batches)
        return batches, items

    def shares(self, inputs: dict) -> dict[str, float]:
        """What to divide sums by, by name of `counters`: their mean over ranks and accumulated batches is then the
        mean over all items of a step, however they fell on ranks and batches. Outside of training, `inputs` are all.
        """
        return self._shares if self._shares and self.model.training else self._shares_over([inputs])

    def _shares_over(self, batches: list[dict]) -> dict[str, float]:
        own = [sum(int(count(batch)) for batch in batches) for count in self.counters.values()]
        totals = self.accelerator.reduce(torch.tensor(own, device=self.accelerator.device), "sum")
        pieces = self.accelerator.num_processes * max(len(batches), 1)
        return {name: max(float(total) / pieces, 1e-9) for name, total in zip(self.counters, totals, strict=True)}

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs = logs | self._mean_parts()
            if self.finite_steps.skipped:
                logs["skipped_steps"] = self.finite_steps.skipped
                self.finite_steps.skipped = 0
        super().log(logs, *args, **kwargs)

    def _mean_parts(self) -> dict[str, float]:
        """Means over steps and ranks; a rank may lack a part, so each brings its own sums and counts."""
        own = {name: (sum(values), len(values)) for name, values in self._parts.items()}
        self._parts.clear()
        ranks = gather_object([own])
        names = dict.fromkeys(name for rank in ranks for name in rank)
        totals = {name: [rank.get(name, (0.0, 0)) for rank in ranks] for name in names}
        return {name: sum(s for s, _ in found) / sum(c for _, c in found) for name, found in totals.items()}

    def _issue_warnings_after_load(self, load_result) -> None:
        """A resume that leaves weights out would go on from the start model in silence."""
        lost = [*load_result.missing_keys, *load_result.unexpected_keys]
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        lost = [name for name in lost if name not in tied]
        if lost:
            raise DataError(f"checkpoint: {len(lost)} weights do not fit the model, first {lost[0]}; start anew")

    def _save_checkpoint(self, *args, **kwargs):
        need = 4 * sum(p.numel() * p.element_size() for p in self.model.parameters())
        folder = Path(self.args.output_dir)
        free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
        if free < need:
            raise StorageError(
                f"{folder}: a checkpoint needs {need / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; "
                "free some room and resume, earlier checkpoints are untouched"
            )
        super()._save_checkpoint(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.accelerator.is_fsdp2:
            complete_states(self.optimizer.optimizer)
        super()._save_optimizer_and_scheduler(output_dir)


class ProcessorCallback(TrainerCallback):
    """Writes the processor beside the weights, so that every checkpoint is a whole model."""

    def __init__(self, processor):
        self.processor = processor

    def on_save(self, args, state, control, **kwargs):
        if args.should_save:  # on one process, or with save_on_each_node on one of each machine
            self.processor.save_pretrained(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def finish(trainer: PartLossTrainer) -> None:
    """Writes the final model with its processor, and the log, to `output_dir`."""
    trainer.save_model(trainer.args.output_dir)
    if trainer.args.should_save:
        if trainer.processor is not None:
            trainer.processor.save_pretrained(trainer.args.output_dir)
        (Path(trainer.args.output_dir) / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
    trainer.save_state()
    # a wrapped model keeps the process group's threads alive; one that is still there at exit aborts the process
    trainer.accelerator.wait_for_everyone()
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    gc.collect()
    trainer.end()


def resume_path(args) -> str | None:
    """What `resume_from_checkpoint` means: true is the newest whole checkpoint of output_dir, a path is itself.

    Raises:
        DataError: processes find different ones, as on machines that share no output_dir.
    """
    wanted = args.resume_from_checkpoint
    if wanted not in (True, "true", "True"):
        return wanted
    found = newest_checkpoint(args.output_dir)
    names = dict.fromkeys(gather_object([Path(found).name if found else "none"]))
    if len(names) > 1:
        raise DataError(
            f"{args.output_dir}: its newest checkpoint is {' here and '.join(names)} there; copy it to every machine, "
            "and let each write its own with save_on_each_node: true"
        )
    return found


def newest_checkpoint(output_dir: str | Path) -> str | None:
    """The newest checkpoint that is whole: a processor is written last, so its presence proves the rest.

    Raises:
        DataError: there are checkpoints but none is whole.
    """
    numbered = [f for f in Path(output_dir).glob("checkpoint-*") if f.name.rpartition("-")[2].isdigit()]
    folders = sorted(numbered, key=lambda f: int(f.name.rpartition("-")[2]))
    whole = [f for f in folders if (f / "popen_processor.json").exists() and (f / "trainer_state.json").exists()]
    if folders and not whole:
        raise DataError(f"{output_dir}: no checkpoint in it is whole; delete {folders[-1].name} and start again")
    return str(whole[-1]) if whole else None
