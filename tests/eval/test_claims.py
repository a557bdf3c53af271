"""Claims: bars are judged by their direction, rows replace earlier ones, old code is told."""

import subprocess

import pytest

from eval import claims
from popen.data.safe_io import DataError

ROW = {
    "area": "tiny", "what": "cIoU", "low": 0.7, "high": 0.8, "n": 10, "seeds": (0,), "baseline": "none",
    "command": "make demo",
}  # fmt: skip


@pytest.mark.parametrize(
    "bar, value, met",
    [
        ({"at_least": 0.75}, 0.75, True),
        ({"at_least": 0.75}, 0.7499, False),
        ({"at_most": 15.0}, 15.0, True),
        ({"at_most": 15.0}, 15.1, False),
        ({}, 3.0, None),
    ],
)
def test_a_bar_is_met_on_its_own_side(bar, value, met):
    assert claims.claim(value=value, **bar, **ROW).met is met


def test_two_bars_are_refused():
    with pytest.raises(ValueError, match="one bar"):
        claims.claim(value=1.0, at_least=0.0, at_most=2.0, **ROW)


def test_a_row_measured_again_takes_the_place_of_the_old_one(tmp_path):
    file = tmp_path / "results" / "claims.json"
    first, other = claims.claim(value=0.7, **ROW), claims.claim(value=1.0, **(ROW | {"what": "CHAIR"}))
    claims.record([first, other], file)
    again = claims.claim(value=0.8, at_least=0.75, **ROW)
    claims.record([again], file)
    assert claims.read_claims(file) == [again, other]
    assert claims.read_claims(tmp_path / "nothing.json") == []


def test_a_row_with_a_field_too_many_is_named(tmp_path):
    file = tmp_path / "claims.json"
    claims.record([claims.claim(value=0.7, **ROW)], file)
    file.write_text(file.read_text().replace('"area"', '"aera"'))
    with pytest.raises(DataError, match=r"row 0.*aera"):
        claims.read_claims(file)


def test_the_table_shows_what_was_missed():
    text = claims.table([claims.claim(value=0.7, at_least=0.75, **ROW), claims.claim(value=0.7, **ROW)])
    missed, plain = text.splitlines()[2:]
    assert "0.75" in missed and "**no**" in missed and "[0.7, 0.8]" in missed and plain.endswith("| – |")


def test_changed_code_makes_a_claim_old(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    monkeypatch.chdir(tmp_path)
    git("init")
    (tmp_path / "popen").mkdir()
    (tmp_path / "popen" / "a.py").write_text("1\n")
    git("add", ".")
    git("commit", "-m", "one")
    made = claims.claim(value=1.0, **ROW)
    assert claims.stale([made]) == [] and not made.commit.endswith("-dirty")
    (tmp_path / "notes.md").write_text("words\n")
    git("add", ".")
    git("commit", "-m", "two")
    assert claims.stale([made]) == []
    (tmp_path / "popen" / "a.py").write_text("2\n")
    assert claims.head_commit().endswith("-dirty")
    git("commit", "-am", "three")
    assert claims.stale([made]) == [made]
