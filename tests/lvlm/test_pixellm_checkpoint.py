"""Converting a released PixelLM: every weight finds its place, and what does not fit is named in one line."""

import copy
import itertools
import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlamaTokenizer

from popen.cli import main
from popen.lvlm import pixellm_checkpoint
from popen.lvlm.loading import load_model
from popen.lvlm.pixellm_checkpoint import convert
from popen.lvlm.pixellm_keys import popen_name
from popen.lvlm.pixellm_release import open_release, stripping
from tests.lvlm import pixellm_reference as reference

CORPUS = ["Where is the tall cone?", "It is <seg>."]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The released folder and its tower; copy the folder before changing it."""
    root = tmp_path_factory.mktemp("made")
    words = reference.words(CORPUS)
    reference.write(root / "released", words, chained_state(words))
    reference.tower().save_pretrained(root / "clip")
    return root


@pytest.fixture
def released(made, tmp_path):
    return shutil.copytree(made / "released", tmp_path / "released")


@pytest.fixture(scope="module")
def converted(made):
    convert(made / "released", made / "popen", str(made / "clip"))
    return load_model(made / "popen")


def chained_state(words):
    """A checkpoint that answers every question with one target: `:` calls for [SEG0], [SEG0] for [SEG1], … and EOS.

    Its layers add nothing to an embedding, so that the state after a token is that token's direction.
    """
    state = reference.released_state(len(words))
    for layer in range(2):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            state[f"model.layers.{layer}.{name}.weight"].zero_()
    chain = [words(":", add_special_tokens=False)["input_ids"][-1], *words.convert_tokens_to_ids(reference.SEG), 2]
    for axis, (token, following) in enumerate(itertools.pairwise(chain)):
        state["model.embed_tokens.weight"][token] = torch.eye(reference.HIDDEN)[axis]
        state["lm_head.weight"][following] = 10 * torch.eye(reference.HIDDEN)[axis]
    return state


def test_segment(converted):
    """Greedy words, one complete group, a mask at the picture's own size."""
    model, processor = converted
    picture = Image.effect_mandelbrot((90, 51), (-2, -1, 1, 1), 40).convert("RGB")
    answers = model.segment([picture, picture.rotate(90, expand=True)], ["Where is it?", "And?"], processor)
    for answer, shape in zip(answers, [(51, 90), (90, 51)], strict=True):
        assert answer.text == "<seg>" and answer.incomplete == 0
        (target,) = answer.targets
        assert target.mask.shape == shape and 0 < target.mask.mean() < 1 and 0.5 < target.confidence < 1


def test_every_weight_arrives(made, converted):
    """Each weight of both shards stands, unchanged, under popen's name, and nothing of the model is left over."""
    release, state = open_release(made / "released"), converted[0].state_dict()
    read = {name: popen_name(name) for name in release.files if popen_name(name) is not None}
    for name, own in read.items():
        rows = len(release.tensor(name))
        assert torch.equal(state[own][:rows], release.tensor(name)), name
    left = {name.split(".")[0] for name in state.keys() - set(read.values()) if "vision_tower" not in name}
    assert left == {"codebook", "mask_decoder", "preference_head"}
    assert state["codebook.fusion"].tolist() == [[pytest.approx(1 / 6)] * 3] * 2
    assert state["mask_decoder.scale_weights"].tolist() == [0.5, 0.5]


def test_unread_weights_are_known(made):
    unread = {name for name in open_release(made / "released").files if popen_name(name) is None}
    kinds = {name.split(".")[3] if "layers" in name.split(".")[1] else name.split(".")[2] for name in unread}
    assert kinds == {
        "self_attn", "point_embeddings", "not_a_point_embed", "mask_downscaling", "output_hypernetworks_mlps",
        "iou_prediction_head",
    }  # fmt: skip
    assert popen_name("model.mask_decoder.output_hypernetworks_mlps.0.layers.1.bias") is not None
    with pytest.raises(KeyError):
        popen_name("model.visual_model.image_encoder.pos_embed")


def test_the_picture_token_is_never_preferred(converted):
    """Its logit is the unknown token's, which comes first."""
    head = converted[0].get_output_embeddings().weight
    assert head.shape[0] == len(converted[1].tokenizer) and torch.equal(head[-1], head[0])


