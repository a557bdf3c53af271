"""Aligns the picture tokens of an untrained model with the words of its language model, before `recipes/sft.py`.

    accelerate launch --config_file accelerate_config.yaml recipes/align.py --config recipes/align_tiny.yaml

Only for models that learn to see from nothing, such as popen-tiny; a backbone with trained weights is aligned already.
"""

from dataclasses import dataclass, field

from transformers import set_seed

from popen.data.mixing import load_mixture
from popen.distributed.cores import use_all_cores
from popen.lvlm.loading import load_model
from popen.recipe import run
from popen.training import AlignmentTrainer, SFTArguments
from popen.training.callbacks import finish, resume_path
from popen.training.optimizer_states import check_optimizer


@dataclass
class ScriptArguments:
    """What to align and on what."""

    model_name_or_path: str = field(metadata={"help": "A popen model folder or Hub id."})
    dataset: str | list[str] = field(
        metadata={"help": "Folder of a data set in popen's schema, or several, of which every row is seen once."}
    )
    split: str = field(default="train", metadata={"help": "Split to train on."})
    freeze_pixels: bool = field(
        default=False, metadata={"help": "Leave a trained pixel encoder beside the vision tower as it is."}
    )


def main(script: ScriptArguments, training: SFTArguments) -> None:
    check_optimizer(training)
    set_seed(training.seed)
    use_all_cores()
    model, processor = load_model(script.model_name_or_path)
    if script.freeze_pixels:
        model.freeze_pixels()
    rows = load_mixture(script.dataset, script.split, seed=training.seed)
    trainer = AlignmentTrainer(model, training, train_dataset=rows, processor=processor)
    trainer.train(resume_from_checkpoint=resume_path(training))
    finish(trainer)


if __name__ == "__main__":
    run(main, ScriptArguments, SFTArguments)
