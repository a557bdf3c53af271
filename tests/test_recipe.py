"""A script forked from a process: its arguments, its exit code and its output are those of a process of its own."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = """
import sys
from dataclasses import dataclass
from multiprocessing import Pool

import beside  # a module next to the script


@dataclass
class Row:
    value: int


def twice(row):
    return Row(2 * row.value)


if __name__ == "__main__":
    with Pool(1) as pool:  # its functions can be found by name
        (row,) = pool.map(twice, [Row(int(sys.argv[1]))])
    print("out", sys.argv, row.value, beside.NAME)
    raise SystemExit(row.value)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "beside.py").write_text("NAME = 'beside'\n")
    (tmp_path / "scripts" / "double.py").write_text(SCRIPT)
    (tmp_path / "module.py").write_text("import sys\nprint('module', sys.argv[1:])\nraise ValueError('broken')\n")
    return tmp_path


def forked(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess:
    """What a process of its own says of `run_forked`; the tests' own process has threads."""
    program = textwrap.dedent(f"""
        from pathlib import Path
        from popen.recipe import run_forked
        print("code", run_forked({arguments!r}, Path({str(folder)!r}), ["json"]))
    """)
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )


def test_a_script_runs_with_its_arguments_beside_its_modules(folder):
    done = forked(folder, ["scripts/double.py", "21"])
    assert done.stdout.splitlines() == ["out ['scripts/double.py', '21'] 42 beside", "code 42"]


def test_a_module_that_fails_says_why_and_has_a_code(folder):
    done = forked(folder, ["-m", "module", "x"])
    assert done.stdout.splitlines() == ["module ['x']", "code 1"]
    assert "ValueError: broken" in done.stderr
