"""recipes/compose.py from a backbone's folder to a popen model that sft.py trains with adapters."""

import importlib.util
from pathlib import Path

import pytest
import torch

from popen.data.safe_io import DataError
from popen.data.schema import write_dataset
from popen.lvlm.loading import load_model
from tests.lvlm.families.tiny_backbones import tiny_backbone

RECIPES = Path(__file__).parent.parent.parent / "recipes"


def recipe(name):
    spec = importlib.util.spec_from_file_location(f"recipe_compose_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(samples, tmp_path):
    """A backbone as somebody else saved it: LLaVA's own files, nothing of popen's."""
    _, backbone, processor = tiny_backbone(
        "llava", [t for s in samples for q in s.questions for t in (q.question, q.answer)]
    )
    backbone.save_pretrained(tmp_path / "backbone")
    processor.save_pretrained(tmp_path / "backbone")
    return str(tmp_path / "backbone")


def test_from_a_backbone_to_a_tuned_model(folder, samples, tmp_path):
    compose, sft = recipe("compose"), recipe("sft")
    sft.use_all_cores = lambda: None  # the other tests go on after this one
    made = tmp_path / "made"
    compose.main(
        compose.ComposeArguments(folder, image_size=32, output_dir=str(made), max_length=300, dtype="float32")
    )
    model, processor = load_model(made)
    assert model.config.backbone_config.model_type == processor.family_name == "llava"
    write_dataset(iter(samples), tmp_path / "data", "train")
    training = sft.SFTArguments(
        output_dir=str(tmp_path / "tuned"), max_steps=1, per_device_train_batch_size=2, learning_rate=1e-2,
        use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    script = sft.ScriptArguments(model_name_or_path=str(made), dataset=str(tmp_path / "data"))
    sft.main(script, training, sft.LoraArguments(use_peft=True))
    tuned, _ = load_model(tmp_path / "tuned")
    before, after = model.state_dict(), tuned.state_dict()
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("mask_decoder" in name for name in moved) and not any("vision_tower" in name for name in moved)
    assert tuned.eval().segment([samples[0].image], ["What is it?"], processor, max_new_tokens=3)[0].text is not None


def test_a_canvas_that_does_not_fit_is_refused(folder, tmp_path):
    compose = recipe("compose")
    arguments = compose.ComposeArguments(folder, image_size=48, output_dir=str(tmp_path / "made"), dtype="float32")
    with pytest.raises(DataError, match="its vision tower takes 32 pixels, not 48"):
        compose.main(arguments)
    assert not (tmp_path / "made").exists()


def test_a_backbone_with_pickled_weights_only(folder, tmp_path):
    (Path(folder) / "model.safetensors").rename(Path(folder) / "pytorch_model.bin")
    compose = recipe("compose")
    with pytest.raises(
        DataError, match=r"backbone: pytorch_model\.bin is pickled, .*convert_weights\.py --source \S+ --out"
    ):
        compose.main(compose.ComposeArguments(folder, image_size=32, output_dir=str(tmp_path / "made")))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{}", "no config.json with a model_type"),
        ('{"model_type": "bert"}', "backbone 'bert' is none that popen knows"),
        ('{"model_type": "llava", "architectures": ["PixelLMForCausalLM"]}', "popen convert-pixellm"),
    ],
)
def test_what_is_no_backbone(tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    compose = recipe("compose")
    with pytest.raises(DataError, match=message):
        compose.main(compose.ComposeArguments(str(tmp_path), image_size=32, output_dir=str(tmp_path / "made")))
