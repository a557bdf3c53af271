"""Cards say what is known and call the rest not stated; their metadata is what the Hub reads."""

import ast
import re

import pytest
from huggingface_hub import DatasetCard, ModelCard

from popen.data.safe_io import DataError, read_json, write_json
from popen.hub.cards import CardFacts, card, check_card
from popen.hub.folder import recognise
from tests.hub.conftest import ROOT

SUMMARY = ROOT / "docs" / "results" / "popen_tiny_base.json"


def snippet(text):
    """The Python of a card."""
    return re.search(r"```python\n(.*?)\n```", text, re.DOTALL)[1]


def test_a_model_card_has_what_was_said(model_folder, tmp_path):
    (tmp_path / "sft.yaml").write_text("seed: 0\nnote: '```'\n")
    facts = CardFacts.read(
        config=tmp_path / "sft.yaml", summary=SUMMARY, base_model="org/base", data="org/scenes",
        command="accelerate launch recipes/sft.py", licence="apache-2.0",
    )  # fmt: skip
    text = card("org/tiny", recognise(model_folder), facts)
    data = ModelCard(text).data
    assert (data.base_model, data.datasets, data.license) == ("org/base", ["org/scenes"], "apache-2.0")
    assert data.library_name == "popen" and data.pipeline_tag == "image-text-to-text"
    assert "accelerate launch recipes/sft.py" in text
    assert "````yaml\nseed: 0\nnote: '```'\n````" in text, "a fence that its text cannot close"
    assert "96 × 96 pixels" in text
    for heading in ("Use", "Training", "Scores", "Limits", "Bias", "Licence"):
        assert f"\n## {heading}\n" in text
    ast.parse(snippet(text))


def test_its_model_index_holds_the_summary(model_folder):
    text = card("org/tiny", recognise(model_folder), CardFacts.read(summary=SUMMARY))
    said, numbers = ModelCard(text).data.eval_results, read_json(SUMMARY)["arms"]["single"]
    assert {result.metric_type: result.metric_value for result in said} == {
        name: round(numbers[name], 4) for name in ("ciou", "giou", "no_target_acc", "chair_i", "exact")
    }
    assert {(r.task_type, r.dataset_name, r.dataset_split) for r in said} == {("image-segmentation", "scenes", "dev")}
    cells = "0.777 [0.765, 0.789] | 0.841 [0.834, 0.848] | 0.911 | 0.003 [0.002, 0.004] | 0.851 | 5981"
    assert f"| single, free answers | {cells} |" in text


def test_a_number_nobody_has_is_left_out(model_folder):
    arms = {"single": {"ciou": 0.5, "no_target_acc": None, "n": 3}}
    text = card("org/tiny", recognise(model_folder), CardFacts(summary={"arms": arms}))
    assert [r.metric_type for r in ModelCard(text).data.eval_results] == ["ciou"]
    assert "| single, free answers | 0.500 | – | – | – | – | 3 |" in text


def test_a_benchmarks_numbers_are_those_of_each_protocol(model_folder, tmp_path):
    """What `eval.reasonseg` and its like write; every number of theirs, those with names of ours under these."""
    numbers = {"n": 3, "ciou": 0.5, "ciou_95": [0.4, 0.6], "giou_strict": 0.25, "by_kind": {}}
    results = [{"arm": "single", "protocol": protocol} | numbers for protocol in ("free", "forced")]
    summary = {"benchmark": "reasonseg", "data": "runs/reasonseg", "split": "val", "results": results}
    write_json(tmp_path / "summary.json", summary)
    text = card("org/tiny", recognise(model_folder), CardFacts.read(summary=tmp_path / "summary.json"))
    found = {(r.metric_type, r.metric_name, r.metric_value) for r in ModelCard(text).data.eval_results}
    assert found == {
        (key, f"{name} (single, {protocol} answers)", value)
        for protocol in ("free", "forced")
        for key, name, value in (("ciou", "cIoU", 0.5), ("giou_strict", "giou_strict", 0.25))
    }
    assert "`eval.reasonseg` on `reasonseg`, split `val`" in text
    assert "| single, forced answers | 0.500 [0.400, 0.600] | 0.250 | 3 |" in text


