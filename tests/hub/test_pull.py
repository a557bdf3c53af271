"""What was pushed comes back the same; what is changed, foreign or pickled is refused in one line."""

import io
import json

import datasets
import peft
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from popen.data.safe_io import DataError, read_json, write_json
from popen.data.schema import load_split
from popen.hub.cards import CardFacts
from popen.hub.pull import load_adapter, load_preferences, load_rows
from popen.hub.push import push
from popen.lvlm import PopenConfig, PopenForReasoningSegmentation, PopenProcessor
from popen.lvlm.loading import load_model

# ---- models


def same_weights(model, other):
    state = other.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_model(hub, shipped, model_folder):
    push(model_folder, "org/tiny")
    model, processor = load_model("org/tiny")
    assert same_weights(model, shipped[0]) and processor.seg_token_ids == shipped[1].seg_token_ids


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageTextToText], ids=lambda auto: auto.__name__)
def test_auto_classes_from_a_folder(model_folder, shipped, auto):
    assert type(AutoConfig.from_pretrained(model_folder)) is PopenConfig
    model = auto.from_pretrained(model_folder)
    assert type(model) is PopenForReasoningSegmentation and same_weights(model, shipped[0])


def test_the_auto_processor_of_a_folder(model_folder, shipped, tmp_path):
    processor = AutoProcessor.from_pretrained(model_folder)
    assert type(processor) is PopenProcessor and processor.prefix_ids == shipped[1].prefix_ids
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again.backbone) is type(processor.backbone) and again.seg_token_ids == processor.seg_token_ids


def test_a_folder_from_before_backbones_were_named(copy, model_folder):
    folder = copy(model_folder)
    for file, key in (("popen_processor.json", "backbone"), ("processor_config.json", "processor_class")):
        settings = read_json(folder / file)
        settings[key] = "LlavaProcessor"
        write_json(folder / file, {k: v for k, v in settings.items() if k != "backbone"})
    assert type(load_model(folder)[1].backbone).__name__ == "LlavaProcessor"


@pytest.mark.parametrize("name", ["NoSuchProcessor", "PopenProcessor", "pipeline"])
def test_a_backbone_that_is_no_processor_of_transformers(copy, model_folder, name):
    folder = copy(model_folder)
    settings = read_json(folder / "popen_processor.json")
    write_json(folder / "popen_processor.json", settings | {"backbone": name})
    with pytest.raises(DataError, match=rf"transformers has no processor '{name}'; update it, or correct 'backbone'"):
        PopenProcessor.from_pretrained(folder)


def test_a_revision(hub, copy, model_folder):
    """The branch has another threshold and another length of the processor."""
    folder = copy(model_folder)
    for file, change in (("config.json", {"mask_threshold": 0.5}), ("popen_processor.json", {"max_length": 99})):
        write_json(folder / file, read_json(folder / file) | change)
    push(folder, "org/tiny", revision="v2")
    model, processor = load_model("org/tiny", revision="v2")
    assert model.config.mask_threshold == 0.5 and processor.max_length == 99


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_on_the_hub_are_not_fetched(hub, model_folder, weights):
    config = (model_folder / "config.json").read_bytes()
    hub.add("model", "org/old", {"config.json": config, weights: b"\x80\x04."})
    with pytest.raises(DataError, match=r"org/old: no \.safetensors weights there, and pickled ones .* never read"):
        load_model("org/old")
    assert not [path for _, path in hub.log if path.endswith(weights)]


def test_another_architecture_on_the_hub(hub):
    files = {"config.json": b'{"model_type": "llava"}', "model.safetensors": b"weights"}
    hub.add("model", "org/llava", files)
    with pytest.raises(DataError, match=r"org/llava: a checkpoint of architecture 'llava', not a popen model"):
        load_model("org/llava")
    assert not [path for _, path in hub.log if path.endswith(".safetensors")]


def test_a_repository_that_is_not_there(hub):
    with pytest.raises(DataError, match=r"org/nowhere: no such folder, nor a model on the Hub within reach"):
        load_model("org/nowhere")


# ---- adapters


@pytest.fixture(scope="module")
def adapted(model_folder, tmp_path_factory):
    """A LoRA adapter of popen-tiny that changes its answers, in a folder, and the model it was saved from."""
    model, _ = load_model(model_folder)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(model, config).eval()
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    return folder, model