def test_words_as_released(converted):
    """Chunks around added tokens lose their blanks, BOS comes first, the question follows <im_end> at once."""
    _, processor = converted
    words = processor.tokenizer
    prompt = words.decode(processor.prefix_ids)
    assert prompt.startswith("<s>A chat between a curious human and") and processor.picture_tokens == 16
    assert "human's questions. USER:<im_start><image>" in prompt
    assert words.decode(processor.question_ids("Where is it?")) == "<im_end>Where is it? ASSISTANT:"
    ids = words.convert_tokens_to_ids(reference.SEG)
    spaced = words(" ".join(reference.SEG), add_special_tokens=False)["input_ids"]
    assert spaced == ids == list(processor.answer_ids(" <seg>"))[:-1]


def test_hf_model_inside_a_repository(made, tmp_path):
    shutil.copytree(made / "released", tmp_path / "repository" / "hf_model")
    assert open_release(tmp_path / "repository").folder.name == "hf_model"


def test_half_precision_stays(made, released, tmp_path):
    for file in released.glob("*.safetensors"):
        save_file({n: t.bfloat16() for n, t in load_file(file).items()}, file, metadata={"format": "pt"})
    convert(released, tmp_path / "popen", str(made / "clip"))
    tensors = load_file(tmp_path / "popen" / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "popen" / "config.json").read_text())["dtype"] == "bfloat16"


def test_bin_files_are_read_without_unpickling(made, released, converted, tmp_path):
    """The published layout, `.bin` for the checkpoint and for CLIP, gives the same model."""
    for number, file in enumerate(sorted(released.glob("*.safetensors")), 1):
        torch.save(load_file(file), released / f"pytorch_model-0000{number}-of-00002.bin")
        file.unlink()
    tower = shutil.copytree(made / "clip", tmp_path / "clip")
    weights = {f"vision_model.{name}": tensor for name, tensor in reference.tower().state_dict().items()}
    (tower / "model.safetensors").unlink()
    torch.save(weights | {"text_model.final_layer_norm.bias": torch.zeros(3)}, tower / "pytorch_model.bin")
    convert(released, tmp_path / "popen", str(tower))
    state = converted[0].state_dict()
    for name, tensor in load_file(tmp_path / "popen" / "model.safetensors").items():
        assert torch.equal(tensor, state[name]), name


def test_shards(made, converted, tmp_path, monkeypatch):
    monkeypatch.setattr(pixellm_checkpoint, "SHARD", "500KB")
    convert(made / "released", tmp_path / "popen", str(made / "clip"))
    assert len(list((tmp_path / "popen").glob("model-*.safetensors"))) > 3
    state = converted[0].state_dict()
    again, _ = load_model(tmp_path / "popen")
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


def test_blanks_around_added_tokens():
    """LLaMA's own kind of tokenizer: each chunk between added tokens begins with ▁ and has no blanks at its ends."""
    letters = {c: i for i, c in enumerate(["<unk>", "<s>", "</s>", "▁", *"abc:."])}
    words = LlamaTokenizer(vocab=letters, merges=[], legacy=True)
    words.add_tokens(["[SEG0]", "[SEG1]", "<im_end>"])
    ids = stripping(words)("a <im_end>\nb c: [SEG0] [SEG1] .", add_special_tokens=False)["input_ids"]
    pieces = stripping(words).convert_ids_to_tokens(ids)
    assert pieces == ["▁", "a", "<im_end>", "▁", "b", "▁", "c", ":", "[SEG0]", "[SEG1]", "▁", "."]


# ---- what does not fit


def drop(tensors):
    del tensors["lm_head.weight"], tensors["model.mask_decoder.level_embed.weight"]


def add(tensors):
    tensors["model.visual_model.neck.weight"] = torch.zeros(1)
    tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(1)


def reshape(tensors):
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
    tensors["model.mask_decoder.level_embed.weight"] = torch.zeros(3, 32)


