"""popen-smol from a small Llama and a random TinyViT: words stay, layers are cut, the chat is SmolLM2's."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

pytest.importorskip("timm", reason="timm is not installed: pip install popen-seg[clip]")

from popen.data.safe_io import DataError
from popen.data.schema import write_dataset
from popen.lvlm.loading import load_model
from popen.lvlm.packing import supervised_batch
from popen.lvlm.smol import build_smol, cut
from popen.lvlm.tiny import tiny_tokenizer
from popen.lvlm.tiny_vit import TinyVitBackbone, TinyVitConfig
from popen.training import SegmentationSFTTrainer, SFTArguments


@pytest.fixture(scope="module")
def tokenizer(samples):
    words = tiny_tokenizer([t for s in samples for q in s.questions for t in (q.question, q.answer)], 340, 0)
    return PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer, pad_token="<pad>", eos_token="<|im_end|>", bos_token="<|im_start|>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def language(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def smol(language, tokenizer):
    torch.manual_seed(1)
    encoder = TinyVitBackbone(TinyVitConfig())
    return *build_smol(language, tokenizer, encoder, image_size=64, max_length=256), encoder


def test_words_and_pixels_are_the_trained_ones(smol, language, tokenizer):
    model, _, encoder = smol
    ids = torch.tensor([tokenizer("Which cone is tall?")["input_ids"]])
    with torch.no_grad():
        expected = language(ids).logits
        found = model.eval().backbone(input_ids=ids).logits[..., : expected.shape[-1]]
    torch.testing.assert_close(found, expected)
    own = model.pixel_encoder.backbone.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in encoder.state_dict().items())


def test_pixels_are_the_same_after_loading(smol, tmp_path):
    """TinyViT's offsets of windows are in no file, and what stands in their memory may be anything."""
    model, processor, _ = smol
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)[0]
    found = dict(loaded.named_buffers())
    assert all(torch.equal(found[key], own) for key, own in model.named_buffers())


def test_words_widened_from_gguf_may_be_trained(language, tokenizer, samples, tmp_path):
    widened = copy.deepcopy(language)
    widened.config.quantization_config = {"quant_method": "gguf", "gguf_file": "words.gguf", "dequantize": False}
    encoder = TinyVitBackbone(TinyVitConfig())
    model, processor = build_smol(widened, tokenizer, encoder, image_size=64, max_length=256)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    again, processor = load_model(tmp_path / "model")
    rows = write_dataset(samples[:2], tmp_path / "data", "train")
    settings = SFTArguments(output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none")
    SegmentationSFTTrainer(again, settings, train_dataset=rows, processor=processor)  # refuses quantised models


def test_a_frozen_encoder_sees_each_picture_once_in_training(smol, samples, tmp_path):
    model, processor, _ = smol
    model = copy.deepcopy(model)
    model.freeze_pixels()
    rows = write_dataset(samples[:2], tmp_path / "data", "train")
    seen, necks = [], [p.clone() for p in model.pixel_encoder.necks.parameters()]
    model.pixel_encoder.backbone.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    settings = SFTArguments(
        output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none", max_steps=4, per_device_train_batch_size=2,
        save_strategy="no",
    )  # fmt: skip
    SegmentationSFTTrainer(model, settings, train_dataset=rows, processor=processor).train()
    assert seen == [1, 1]
    assert any(not torch.equal(a, b) for a, b in zip(necks, model.pixel_encoder.necks.parameters(), strict=True))


def test_the_chat_is_smollm2s(smol):
    _, processor, _ = smol
    before = processor.tokenizer.decode(processor.prefix_ids)
    question = processor.tokenizer.decode(processor.question_ids("What?"))
    assert before == "<|im_start|>user\n" + "<image>" * 16
    assert question == "What?<|im_end|>\n<|im_start|>assistant\n"
    assert processor.answer_ids("Yes.")[-1] == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_tinyvit_sees_pixels_between_0_and_1(smol, samples):
    """LiteMedSAM's way; the backbone's own normalisation is undone."""
    model, processor, _ = smol
    seen = []
    handle = model.pixel_encoder.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    square, _ = processor.place(samples[0].image)
    with torch.no_grad():
        model.encode_pictures(processor.pixel_values([square]))
    handle.remove()
    raw = torch.tensor(list(square.getdata())).reshape(64, 64, 3).permute(2, 0, 1) / 255
    torch.testing.assert_close(seen[0][0], raw, atol=1e-3, rtol=0)


def test_it_learns_and_comes_back(smol, samples, tmp_path):
    model, processor, _ = smol
    batch = supervised_batch(processor, samples[:1])
    aside = ("token_sequence", "sequence_row", "look_row", "look_column", "look_target")
    output = model.train()(**{k: v for k, v in batch.items() if k not in aside})
    output.loss.backward()
    assert all(p.grad is not None for p in model.pixel_fusion.parameters())
    model.zero_grad()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, _ = load_model(tmp_path)
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_cut_keeps_the_first_layers_and_the_last(language):
    shorter = cut(language, 3)
    for own, trained in zip(shorter.model.layers, (0, 1, 3), strict=True):
        expected = language.model.layers[trained].state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in own.state_dict().items())
    assert torch.equal(shorter.lm_head.weight, language.lm_head.weight)
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        torch.testing.assert_close(cut(language, 4)(ids).logits, language(ids).logits)


@pytest.mark.parametrize("layers", [1, 5])
def test_a_cut_that_cannot_be(layers, language):
    with pytest.raises(DataError, match=f"layers: {layers} of 4; keep 2 to 4"):
        cut(language, layers)