def test_an_adapter(hub, adapted, model_folder, shipped, samples):
    folder, model = adapted
    push(model_folder, "org/tiny")
    settings = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", settings | {"base_model_name_or_path": "org/tiny"})
    push(folder, "org/lora")
    pulled, processor = load_adapter("org/lora")
    asked = [samples[0].image], [samples[0].questions[0].question]
    own, found = (m.segment(*asked, processor, max_new_tokens=24)[0] for m in (model, pulled))
    assert same_weights(pulled, model) and found.text == own.text
    assert found.text != shipped[0].segment(*asked, processor, max_new_tokens=24)[0].text, "it is at work"


def test_an_adapter_of_a_folder_goes_by_the_name_its_base_was_pushed_as(hub, adapted, copy, model_folder):
    """Tuned from runs/llava/init, say: elsewhere there is no such folder."""
    folder = copy(adapted[0])
    settings = read_json(folder / "adapter_config.json") | {"base_model_name_or_path": str(model_folder)}
    write_json(folder / "adapter_config.json", settings)
    with pytest.raises(
        DataError, match=r"lora: its base model is /.*, which is not on the Hub .*--base-model ORG/NAME"
    ):
        push(folder, "org/lora")
    assert not hub.log, "nothing was asked of the Hub"
    push(model_folder, "org/tiny")
    push(folder, "org/lora", facts=CardFacts(base_model="org/tiny"))
    assert read_json(folder / "adapter_config.json") == settings, "the folder itself is only read"
    sent = json.loads(hub.files("model", "org/lora")["adapter_config.json"])
    assert sent == settings | {"base_model_name_or_path": "org/tiny"}
    pulled, _ = load_adapter("org/lora")
    assert same_weights(pulled, adapted[1])


def test_a_base_model_in_words_is_no_name(hub, adapted):
    with pytest.raises(DataError, match=r"its base model is LLaVA of last week, which is not on the Hub"):
        push(adapted[0], "org/lora", facts=CardFacts(base_model="LLaVA of last week"))


def test_an_adapter_of_another_model(adapted, tiny, tmp_path):
    for part in tiny:
        part.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"does not fit .*; give the base model it was made for"):
        load_adapter(adapted[0], base=tmp_path)


def test_an_adapter_with_half_of_its_weights(adapted, copy, model_folder):
    from safetensors.torch import load_file, save_file

    folder = copy(adapted[0])
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(dict(list(weights.items())[1:]), folder / "adapter_model.safetensors")
    with (
        pytest.warns(UserWarning, match=r"missing"),
        pytest.raises(DataError, match=r"1 weights do not fit .*, first"),
    ):
        load_adapter(folder, base=model_folder)


def test_a_pickled_adapter(hub):
    hub.add("model", "org/lora", {"adapter_config.json": b"{}", "adapter_model.bin": b"\x80\x04."})
    with pytest.raises(DataError, match=r"org/lora: no adapter_config.json with adapter_model.safetensors; pickled"):
        load_adapter("org/lora")
    assert not [path for _, path in hub.log if path.endswith(".bin")]


def test_an_adapter_without_a_base(adapted, copy):
    folder = copy(adapted[0])
    settings = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", settings | {"base_model_name_or_path": None})
    with pytest.raises(DataError, match=r"it does not name its base model; give base="):
        load_adapter(folder)


# ---- preference sets


def test_a_preference_set(hub, mined_folder, model_folder, data_folder):
    push(mined_folder, "org/pairs")
    text, seg, report = load_preferences("org/pairs", model=model_folder, rows=load_split(data_folder, "train"))
    for stream, name in ((text, "text"), (seg, "seg")):
        assert stream.to_list() == datasets.load_from_disk(str(mined_folder / name)).to_list() and len(stream)
    assert report == read_json(mined_folder / "mining.json")


def test_preferences_of_another_model(mined_folder, tiny, tmp_path):
    tiny[0].save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"mined from model .*; give the model that was mined, or mine again"):
        load_preferences(mined_folder, model=tmp_path)


def test_preferences_of_another_data_set(mined_folder, data_folder):
    with pytest.raises(DataError, match=r"mined from data set .*; give the data set that was mined"):
        load_preferences(mined_folder, rows=load_split(data_folder, "dev"))


