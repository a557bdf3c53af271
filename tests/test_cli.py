"""The `popen` command: quick help, answers with an overlay, and one line for everything a user can mend."""

import re
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from popen import cli
from popen.cli import main

HEAVY = "{'torch', 'transformers', 'numpy', 'PIL', 'datasets', 'trl'}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    """An untrained tiny model on disk."""
    root = tmp_path_factory.mktemp("cli") / "model"
    for part in tiny:
        part.save_pretrained(root)
    return root


@pytest.fixture
def picture(tmp_path, samples):
    path = tmp_path / "scene.png"
    samples[0].image.save(path)
    return path


def run(capsys, *argv):
    """Exit code, stdout and stderr."""
    capsys.readouterr()
    code = main([str(a) for a in argv])
    return code, *capsys.readouterr()


def test_help_is_quick_and_loads_nothing_heavy():
    code = f"import sys\nfrom popen.cli import main\ntry: main(['--help'])\nfinally: print({HEAVY} & set(sys.modules))"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(cli.__file__).parent.parent, capture_output=True)
    assert time.perf_counter() - started < 1
    assert done.returncode == 0 and done.stderr == b""
    assert b"segment" in done.stdout and b"demo" in done.stdout
    assert done.stdout.strip().endswith(b"set()"), f"popen --help loads {done.stdout.splitlines()[-1]}"


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["segment"], ["segment", "a.png"]])
def test_wrong_usage_exits_with_two(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2 and "usage: popen" in capsys.readouterr().err


def test_env_names_versions_and_devices(capsys):
    code, out, err = run(capsys, "env")
    assert code == 0 and err == ""
    assert re.search(r"^popen \d+\.\d+", out)
    for name in ("torch", "transformers", "trl", "deepspeed"):
        assert re.search(rf"^{name} (\d|not installed)", out, re.MULTILINE)
    assert "devices: " in out and "shipped model: " in out


@pytest.mark.parametrize("options", [(), ("--ensemble", "2")], ids=["single", "ensemble"])
def test_segment_answers_and_draws(capsys, picture, folder, options):
    code, out, _ = run(capsys, "segment", picture, "Where is the red ball?", "--model", folder, *options)
    beside = picture.with_name("scene-popen.png")
    assert code == 0 and out.splitlines()[-1] == f"wrote {beside}"
    with Image.open(beside) as drawn:
        assert drawn.size == (96, 96) and drawn.mode == "RGB"


def test_segment_lists_its_targets(capsys, tmp_path, taught, samples):
    """A model that has learnt the scene names each target with area and confidence and tints the overlay."""
    for part in taught:
        part.save_pretrained(tmp_path / "model")
    samples[0].image.save(tmp_path / "in.png")
    question = next(q for q in samples[0].questions if len(q.masks) == 1)
    out_file = tmp_path / "out.png"
    code, out, _ = run(
        capsys, "segment", tmp_path / "in.png", question.question, "--model", tmp_path / "model", "-o", out_file
    )
    assert code == 0
    assert re.search(r"^  1\. .+: \d+\.\d% of the picture, confidence [01]\.\d\d$", out, re.MULTILINE)
    with Image.open(out_file) as drawn, Image.open(tmp_path / "in.png") as original:
        assert (np.asarray(drawn) != np.asarray(original.convert("RGB"))).any()


@pytest.mark.parametrize("options", [(), ("--output_dir", "somewhere"), ("--seed=3",)])
def test_demo_passes_its_options_on(monkeypatch, options):
    called = []
    monkeypatch.setattr(subprocess, "call", lambda command, cwd: called.append((command, cwd)) or 3)
    assert main(["demo", *options]) == 3
    (command, cwd), root = called[0], Path(cli.__file__).parent.parent
    assert command == [
        sys.executable, str(root / "recipes" / "path.py"), "--config", "recipes/demo.yaml", *options,
    ]  # fmt: skip
    assert (cwd / command[3]).is_file()


def test_demo_without_a_checkout_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "popen" / "cli.py"))
    code, _, err = run(capsys, "demo")
    assert code == 1 and err.count("\n") == 1 and "checkout" in err


# ---- what a user can get wrong: (builds the arguments, what the one line must name)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height):
    """A PNG whose header claims a size; there are no pixels behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def missing(path):
    pass


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("not a picture")


def folder_instead(path):
    path.mkdir()


def truncated(path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path, format="PNG")
    path.write_bytes(path.read_bytes()[:5000])


