"""One batch of preference pairs for our trainer and for TRL's, on the same LLaVA with the same adapters."""

from collections.abc import Callable
from dataclasses import dataclass

import datasets
import torch
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from benchmarks.shapes import Shape, answer, build, device, sample
from popen.data.schema import Sample
from popen.lvlm.candidates import seg_row
from popen.lvlm.hypotheses import embedding_hypotheses
from popen.lvlm.inference import forced_drafts
from popen.lvlm.packing import preference_branches, stack_rows
from popen.lvlm.preference_packing import preference_batch
from popen.training.lora import LoraArguments, with_lora
from popen.training.preference import PreferenceArguments, PreferenceTrainer

LORA = LoraArguments(use_peft=True)  # PixelLM's: rank 8 on the language model's q_proj and v_proj
BETA = 0.1


@dataclass(frozen=True)
class Pair:
    """A picture with a question, and two answers to it of `Shape.answer` tokens."""

    sample: Sample
    chosen: str
    rejected: str

    @property
    def question(self) -> str:
        return self.sample.questions[0].question


@dataclass(frozen=True)
class Side:
    """A trainer with its batch; a step is a loss and its backward pass, without the optimizer's update."""

    trainer: PreferenceTrainer | DPOTrainer
    batch: dict[str, torch.Tensor]

    def step(self) -> float:
        """The loss; gradients are dropped again."""
        with self.trainer.compute_loss_context_manager():
            loss = self.trainer.compute_loss(self.trainer.model, dict(self.batch))
        loss.backward()
        self.trainer.model.zero_grad()
        return float(loss.detach())

    @property
    def chosen_logps(self) -> float:
        """What the last step found the chosen answers' mean log-probability to be."""
        found = self.trainer._parts if isinstance(self.trainer, PreferenceTrainer) else self.trainer._metrics["train"]
        return found["logps/chosen"][-1]


def pairs_for(processor, shape: Shape, seed: int) -> list[Pair]:
    """`shape.batch` pairs."""
    found = []
    for own in range(seed, seed + 10 * shape.batch, 10):
        words = [answer(processor, shape, own + k, targets=0) for k in (1, 2)]
        found.append(Pair(sample(processor, shape, own), *words))
    return found


def ours(shape: Shape, seed: int, folder: str) -> Callable[[bool], Side]:
    """Our trainer; called with whether masks are trained too, it gives its side."""
    model, processor = build(shape, seed)
    pairs = pairs_for(processor, shape, seed)
    text = text_rows(model, processor, pairs)
    masks = [mask_row(model, processor, pair.sample, seed) for pair in pairs]
    args = PreferenceArguments(
        output_dir=folder, max_steps=10, report_to="none", use_cpu=device() == "cpu", disable_tqdm=True, seed=seed,
        text_beta=BETA,
    )  # fmt: skip
    trainer = PreferenceTrainer(with_lora(model, LORA).train(), args, processor=processor)
    trainer.state.max_steps = args.max_steps

    def side(with_masks: bool) -> Side:
        samples = [pair.sample for pair in pairs]
        pictures = list(zip(masks, samples, strict=True)) if with_masks else []
        batch = preference_batch(processor, list(zip(text, samples, strict=True)), pictures, model.config.scales)
        batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
        return Side(trainer, {name: value.to(device()) for name, value in batch.items()})

    return side


@torch.no_grad()
def text_rows(model, processor, pairs: list[Pair]) -> list[dict]:
    """The pairs as mining writes them, with the reference's log-probabilities."""
    rows = []
    for number, pair in enumerate(pairs):
        packed = preference_branches(processor, pair.question, pair.chosen, pair.rejected, str(number))
        inputs = stack_rows([packed.without_targets()], processor.tokenizer.pad_token_id)
        square, _ = processor.place(pair.sample.image)
        sequence = inputs.pop("token_sequence")
        inputs.pop("sequence_row")
        output = model(
            **{name: value.to(model.device) for name, value in inputs.items()},
            pixel_values=processor.pixel_values([square]).to(model.device, model.dtype),
        )
        logps = output.logps.float().cpu()
        row = {"id": str(number), "question": pair.question, "chosen": pair.chosen, "rejected": pair.rejected}
        for side, name in enumerate(("chosen", "rejected")):
            row[f"ref_{name}_logps"] = logps[sequence == side].tolist()
            row[f"{name}_changed"] = [True] * int((sequence == side).sum())
        rows.append(row)
    return rows


def mask_row(model, processor, sample: Sample, seed: int) -> dict:
    """A segmentation preference about the sample's target, as mining writes it."""
    asked = sample.questions[0]
    draft = forced_drafts(model, processor, [sample.image], [asked.question], [asked.answer])[0]
    candidates = embedding_hypotheses(model, draft, 2, noise=1.0, seed=seed)
    row, _ = seg_row(model, sample, draft.features, draft.canvas, candidates, row=0, margin=1e-9)
    return row


def their_lora() -> LoraConfig:
    """Adapters of a bare backbone on the layers that `with_lora` adapts in ours."""
    layers = "|".join(LORA.lora_target_modules)
    return LoraConfig(
        r=LORA.lora_r, lora_alpha=LORA.lora_alpha, lora_dropout=LORA.lora_dropout,
        target_modules=rf".*language_model\..*\.({layers})",
    )  # fmt: skip


def theirs(shape: Shape, seed: int, folder: str) -> Side:
    """TRL's DPOTrainer on the same backbone, with its collator's batch; its reference is the adapter switched off."""
    model, processor = build(shape, seed)
    pairs = pairs_for(processor, shape, seed)
    image, eos = processor.backbone.image_token, processor.tokenizer.eos_token
    rows = {
        "images": [[processor.place(pair.sample.image)[0]] for pair in pairs],
        "prompt": [f"{image}USER: {pair.question}\nASSISTANT: " for pair in pairs],
        "chosen": [pair.chosen + eos for pair in pairs],
        "rejected": [pair.rejected + eos for pair in pairs],
    }
    text = datasets.Value("string")
    features = {"images": datasets.List(datasets.Image()), "prompt": text, "chosen": text, "rejected": text}
    args = DPOConfig(
        output_dir=folder, max_steps=10, beta=BETA, bf16=False, gradient_checkpointing=False, max_length=None,
        report_to="none", use_cpu=device() == "cpu", disable_tqdm=True, seed=seed, remove_unused_columns=False,
        per_device_train_batch_size=shape.batch,
    )  # fmt: skip
    trainer = DPOTrainer(
        model.backbone, args=args, train_dataset=datasets.Dataset.from_dict(rows, datasets.Features(features)),
        processing_class=processor.backbone, peft_config=their_lora(),
    )  # fmt: skip
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    return Side(trainer, dict(batch))