def rewritten(folder, stream, change, kept=None):
    """The stream with its rows changed, saved under the fingerprint of the old ones."""
    rows = datasets.load_from_disk(str(folder / stream))
    written = read_json(folder / stream / "state.json")["_fingerprint"]
    changed = datasets.Dataset.from_list(change(rows.to_list()), features=rows.features)
    datasets.Dataset(changed.data, info=changed.info, fingerprint=written).save_to_disk(folder / "new")
    for file in (folder / stream).iterdir():
        file.unlink()
    for file in (folder / "new").iterdir():
        file.rename(folder / stream / file.name)
    if kept is not None:
        report = read_json(folder / "mining.json")
        report[stream]["kept"] += kept
        write_json(folder / "mining.json", report)


def test_preferences_that_lost_a_row(copy, mined_folder):
    folder = copy(mined_folder)
    rewritten(folder, "text", lambda rows: rows[1:], kept=-1)
    with pytest.raises(DataError, match=r"text: fingerprint \w+, written was \w+: the rows were changed; fetch"):
        load_preferences(folder)


def test_preferences_that_the_report_does_not_count(copy, mined_folder):
    folder = copy(mined_folder)
    report = read_json(folder / "mining.json")
    report["seg"]["kept"] += 1
    write_json(folder / "mining.json", report)
    with pytest.raises(DataError, match=r"seg: \d+ preferences, mining.json says \d+; fetch the set again"):
        load_preferences(folder)


def test_preferences_of_another_schema(copy, mined_folder):
    folder = copy(mined_folder)
    rows = datasets.load_from_disk(str(folder / "text")).remove_columns("chosen_changed")
    rows.save_to_disk(folder / "new")
    (folder / "text").rename(folder / "old")
    (folder / "new").rename(folder / "text")
    with pytest.raises(DataError, match=r"text: column 'chosen_changed' is not as in popen.data.preference_schema"):
        load_preferences(folder)


def test_preferences_that_are_cut_off(copy, mined_folder):
    folder = copy(mined_folder)
    file = next((folder / "seg").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"seg: cannot be loaded .*; fetch the set again"):
        load_preferences(folder)


def test_no_preferences(data_folder):
    with pytest.raises(DataError, match=r"no mining.json in it, so no preference set that mining finished"):
        load_preferences(data_folder)


# ---- data sets


def test_a_data_set(hub, data_folder):
    push(data_folder, "org/scenes")
    hub.log.clear()
    rows = load_rows("org/scenes", "train")
    assert rows.to_list() == load_split(data_folder, "train").to_list()
    fetched = {path.rpartition("/resolve/")[2].partition("/")[2] for _, path in hub.log if path.endswith(".arrow")}
    assert fetched == {"train/data-00000-of-00001.arrow"}, "of another split only its description comes"


def test_a_data_set_that_was_changed(copy, data_folder):
    folder = copy(data_folder)

    def another_answer(rows):
        rows[0]["questions"][0]["question"] += " Please."
        return rows

    rewritten(folder, "train", another_answer)
    with pytest.raises(DataError, match=r"split 'train' has fingerprint \w+, written was \w+: the rows were changed"):
        load_rows(folder, "train")


def test_another_split(hub, data_folder):
    push(data_folder, "org/scenes")
    with pytest.raises(DataError, match=r"no split 'test'; there: dev, train"):
        load_rows("org/scenes", "test")


def test_a_data_set_of_another_schema(hub):
    table = datasets.Dataset.from_dict({"image": [1]})
    buffer = io.BytesIO()
    import pyarrow as pa

    with pa.ipc.new_stream(buffer, table.data.table.schema) as stream:
        stream.write_table(table.data.table)
    state = {
        "_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "0" * 16, "_format_columns": None,
        "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None,
    }  # fmt: skip
    files = {"state.json": json.dumps(state).encode(), "dataset_info.json": b"{}"}
    files["data-00000-of-00001.arrow"] = buffer.getvalue()
    hub.add("dataset", "org/other", {f"train/{name}": data for name, data in files.items()})
    with pytest.raises(DataError, match=r"column 'image' differs from the schema; convert the data again"):
        load_rows("org/other", "train")


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_name_that_is_neither_here_nor_of_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no such folder, and it does not look like a Hub id"):
        load_rows(name, "train")


def test_a_data_set_that_is_not_there(hub):
    with pytest.raises(DataError, match=r"org/nowhere: no such folder, nor a dataset on the Hub within reach"):
        load_rows("org/nowhere", "train")
