"""The 7 B recipes from mining to a preference step, with popen-tiny in the model's place and MUSE's rows in MUSE's."""

import importlib.util
import inspect
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import ImageFilter
from trl import TrlParser

from popen.data.muse import muse_row, read_muse
from popen.data.scene_questions import sample
from popen.data.schema import SEG, write_dataset
from popen.lvlm.mining import load_mined

ROOT = Path(__file__).parent.parent.parent
ONE_TARGET = "The target <seg> is here."
PICTURES = 6
SMALLER = ("--gradient_accumulation_steps", "1", "--bf16", "false")  # half precision is slow on CPUs without it
BLUR = ImageFilter.GaussianBlur(12)  # popen-tiny guesses at what it cannot see, and names what is not there


def run(recipe, file, *overrides):
    """The recipe with a shipped YAML, as its command line reads it."""
    spec = importlib.util.spec_from_file_location(f"recipe_7b_{recipe}", ROOT / "recipes" / f"{recipe}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.use_all_cores = lambda: None  # the other tests go on after this one
    kinds = tuple(parameter.annotation for parameter in inspect.signature(module.main).parameters.values())
    argv = ["--config", str(ROOT / "recipes" / file), *map(str, overrides)]
    module.main(*TrlParser(kinds).parse_args_and_config(argv))


def muse_rows(folder):
    """Scenes as MUSE writes pictures down, and read back."""
    records = []
    for seed in range(PICTURES):
        scene = sample(seed)
        name = f"{seed:012d}.png"
        scene.image.filter(BLUR).save(folder / "train2014" / name)
        width, height = scene.image.size
        asked = [q for q in scene.questions if q.masks][1:2]
        answers = [
            [
                {"category_name": phrase.split()[-1], "rephrased_name": phrase, "segmentation": mask}
                for phrase, mask in zip(q.phrases, q.masks, strict=True)
            ]
            for q in asked
        ]
        records.append(
            {
                "file_name": name,
                "height": height,
                "width": width,
                "ann_list": [{"category_name": thing.split()[-1]} for thing in scene.objects],
                "questions": [q.question for q in asked],
                "answers": answers,
                "text_answers": [q.answer.replace(SEG, "{seg}") for q in asked],
            }
        )
    (folder / "muse.json").write_text(json.dumps(records))
    pictures, _ = read_muse(folder / "muse.json")
    return [muse_row(picture, folder, "train", 10**6).row for picture in pictures]


def referring(seed, name, objects):
    """A scene as RefCOCO and ReasonSeg ask about it: one target, of which nothing is said."""
    scene = sample(seed)
    question = next(q for q in scene.questions if len(q.masks) == 1)
    asked = replace(question, id=f"{name}/{seed}", answer=ONE_TARGET, phrases=("target",))
    return replace(scene, image_id=f"{name}/{seed}", objects=objects(scene), questions=(asked,))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("7b")
    (folder / "train2014").mkdir()
    write_dataset(muse_rows(folder), folder / "muse", "train")
    write_dataset(
        (referring(100 + i, "refcoco", lambda scene: scene.objects) for i in range(2)), folder / "refcoco", "train"
    )
    write_dataset((referring(200 + i, "reasonseg", lambda _: ()) for i in range(1)), folder / "reasonseg", "train")
    return folder


def settings(file):
    return {
        key: value for key, value in yaml.safe_load((ROOT / "recipes" / file).read_text()).items()
        if key not in ("model_name_or_path", "output_dir", "preferences")
    }  # fmt: skip


def test_both_backbones_are_mined_and_tuned_alike():
    for step in ("mine", "preference"):
        assert settings(f"{step}_llava_7b.yaml") == settings(f"{step}_qwen_7b.yaml")


def test_from_mining_to_a_step(data, tmp_path):
    where = ["--model_name_or_path", ROOT / "popen" / "assets" / "popen-tiny", "--dataset"]
    where += [data / name for name in ("muse", "refcoco", "reasonseg")]
    run("mine", "mine_llava_7b.yaml", *where, "--output_dir", tmp_path / "mined", "--max_rows", 18)
    text, _, report = load_mined(tmp_path / "mined")
    assert report["settings"]["max_new_tokens"] == 512
    wrong = [name for name, lied in zip(text["id"][:], text["hallucinated"][:], strict=True) if lied]
    assert any(name.startswith("muse/") for name in wrong)  # what `text_pairs: hallucinated` needs
    assert not any(name.startswith("reasonseg/") for name in wrong)  # nobody listed what is in these pictures
    run(
        "preference", "preference_llava_7b.yaml", *where, "--preferences", tmp_path / "mined",
        "--output_dir", tmp_path / "popen", "--max_steps", 1, "--use_cpu", "true", "--disable_tqdm", "true",
        "--logging_steps", 1, *SMALLER,
    )  # fmt: skip
    logged = json.loads((tmp_path / "popen" / "trainer_state.json").read_text())["log_history"]
    assert logged[0]["text/loss"] == pytest.approx(math.log(2), abs=1e-3)  # −log σ(0): policy and reference are one