@pytest.mark.parametrize(
    "change, named",
    [(drop, ["missing what becomes backbone.lm_head.weight", "missing what becomes mask_decoder.level_embed.weight"]),
     (add, ["unexpected model.visual_model.neck.weight", "unexpected model.layers.7.mlp.up_proj.weight"]),
     (reshape, ["lm_head.weight is (286, 16), not (287, 16)", "level_embed.weight is (3, 32), not (2, 32)"])],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_weights_that_do_not_fit_are_all_named(made, released, tmp_path, capsys, change, named):
    everything = {}
    for file in released.glob("*.safetensors"):
        everything |= load_file(file)
        file.unlink()
    change(everything)
    save_file(everything, released / "model.safetensors", metadata={"format": "pt"})
    err = one_line(capsys, released, tmp_path / "popen", "--vision-tower", made / "clip")
    assert all(name in err for name in named), err
    assert not (tmp_path / "popen").exists()


def one_line(capsys, *argv):
    capsys.readouterr()
    code = main(["convert-pixellm", *map(str, argv)])
    out, err = capsys.readouterr()
    assert (code, out) == (1, "") and len(err.splitlines()) == 1 and err.startswith("popen: "), err
    return err


def other_architecture(folder):
    edit(folder, architectures=["LlavaLlamaForCausalLM"])


def one_scale(folder):
    edit(folder, image_feature_scale_num=1)


def no_size(folder):
    edit(folder, resize_vision_tower_size=None, out_dim=None)


def no_weights(folder):
    for file in folder.glob("*.safetensors"):
        file.unlink()


def training_state(folder):
    no_weights(folder)
    torch.save({"lm_head.weight": torch.zeros(2), "step": 3}, folder / "pytorch_model.bin")


def broken(folder):
    file = folder / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def twice(folder):
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-copy.safetensors")


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def plain_tokenizer(folder):
    text = (folder / "tokenizer.json").read_text().replace("[SEG5]", "[FIVE]")
    (folder / "tokenizer.json").write_text(text)


def nowhere(folder):
    shutil.rmtree(folder)


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "spoil, named",
    [
        (other_architecture, "['LlavaLlamaForCausalLM'], not PixelLMForCausalLM; give a released PixelLM"),
        (one_scale, "image_feature_scale_num is 1; every released PixelLM has 2"),
        (no_size, "config.json: no resize_vision_tower_size in it"),
        (no_weights, "neither .safetensors nor pytorch_model*.bin in it; fetch the weights too"),
        (training_state, "pytorch_model.bin: 'step' is no tensor; give a checkpoint of weights alone"),
        (broken, "model-00001-of-00002.safetensors: cannot be read"),
        (twice, "is also in model-00001-of-00002.safetensors; keep one set of files"),
        (no_tokenizer, "its tokenizer cannot be read"),
        (plain_tokenizer, "the tokenizer has 5 [SEG…] tokens"),
        (nowhere, "config.json: no such file"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_checkpoint_that_cannot_be_used(made, released, tmp_path, capsys, spoil, named):
    spoil(released)
    err = one_line(capsys, released, tmp_path / "popen", "--vision-tower", made / "clip")
    assert named in err and str(released) in err
    assert not (tmp_path / "popen").exists()


def test_another_tower(made, tmp_path, capsys):
    """A wider CLIP, and none at all."""
    tower = json.loads((made / "clip" / "config.json").read_text())
    wide = type(reference.tower())(type(reference.tower().config).from_dict(tower | {"hidden_size": 16}))
    wide.save_pretrained(tmp_path / "wide")
    err = one_line(capsys, made / "released", tmp_path / "popen", "--vision-tower", tmp_path / "wide")
    assert "--vision-tower: 16 channels in patches of 14; the checkpoint was trained on a tower of 12 channels" in err
    err = one_line(capsys, made / "released", tmp_path / "popen", "--vision-tower", tmp_path / "none")
    assert f"--vision-tower {tmp_path / 'none'}: no CLIP vision tower could be loaded" in err


def test_a_destination_in_use(made, tmp_path, capsys):
    (tmp_path / "popen").mkdir()
    (tmp_path / "popen" / "note.txt").write_text("mine")
    err = one_line(capsys, made / "released", tmp_path / "popen", "--vision-tower", made / "clip")
    assert f"{tmp_path / 'popen'}: already there; give a new folder" in err


def test_the_command(made, tmp_path, capsys):
    assert (
        main(["convert-pixellm", str(made / "released"), str(tmp_path / "p"), "--vision-tower", str(made / "clip")])
        == 0
    )
    assert capsys.readouterr().out == f"wrote {tmp_path / 'p'}\n"
    first, again = (load_file(folder / "model.safetensors") for folder in (tmp_path / "p", made / "popen"))
    assert all(torch.equal(first[name], again[name]) for name in first | again)  # the same bytes each time


def test_compat_is_for_llava_alone(converted):
    with pytest.raises(ValueError, match="pixellm_compat: PixelLM is LLaVA and reads its tower's maps"):
        config = copy.deepcopy(converted[0].config)
        config.pixel_config = config.backbone_config.vision_config
        type(config)(**{k: getattr(config, k) for k in ("backbone_config", "pixel_config", "pixellm_compat")})
