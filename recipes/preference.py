"""POPEN: tunes a model on mined text and segmentation preferences.

    accelerate launch --config_file accelerate_config.yaml recipes/preference.py --config recipes/preference_tiny.yaml

With `text_weight: 0` and `seg_weight: 0` the same steps on the same data are plain continued SFT: the control.
L_s is RN-DPO's on the masks by default; `seg_margin` and `seg_loss` take the rest of the family of recipes/medical.py:

    … --seg_margin power --seg_alpha 0.5 --seg_loss rdpo --seg_label_smoothing 0.1

`--reference live` computes the reference at every step: also for preferences that were mined from another model.
"""

from dataclasses import dataclass, field

from transformers import set_seed

from popen.data.mixing import load_mixture
from popen.distributed.cores import use_all_cores
from popen.lvlm.loading import load_model
from popen.lvlm.mining import load_mined
from popen.preference.pair_selection import Selection, pair_traits, select_pairs
from popen.preference.reference import check_fingerprint, check_reference
from popen.recipe import run
from popen.training.callbacks import finish, resume_path
from popen.training.lora import ALL_WEIGHTS, LoraArguments, with_lora
from popen.training.optimizer_states import check_optimizer
from popen.training.preference import PreferenceArguments, PreferenceStreams, PreferenceTrainer


@dataclass
class ScriptArguments:
    """The model that was mined, what was mined, and from which data."""

    model_name_or_path: str = field(metadata={"help": "The model folder that the preferences were mined from."})
    preferences: str = field(metadata={"help": "Folder that recipes/mine.py wrote."})
    dataset: str | list[str] = field(metadata={"help": "Folder of the data set that was mined, or several."})
    rates: list[float] | None = field(default=None, metadata={"help": "At what rates several were mined."})
    split: str = field(default="train", metadata={"help": "Split that was mined."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "As in transformers; flex_attention on CUDA skips what no answer attends to."}
    )
    text_pairs: Selection = field(
        default="all",
        metadata={
            "help": "All corrected answers; those that name a thing that is not in the picture; of these only those "
            "where a phrase was replaced; or these balanced with omissions, so that no pair teaches to say less."
        },
    )


def main(script: ScriptArguments, training: PreferenceArguments, lora: LoraArguments = ALL_WEIGHTS) -> None:
    check_optimizer(training)
    set_seed(training.seed)
    use_all_cores()
    text, seg, report = load_mined(script.preferences)
    if training.reference == "cached":
        check_reference(report, script.model_name_or_path, script.preferences)
    source = load_mixture(script.dataset, script.split, script.rates, report["settings"]["seed"])
    check_fingerprint(report["data"], source._fingerprint, "data set", script.preferences)
    model, processor = load_model(script.model_name_or_path)
    if script.attn_implementation is not None:
        model.set_attn_implementation(script.attn_implementation)
    if lora.use_peft:
        model = with_lora(model, lora)
    text = text.select(select_pairs(pair_traits(text), script.text_pairs, training.seed))
    streams = PreferenceStreams(text, seg, source)
    trainer = PreferenceTrainer(model, training, train_dataset=streams, processor=processor)
    trainer.train(resume_from_checkpoint=resume_path(training))
    finish(trainer)


if __name__ == "__main__":
    run(main, ScriptArguments, PreferenceArguments, LoraArguments)
