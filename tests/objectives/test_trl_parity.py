"""Our text losses are those of TRL's own DPOTrainer: the same batch, policy and reference through both."""

from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer

import popen
from popen.objectives.preference import hinge_loss, ipo_loss, robust_loss, sigmoid_loss
from popen.objectives.scores import mean_weighted_token_logps, per_token_logps, token_logps

ROWS = {
    "prompt": ["Find the red ball.", "Which of these could roll away?", "Find every star."],
    "chosen": [" It is the red ball.", " The red ball could roll away.", " Here are the blue star and the red star."],
    "rejected": [" It is the red box, I think.", " There is none.", " Here is the blue star."],
}
BETA = 0.3


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(Path(popen.__file__).parent / "assets" / "popen-tiny")


def language_model(tokenizer, seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def trl_trainer(tokenizer, folder, loss_type, label_smoothing=0.0):
    settings = DPOConfig(
        output_dir=str(folder), beta=BETA, loss_type=[loss_type], label_smoothing=label_smoothing, use_cpu=True,
        bf16=False, gradient_checkpointing=False, report_to=[], per_device_train_batch_size=3,
    )  # fmt: skip
    return DPOTrainer(
        model=language_model(tokenizer, 0), ref_model=language_model(tokenizer, 1), args=settings,
        train_dataset=datasets.Dataset.from_dict(ROWS), processing_class=tokenizer,
    )  # fmt: skip


def our_logps(model, batch):
    """Log-probabilities of the completions, chosen rows first, with what masks them."""
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    mask = batch["completion_mask"][:, 1:].bool()
    labels = batch["input_ids"][:, 1:]
    return token_logps(logits[:, :-1], labels, mask), per_token_logps(logits[:, :-1], labels), mask


LOSSES = {
    "sigmoid": lambda h, mean_h: sigmoid_loss(h, BETA),
    "hinge": lambda h, mean_h: hinge_loss(h, BETA),
    "robust": lambda h, mean_h: robust_loss(h, BETA, 0.1),
    "ipo": lambda h, mean_h: ipo_loss(mean_h, BETA),
}


@pytest.mark.parametrize("loss_type", LOSSES)
def test_a_batch_costs_what_trl_says(tokenizer, tmp_path, loss_type):
    trainer = trl_trainer(tokenizer, tmp_path, loss_type, label_smoothing=0.1 if loss_type == "robust" else 0.0)
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, dict(batch))
    (policy, tokens, mask), (reference, ref_tokens, _) = (
        our_logps(m, batch) for m in (trainer.model, trainer.ref_model)
    )
    chosen, rejected = (policy - reference).chunk(2)
    never = torch.zeros_like(mask)
    mean = mean_weighted_token_logps(tokens, mask, never, 1.0) - mean_weighted_token_logps(
        ref_tokens, mask, never, 1.0
    )
    mean_chosen, mean_rejected = mean.chunk(2)
    ours = LOSSES[loss_type](chosen - rejected, mean_chosen - mean_rejected).mean()
    assert (chosen - rejected).abs().min() > 0.1  # policy and reference are far apart, so the loss is at work
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
