"""Nothing we ship runs what it reads: a scan of every source file for calls that could."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(f for folder in ("popen", "recipes", "eval", "data_tools") for f in (ROOT / folder).rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CALLS = {
    "eval", "exec", "compile", "__import__",
    "torch.load", "torch.hub.load", "numpy.load", "np.load",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load",
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp",
    "builtins.eval", "builtins.exec",
}  # fmt: skip
METHODS = {"extractall", "unpack_archive", "read_pickle", "to_pickle"}
FLAGS = {"shell", "trust_remote_code", "allow_pickle"}

# the one program that unpickles: with a find_class that always raises, and in a child process of `restricted_pickle`
UNPICKLER = ROOT / "popen" / "data" / "restricted_pickle_child.py"


def dangers(source: str) -> list[str]:
    """What a source does that none of ours may, as "line: what"."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        found += [f"{node.lineno}: import of {n}" for n in names if n.split(".")[0] in MODULES or n in CALLS]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS or called.rpartition(".")[2] in METHODS:
                found.append(f"{node.lineno}: {called}()")
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and not keyword.value.value
                if keyword.arg in FLAGS and not off:
                    found.append(f"{node.lineno}: {keyword.arg}={ast.unparse(keyword.value)}")
                if keyword.arg in ("weights_only", "use_safetensors") and off:
                    found.append(f"{node.lineno}: {keyword.arg}={ast.unparse(keyword.value)}")
        if isinstance(node, ast.Attribute | ast.Name):
            last = node.attr if isinstance(node, ast.Attribute) else node.id
            if last == "LOAD_TRUNCATED_IMAGES":
                found.append(f"{node.lineno}: {last}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_runs_what_it_reads(file):
    found = [danger.partition(": ")[2] for danger in dangers(file.read_text(encoding="utf-8"))]
    assert found == (["import of pickle"] if file == UNPICKLER else [])


def test_the_unpickler_is_a_program_that_nobody_imports():
    assert not [f.name for f in FILES if re.search(r"import.*restricted_pickle_child", f.read_text(encoding="utf-8"))]
    tree = ast.parse(UNPICKLER.read_text(encoding="utf-8"))
    used = {
        ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "pickle"
    }
    assert used == {"pickle.Unpickler", "pickle.UnpicklingError"}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib",
        "torch.load('x', weights_only=True)",
        "from torch import load",
        "yaml.load(text)",
        "eval('1')",
        "exec(code)",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=flag)",
        "os.system('ls')",
        "archive.extractall(folder)",
        "ImageFile.LOAD_TRUNCATED_IMAGES = True",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "load(name, weights_only=False)",
        "np.load('x.npy')",
        "read(path, allow_pickle=True)",
    ],
)
def test_the_scan_sees(source):
    assert dangers(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "re.compile('x')",
        "yaml.safe_load(text)",
        "subprocess.call(command)",
        "f(shell=False)",
        "load_file('model.safetensors')",
    ],
)
def test_the_scan_lets_pass(source):
    assert not dangers(source)
