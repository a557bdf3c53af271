"""How a command ends: one line, which says the rank where there are several processes."""

import os

import pytest

from popen import errors
from popen.errors import one_line_errors

LOST = "[pair.cc:561] Connection closed by peer [127.0.0.1]:30884. This is typically caused by a worker"


def ended(capsys, error):
    with pytest.raises(SystemExit) as end, one_line_errors("mine.py"):
        raise error
    assert end.value.code == 1
    return capsys.readouterr().err


def test_one_process_says_what_is_wrong(capsys, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert ended(capsys, ValueError("two\nlines")) == "mine.py: two lines\n"


def test_several_processes_say_which_they_are(capsys, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ | {"WORLD_SIZE": "2", "RANK": "1"})
    assert ended(capsys, OSError("the disk is full")) == "mine.py: rank 1: the disk is full\n"


def test_who_lost_another_process_waits_to_be_ended(capsys, monkeypatch):
    """Or the launcher might take it for the first that failed, and name it."""
    waited = []
    monkeypatch.setattr(errors.time, "sleep", waited.append)
    monkeypatch.setattr(os, "environ", os.environ | {"WORLD_SIZE": "2", "RANK": "0"})
    assert "rank 0: another process has ended" in ended(capsys, RuntimeError(LOST))
    assert waited == [errors.GRACE]


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="a bug"), one_line_errors("mine.py"):
        raise RuntimeError("a bug")
