"""Supervised fine-tuning of a segmentation LVLM on words and masks.

    accelerate launch --config_file accelerate_config.yaml recipes/sft.py --config recipes/sft_tiny.yaml

Every key of the YAML can be overridden on the command line; an unknown key is an error that names it.
Several data sets are mixed at given rates, here at LISA's:

    dataset: [runs/semantic, runs/refer, runs/vqa, runs/reasonseg]
    rates: [9, 3, 3, 1]

`runs/vqa` is words alone, as data_tools/convert_llava.py writes them.

`mask_loss` names what masks learn from instead of cross-entropy and Dice, as `supervised` of recipes/medical.py does
(docs/mask_losses.md):

    … --mask_loss fuzzy --band 2

`resume_from_checkpoint: true` goes on from the newest whole checkpoint in `output_dir`.
"""

from dataclasses import dataclass, field

from transformers import set_seed

from popen.data.mixing import load_mixture
from popen.distributed.cores import use_all_cores
from popen.lvlm.loading import load_model
from popen.recipe import run
from popen.training import SegmentationSFTTrainer, SFTArguments
from popen.training.callbacks import finish, resume_path
from popen.training.lora import ALL_WEIGHTS, LoraArguments, with_lora
from popen.training.mask_loss import BCE_DICE, MaskLossArguments, mask_loss_of
from popen.training.optimizer_states import check_optimizer
from popen.training.quantisation import (
    FULL_PRECISION,
    QuantisationArguments,
    check_quantisation,
    prepared,
    quantised_loading,
)


@dataclass
class ScriptArguments:
    """What to train and on what."""

    model_name_or_path: str = field(metadata={"help": "A popen model folder or Hub id."})
    dataset: str | list[str] = field(metadata={"help": "Folder of a data set in popen's schema, or several."})
    rates: list[float] | None = field(
        default=None, metadata={"help": "How often rows of each data set are drawn; every row once by default."}
    )
    split: str = field(default="train", metadata={"help": "Split to train on."})
    freeze_pixels: bool = field(
        default=False, metadata={"help": "Leave a trained pixel encoder beside the vision tower as it is."}
    )
    freeze_vision: bool = field(
        default=False, metadata={"help": "Train the language model and the codebook only, on an aligned model."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "As in transformers; eager is the fastest for popen-tiny on a CPU, flex_attention needs CUDA."
        },
    )
    max_rows: int | None = field(default=None, metadata={"help": "Only the first rows, to try things out."})


def main(
    script: ScriptArguments,
    training: SFTArguments,
    lora: LoraArguments = ALL_WEIGHTS,
    quantisation: QuantisationArguments = FULL_PRECISION,
    masks: MaskLossArguments = BCE_DICE,
) -> None:
    check_quantisation(quantisation, lora, script.model_name_or_path)
    check_optimizer(training)
    set_seed(training.seed)
    use_all_cores()
    model, processor = load_model(script.model_name_or_path, **quantised_loading(quantisation, training))
    if script.freeze_pixels:
        model.freeze_pixels()
    if script.attn_implementation is not None:
        model.set_attn_implementation(script.attn_implementation)
    if script.freeze_vision:
        model.freeze_vision()
    if quantisation.wanted:
        model = prepared(model)
    if lora.use_peft:
        model = with_lora(model, lora)
    rows = load_mixture(script.dataset, script.split, script.rates, training.seed)
    if script.max_rows is not None:
        rows = rows.select(range(min(script.max_rows, len(rows))))
    trainer = SegmentationSFTTrainer(
        model, training, train_dataset=rows, processor=processor, mask_loss=mask_loss_of(masks)
    )
    trainer.train(resume_from_checkpoint=resume_path(training))
    finish(trainer)


if __name__ == "__main__":
    run(main, ScriptArguments, SFTArguments, LoraArguments, QuantisationArguments, MaskLossArguments)
