import importlib.util
from pathlib import Path

import pytest

from popen.data.scene_questions import sample
from popen.data.schema import Sample, load_split

PATH = Path(__file__).parents[2] / "data_tools" / "build_scenes.py"


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build_scenes", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(build, out, *more):
    return build.main(["--out", str(out), "--workers", "1", *more])


def test_splits_hold_the_scenes_of_their_seeds(build, tmp_path, capsys):
    assert run(build, tmp_path, "--train", "5", "--test", "2", "--offset", "3") == 0
    assert "train: 5 scenes" in capsys.readouterr().out and not (tmp_path / "dev").exists()
    assert load_split(tmp_path, "train")["image_id"][:] == [f"scene-{seed}" for seed in range(3, 8)]
    read, drawn = Sample.from_row(load_split(tmp_path, "test")[1]), sample(2_000_004)
    assert read.image.tobytes() == drawn.image.tobytes() and read.questions == drawn.questions


def test_same_bytes_and_kept_when_there(build, tmp_path, capsys):
    for name in ("a", "b"):
        assert run(build, tmp_path / name, "--dev", "4") == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    capsys.readouterr()
    assert run(build, tmp_path / "a", "--dev", "4") == 0
    assert "kept" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}


@pytest.mark.parametrize(
    "change",
    [("--dev", "3"), ("--dev", "4", "--offset", "1"), ("--dev", "4", "--size", "64"), ("--dev", "4", "--dusk")],
)
def test_other_scenes_replace_a_split(build, tmp_path, capsys, change):
    assert run(build, tmp_path, "--dev", "4") == run(build, tmp_path, *change) == 0
    assert "kept" not in capsys.readouterr().out
    assert len(load_split(tmp_path, "dev")) == int(change[1])


def test_dusk_changes_pictures_alone(build, tmp_path):
    for name, more in (("day", []), ("dusk", ["--dusk"])):
        assert run(build, tmp_path / name, "--dev", "2", *more) == 0
    for a, b in zip(*(load_split(tmp_path / name, "dev") for name in ("day", "dusk")), strict=True):
        day, dusk = Sample.from_row(a), Sample.from_row(b)
        assert day.questions == dusk.questions and day.image_id == dusk.image_id
        assert sum(dusk.image.resize((1, 1)).getpixel((0, 0))) < sum(day.image.resize((1, 1)).getpixel((0, 0)))


def test_rows_do_not_depend_on_workers(build, monkeypatch):
    monkeypatch.syspath_prepend(PATH.parent)  # spawned processes import the script by its name
    monkeypatch.setitem(__import__("sys").modules, "build_scenes", build)
    assert list(build.rows(range(4), 96, 2)) == list(build.rows(range(4), 96, 1))


@pytest.mark.parametrize("bad", [("--dev", "-1"), ("--test", "100001"), ("--size", "20"), ("--workers", "0")])
def test_bad_arguments(build, tmp_path, bad):
    with pytest.raises(SystemExit):
        build.main(["--out", str(tmp_path), *bad])


def test_something_else_in_the_way(build, tmp_path, capsys):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "note.txt").write_text("mine")
    assert run(build, tmp_path, "--dev", "2") == 1
    assert "not a dataset split" in capsys.readouterr().err
