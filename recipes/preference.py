"""POPEN: tunes a model on mined text and segmentation preferences.

    accelerate launch --config_file accelerate_config.yaml recipes/preference.py --config recipes/preference_tiny.yaml

With `text_weight: 0` and `seg_weight: 0` the same steps on the same data are plain continued SFT: the control.
"""

from dataclasses import dataclass, field
from typing import Literal

from transformers import set_seed

from popen.data.schema import load_split
from popen.lvlm.loading import load_model
from popen.lvlm.mining import load_mined
from popen.preference.correcting import PHRASES
from popen.preference.reference import check_fingerprint, model_fingerprint
from popen.recipe import run
from popen.training.callbacks import finish, resume_path, use_all_cores
from popen.training.preference import PreferenceArguments, PreferenceStreams, PreferenceTrainer


@dataclass
class ScriptArguments:
    """The model that was mined, what was mined, and from which data."""

    model_name_or_path: str = field(metadata={"help": "The model folder that the preferences were mined from."})
    preferences: str = field(metadata={"help": "Folder that recipes/mine.py wrote."})
    dataset: str = field(metadata={"help": "Folder of the data set that was mined."})
    split: str = field(default="train", metadata={"help": "Split that was mined."})
    text_pairs: Literal["all", "hallucinated", "hallucinated_phrases"] = field(
        default="all",
        metadata={
            "help": "All corrected answers; those that name a thing that is not in the picture; or of these only "
            "those where a phrase was replaced, so that no pair teaches to deny or to name fewer things."
        },
    )


def main(script: ScriptArguments, training: PreferenceArguments) -> None:
    set_seed(training.seed)
    use_all_cores()
    text, seg, report = load_mined(script.preferences)
    check_fingerprint(report["model"], model_fingerprint(script.model_name_or_path), "model", script.preferences)
    source = load_split(script.dataset, script.split)
    check_fingerprint(report["data"], source._fingerprint, "data set", script.preferences)
    model, processor = load_model(script.model_name_or_path)
    if script.text_pairs != "all":
        text = text.select([i for i, wrong in enumerate(text["hallucinated"][:]) if wrong])
    if script.text_pairs == "hallucinated_phrases":
        text = text.select([i for i, kind in enumerate(text["kind"][:]) if kind == PHRASES])
    streams = PreferenceStreams(text, seg, source)
    trainer = PreferenceTrainer(model, training, train_dataset=streams, processor=processor)
    trainer.train(resume_from_checkpoint=resume_path(training))
    finish(trainer)


if __name__ == "__main__":
    run(main, ScriptArguments, PreferenceArguments)
