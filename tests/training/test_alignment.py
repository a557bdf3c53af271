"""The alignment stage on eight scenes: things learn their names before the language model speaks."""

import copy

import pytest
import torch
from transformers import set_seed

from popen.data.scene_questions import sample
from popen.data.schema import write_dataset
from popen.lvlm.loading import load_model
from popen.training import AlignmentTrainer, SFTArguments
from popen.training.callbacks import finish


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_dataset((sample(seed) for seed in range(8)), tmp_path_factory.mktemp("align") / "data", "train")


def align(tiny, rows, output_dir, steps):
    args = SFTArguments(
        output_dir=str(output_dir), max_steps=steps, per_device_train_batch_size=4, learning_rate=5e-3,
        logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    set_seed(args.seed)
    trainer = AlignmentTrainer(copy.deepcopy(tiny[0]).train(), args, train_dataset=rows, processor=tiny[1])
    trainer.train()
    return trainer


def test_names_are_learnt_and_the_language_model_is_left_alone(tiny, rows, tmp_path):
    trainer = align(tiny, rows, tmp_path, 24)
    losses = [entry["text/name"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 24 and losses[-1] < 0.8 * losses[0]
    before, after = tiny[0].state_dict(), trainer.model.state_dict()
    layers = [name for name in before if ".language_model.layers." in name]
    assert layers and all(torch.equal(before[name], after[name]) for name in layers)
    finish(trainer)
    load_model(tmp_path)


def test_the_same_seed_gives_the_same_weights(tiny, rows, tmp_path):
    first, second = (align(tiny, rows, tmp_path / name, 2).model.state_dict() for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)