def truncated_jpeg(path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:1500])


def animated_gif(path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])


def cmyk_jpeg(path):
    Image.new("CMYK", (8, 8)).save(path, format="JPEG")


def sixteen_bit_png(path):
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(path, format="PNG")


def one_pixel(path):
    Image.new("RGB", (1, 1)).save(path, format="PNG")


def large(path):
    path.write_bytes(png_header(10_000, 6_000))


def bomb(path):
    path.write_bytes(png_header(60_000, 60_000))


BROKEN = [missing, empty, text, folder_instead, truncated, truncated_jpeg, animated_gif, cmyk_jpeg, sixteen_bit_png,
          one_pixel, large, bomb]  # fmt: skip


def one_line(code, out, err):
    assert code == 1 and out == ""
    assert "Traceback" not in err
    assert err.endswith("\n") and len(err.splitlines()) == 1, f"more than the one line that helps:\n{err}"
    assert err.startswith("popen: ")
    return err


@pytest.mark.parametrize("build", BROKEN, ids=lambda build: build.__name__)
def test_a_picture_that_cannot_be_used(capsys, tmp_path, folder, build):
    path = tmp_path / "picture.png"
    build(path)
    err = one_line(*run(capsys, "segment", path, "Where is it?", "--model", folder))
    assert str(path) in err
    assert not list(tmp_path.glob("*-popen.png"))


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def no_config(folder):
    (folder / "config.json").unlink()


def no_processor(folder):
    (folder / "popen_processor.json").unlink()


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def short_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:10_000])


def empty_weights(folder):
    (folder / "model.safetensors").write_bytes(b"")


def broken_config(folder):
    (folder / "config.json").write_text("{")


def other_weights(folder):
    config = folder / "config.json"
    config.write_text(re.sub(r'"decoder_mlp_dim": \d+', '"decoder_mlp_dim": 50', config.read_text()))


def broken_settings(folder):
    (folder / "popen_processor.json").write_text("{")


def all_gone(folder):
    shutil.rmtree(folder)


SPOILED = [no_weights, no_config, no_processor, no_tokenizer, short_weights, empty_weights, broken_config,
           other_weights, broken_settings, all_gone]  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_a_model_folder_that_cannot_be_used(capsys, tmp_path, picture, folder, spoil):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    spoil(copy)
    err = one_line(*run(capsys, "segment", picture, "Where is it?", "--model", copy))
    assert str(copy) in err


def test_a_model_that_is_nowhere(capsys, picture):
    assert "nobody/nothing" in one_line(*run(capsys, "segment", picture, "Where?", "--model", "nobody/nothing"))
    assert "no-such-model" in one_line(*run(capsys, "segment", picture, "Where?", "--model", "no-such-model"))


@pytest.mark.parametrize(
    "question, named",
    [
        ("", "question"),
        (" \t\n", "question"),
        ("where is the red ball " * 100, "tokens"),
        ("Where is <seg>?", "control token"),
        ("What is [SEG0]?", "control token"),
        ("<image> what?", "control token"),
    ],
    ids=["empty", "blank", "too long", "seg", "seg token", "image token"],
)
def test_a_question_that_cannot_be_asked(capsys, picture, folder, question, named):
    err = one_line(*run(capsys, "segment", picture, question, "--model", folder))
    assert "question" in err and named in err


@pytest.mark.parametrize("count", ["0", "-3"])
def test_an_ensemble_of_none(capsys, picture, folder, count):
    err = one_line(*run(capsys, "segment", picture, "Where is it?", "--ensemble", count, "--model", folder))
    assert f"--ensemble {count}" in err


def test_an_ensemble_without_calibration(capsys, tmp_path, picture, folder):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    config = copy / "config.json"
    config.write_text(re.sub(r'"embedding_std": \[[^\]]*\]', '"embedding_std": null', config.read_text()))
    err = one_line(*run(capsys, "segment", picture, "Where is it?", "--ensemble", "2", "--model", copy))
    assert "embedding_std" in err and "calibrate" in err


@pytest.mark.parametrize("output", ["no/such/folder/out.png", ".", "out.nonsense"])
def test_an_output_that_cannot_be_written(capsys, tmp_path, picture, folder, output):
    target = tmp_path / output
    code, out, err = run(capsys, "segment", picture, "Where is it?", "--model", folder, "-o", target)
    assert code == 1 and "wrote" not in out
    assert len(err.splitlines()) == 1, f"more than the one line that helps:\n{err}"
    assert str(target) in err
