"""A model with its code answers where popen cannot be imported as it does where it can."""

import ast
import json
import subprocess
import sys

import numpy as np
import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

from popen.data.safe_io import DataError, read_json
from popen.hub.push import push
from popen.hub.remote_code import ENTRY, STARTS, export_remote_code, flattened, rewrite
from tests.hub.conftest import ROOT

CHILD = """
import json, sys
sys.modules["popen"] = None  # importing it raises, wherever it may be installed
import numpy as np
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor

folder, hub_id, picture, question, out = sys.argv[1:]
said = []
for name in (folder, hub_id):
    config = AutoConfig.from_pretrained(name, trust_remote_code=True)
    model = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    answer, careful = (model.segment([Image.open(picture)], [question], processor, ensemble=k)[0] for k in (0, 2))
    said.append({
        "classes": [type(part).__name__ for part in (config, model, processor)],
        "texts": [answer.text, careful.text], "confidence": [t.confidence for t in answer.targets],
        "one copy": type(config) is type(model.config) is model.config_class,
    })
    masks = [t.mask for a in (answer, careful) for t in a.targets]
    np.savez_compressed(f"{out}/{len(said)}.npz", *masks)
print(json.dumps({"said": said, "popen": [m for m in sys.modules if m.split(".")[0] == "popen" and sys.modules[m]]}))
"""


@pytest.fixture(scope="module")
def exported(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote") / "tiny"
    return folder, export_remote_code(model_folder, folder)


def test_it_answers_without_popen(hub, away, exported, model_folder, shipped, samples, tmp_path):
    """From the folder and from the Hub: text, masks and confidences as popen gives them, also with the ensemble."""
    question = next(q for q in samples[0].questions if len(q.masks) > 1)
    samples[0].image.save(tmp_path / "picture.png")
    push(model_folder, "org/tiny", remote_code=True)
    command = [
        sys.executable, "-c", CHILD, str(exported[0]), "org/tiny", "picture.png", question.question, str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, env=away, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["popen"] == []
    own = [shipped[0].segment([samples[0].image], [question.question], shipped[1], ensemble=k)[0] for k in (0, 2)]
    masks = [target.mask for answer in own for target in answer.targets]
    assert len(own[0].targets) > 1
    for number, said in enumerate(told["said"], 1):
        assert said["classes"] == ["PopenConfig", "PopenForReasoningSegmentation", "PopenProcessor"]
        assert said["texts"] == [answer.text for answer in own] and said["one copy"]
        assert said["confidence"] == pytest.approx([target.confidence for target in own[0].targets], abs=1e-6)
        with np.load(tmp_path / f"{number}.npz") as found:
            assert len(found.files) == len(masks)
            assert all(np.array_equal(found[f"arr_{i}"], mask) for i, mask in enumerate(masks))


def test_transformers_finds_every_file(exported):
    folder, written = exported
    reached = {folder / f"{ENTRY}.py", *get_relative_import_files(str(folder / f"{ENTRY}.py"))}
    assert {str(path) for path in reached} == {str(path) for path in written}


def test_nothing_but_imports_is_rewritten(exported):
    changed = 0
    for module, source in flattened(STARTS).items():
        place = ROOT.joinpath(*module.split("."))
        own = (place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text().splitlines()
        new = source.splitlines()
        kept = [line for line in own if not line.strip().startswith("from popen.")]
        assert [line for line in new if not line.strip().startswith("from .")] == kept, module
        changed += len(own) - len(kept)
    assert changed


def test_no_file_needs_popen(exported):
    needed = {name for path in exported[1] for name in get_imports(path)}
    assert "popen" not in needed and needed - set(sys.stdlib_module_names) == {
        "PIL", "huggingface_hub", "numpy", "scipy", "torch", "transformers",
    }  # fmt: skip


def test_the_same_folder_every_time(exported, model_folder, tmp_path):
    again = export_remote_code(model_folder, tmp_path / "again")
    assert [path.name for path in again] == [path.name for path in exported[1]]
    for path in exported[0].iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_an_exported_folder_can_be_exported_again(exported, tmp_path):
    again = export_remote_code(exported[0], tmp_path / "again")
    assert {path.name for path in again} == {path.name for path in exported[1]}
    assert read_json(tmp_path / "again" / "config.json") == read_json(exported[0] / "config.json")


@pytest.mark.parametrize(
    "line, becomes, needs",
    [
        ("from popen.lvlm.canvas import Canvas", "from .lvlm_canvas import Canvas", ["popen.lvlm.canvas"]),
        ("    from popen.lvlm.canvas import Canvas as C  # é", "    from .lvlm_canvas import Canvas as C  # é",
         ["popen.lvlm.canvas"]),
        ("from popen.lvlm.canvas import (\n    Canvas,\n)", "from .lvlm_canvas import Canvas", ["popen.lvlm.canvas"]),
        ("from popen.data import rle", "from .data_rle import __name__ as _rle\nfrom . import data_rle as rle",
         ["popen.data.rle"]),
        ("from popen.data import rle as r", "from .data_rle import __name__ as _rle\nfrom . import data_rle as r",
         ["popen.data.rle"]),
        ("import json", "import json", []),
        ('text = "from popen.data import rle"', 'text = "from popen.data import rle"', []),
    ],
)  # fmt: skip
def test_an_import(line, becomes, needs):
    before, after = ("if True:\n", "\nx = 1\n") if line.startswith(" ") else ("y = 2\n", "\nx = 1\n")
    source, needed = rewrite(before + line + after, "popen.lvlm.it")
    assert source == before + becomes + after and needed == needs
    ast.parse(source)


def test_imports_of_several_lines_do_not_shift_each_other():
    part = "from popen.lvlm.canvas import (\n    Canvas,\n)\n"
    source, _ = rewrite(f"def f():\n    if 1:\n        pass\n\n\n{part}z = 1\n{part}", "popen.lvlm.it")
    flat = "from .lvlm_canvas import Canvas\n"
    assert source == f"def f():\n    if 1:\n        pass\n\n\n{flat}z = 1\n{flat}"


@pytest.mark.parametrize(
    "line", ["import popen", "import popen.lvlm.tiny as t", "from popen import lvlm", "from . import x"]
)
def test_an_import_without_a_flat_counterpart(line):
    with pytest.raises(ValueError, match=r"popen.lvlm.it:1: `.*`; write `from popen.part.module import name`"):
        rewrite(line + "\n", "popen.lvlm.it")


def test_what_cannot_be_exported(data_folder, model_folder, tmp_path):
    with pytest.raises(DataError, match=r"only a model has code to export; give the folder of a popen model"):
        export_remote_code(data_folder, tmp_path / "out")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"is not empty; give a new folder"):
        export_remote_code(model_folder, tmp_path)