def test_what_nobody_said(model_folder):
    text = card("org/tiny", recognise(model_folder), CardFacts())
    data = ModelCard(text).data
    assert data.license is None and data.base_model is None and data.eval_results is None
    for words in ("Base model: not stated", "Data: not stated", "Not measured by its author", "ask before you use it"):
        assert words in text


def test_a_folder_of_this_machine_is_not_named(model_folder, tmp_path, monkeypatch):
    """`runs/base` reads like a Hub id; where it is a folder here it is none, and only its last name is told."""
    (tmp_path / "runs" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    facts = CardFacts(base_model="runs/base", data=str(tmp_path / "runs"))
    text = card("org/tiny", recognise(model_folder), facts)
    assert ModelCard(text).data.base_model is None and ModelCard(text).data.datasets is None
    assert "Base model: `base`. Data: `runs`." in text and str(tmp_path) not in text


def test_an_adapter_names_its_base(tmp_path):
    write_json(tmp_path / "adapter_config.json", {"base_model_name_or_path": "org/base"})
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    text = card("org/lora", recognise(tmp_path), CardFacts())
    assert ModelCard(text).data.base_model == "org/base" and ModelCard(text).data.library_name == "peft"
    assert 'load_adapter("org/lora")' in snippet(text)


def test_remote_code_needs_no_popen(model_folder):
    code = snippet(card("org/tiny", recognise(model_folder), CardFacts(), remote_code=True))
    assert code.count("trust_remote_code=True") == 2 and "popen" not in code


def test_a_preference_set(mined_folder):
    text = card("org/pairs", recognise(mined_folder), CardFacts(licence="cc-by-4.0", base_model="org/tiny"))
    data, report = DatasetCard(text).data, read_json(mined_folder / "mining.json")
    assert data.license == "cc-by-4.0" and "dpo" in data.tags and data.size_categories == "n<1K"
    infos = {info["config_name"]: info for info in data.to_dict()["dataset_info"]}
    assert infos["text"]["splits"][0]["num_examples"] == report["text"]["kept"]
    assert {feature["name"] for feature in infos["seg"]["features"]} == {"id", "row", "targets"}
    assert report["model"] in text and report["data"] in text and "temperature: 2.0" in text
    assert f"| text | {report['text']['kept']} | {report['text']['seen']} |" in text
    assert "| `chosen_changed` | `list of bool` |" in text and "api.openai.com" not in text


def test_a_data_set(data_folder, samples):
    text = card("org/scenes", recognise(data_folder), CardFacts(data="drawn scenes"))
    questions = [question for s in samples[:2] for question in s.questions]
    assert f"| train | 2 | {len(questions)} | {sum(len(q.masks) for q in questions)} |" in text
    assert "Source: drawn scenes." in text and "| `objects` | `list of string` |" in text
    splits = DatasetCard(text).data.to_dict()["dataset_info"]["splits"]
    assert {split["name"]: split["num_examples"] for split in splits} == {"train": 2, "dev": 1}
    ast.parse(snippet(text))


@pytest.mark.parametrize("licence", ["Apache 2.0", "", "MIT\nevil: true"])
def test_a_licence_is_an_identifier(licence):
    with pytest.raises(DataError, match=r"give an identifier of the Hub's list"):
        CardFacts(licence=licence)


@pytest.mark.parametrize(
    "summary", [{}, [], {"arms": 3}, {"arms": {"single": 0.5}}, {"results": [3]}, {"results": []}]
)
def test_another_summary(summary, tmp_path):
    write_json(tmp_path / "summary.json", summary)
    with pytest.raises(DataError, match=r"give a summary.json of eval.segmentation"):
        CardFacts.read(summary=tmp_path / "summary.json")


def test_a_configuration_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"sft.yaml: cannot be read .*; give the YAML of the recipe"):
        CardFacts.read(config=tmp_path / "sft.yaml")


@pytest.mark.parametrize(
    "text",
    ["---\na: [\n---\n", "---\n- a\n---\n", "---\nmodel-index:\n- name: x\n---\n"],
    ids=["not YAML", "a list", "a model-index without results"],
)
def test_metadata_that_cannot_be_used(text):
    with pytest.raises(DataError, match=r"README.md: its metadata cannot be used .*correct what stands between"):
        check_card(text, "README.md")


def test_a_card_without_metadata_is_a_card():
    check_card("# A model\n", "README.md")
