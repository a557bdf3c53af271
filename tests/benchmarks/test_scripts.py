"""Every benchmark runs at toy size and writes finite ratios; what they mean needs the real sizes."""

import importlib
import json
import math
import sys

import pytest

from popen.data.schema import write_dataset
from tests.launching import launch_forked

IN_PROCESS = (
    "medical_step", "preference_step", "sft_step", "segment", "ensemble", "mining", "evaluation", "growth",
    "planned_memory", "label_logps",
)  # fmt: skip


def run(name, tmp_path, monkeypatch, *options):
    out = tmp_path / f"{name}.json"
    monkeypatch.setattr(sys, "argv", [name, "--toy", "--turns", "1", "--out", str(out), *options])
    importlib.import_module(f"benchmarks.{name}").main()
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", IN_PROCESS)
@pytest.mark.filterwarnings("ignore")  # TRL's and PEFT's own
def test_a_benchmark_runs(name, tmp_path, monkeypatch):
    found = run(name, tmp_path, monkeypatch)
    assert found["toy"] and found["commit"] and found["machine"]
    ratios = [own["median"] for own in found["figures"]]
    if name == "growth":
        ratios = [p for axis in found["growth"].values() for p in axis["exponents"].values()]
        assert len(list(tmp_path.glob("growth_*.svg"))) == len(found["growth"])
    assert ratios and all(math.isfinite(value) for value in ratios)
    if name == "preference_step":  # the two sides must read the same words and pictures in the same model
        ours, theirs = found["figures"][0]["notes"]["chosen_logps"].values()
        assert ours == pytest.approx(theirs, abs=1e-2)
    if name == "sft_step":
        ours, theirs = found["figures"][0]["notes"]["cross_entropy"].values()
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_remembered_step_has_the_loss_of_the_first(tmp_path, monkeypatch, samples):
    pytest.importorskip("timm", reason="timm is not installed: pip install popen-seg[clip]")
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from popen.lvlm.smol import build_smol
    from popen.lvlm.tiny import tiny_tokenizer
    from popen.lvlm.tiny_vit import TinyVitBackbone, TinyVitConfig

    words = tiny_tokenizer([t for s in samples for q in s.questions for t in (q.question, q.answer)], 340, 0)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer, pad_token="<pad>", eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=True,
    )  # fmt: skip
    for part in build_smol(LlamaForCausalLM(shape), tokenizer, TinyVitBackbone(TinyVitConfig()), 64, 256):
        part.save_pretrained(tmp_path / "model")
    write_dataset(samples[:1], tmp_path / "data", "train")
    found = run(
        "frozen_pixels", tmp_path, monkeypatch, "--model", str(tmp_path / "model"), "--data", str(tmp_path / "data")
    )
    assert [own["what"].split()[0] for own in found["figures"]] == ["supervised", "alignment"]
    assert all(own["median"] > 0 and math.isfinite(own["notes"]["loss"]) for own in found["figures"])


@pytest.mark.filterwarnings("ignore")
def test_parts_of_a_step_add_up_to_it(tmp_path, monkeypatch):
    found = run("where_time_goes", tmp_path, monkeypatch)["where"]
    assert [own["what"].split(",")[0] for own in found] == [
        "supervised step",
        "preference step",
        "answering",
        "mining",
    ]
    for own in found:
        assert sum(own["shares"].values()) == pytest.approx(1, abs=0.02) and own["flops"] > 0
        assert own["shares"]["language model"] > 0 and min(own["shares"].values()) >= 0
        assert ("backward" in own["shares"]) == own["what"].endswith("step")


def test_memory_is_that_of_a_fresh_process(monkeypatch, tmp_path):
    from benchmarks.preference_memory import in_own_process, ratio

    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    assert in_own_process("ours", toy=True, seed=0) >= 0  # so small a step may fit into what is held already
    program = "import torch; from benchmarks.rates import peak_bytes; print(peak_bytes(lambda: torch.ones(2**24)))"
    (tmp_path / "program.py").write_text(program)
    done = launch_forked([str(tmp_path / "program.py")], tmp_path)  # it has computed nothing
    assert done.returncode == 0, done.stderr[-3000:]
    assert 0.9 * 2**26 < int(done.stdout) < 1.5 * 2**26
    assert ratio([1, 2, 3], [2, 2, 2], what="x").median == 1.0
    with pytest.raises(ValueError, match="the process ended with"):
        in_own_process("nobody", toy=True, seed=0)
