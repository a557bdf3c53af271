import io
import json
import os
import pickle
import subprocess
import sys

import pytest

from popen.data.restricted_pickle import CHILD, read_plain_pickle
from popen.data.safe_io import DataError

MIB = 2**20


class Runs:
    """Unpickled, it would write the file "ran"."""

    def __reduce__(self):
        return open, ("ran", "w")


def bomb(levels, width, seed):
    for _ in range(levels):
        seed = [seed] * width  # the same object each time: in the file a memo number
    return pickle.dumps(seed, 2)


def ring():
    made = []
    made.append(made)
    return pickle.dumps(made, 2)


TIB = (2**40).to_bytes(8, "little")
HOSTILE = {
    "reduce, protocol 0": (pickle.dumps(Runs(), 0), "asks for the code '__builtin__'.'open'|asks for the code 'io'"),
    "reduce, protocol 2": (pickle.dumps(Runs(), 2), "asks for the code"),
    "reduce, protocol 4": (pickle.dumps(Runs(), 4), "asks for the code 'io'.'open'"),
    "reduce, protocol 5, inside": (pickle.dumps([{"a": Runs()}], 5), "asks for the code 'io'.'open'"),
    "system": (b"cos\nsystem\n(S'touch ran'\ntR.", "asks for the code 'os'.'system'"),
    "global alone": (b"cbuiltins\neval\n.", "asks for the code 'builtins'.'eval'"),
    "stack global": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "asks for the code 'os'.'system'"),
    "dotted": (b"\x80\x04\x8c\x08builtins\x8c\x0dstr.__class__\x93.", "asks for the code"),
    "pickle itself": (b"c_pickle\nloads\n.", "asks for the code"),
    "long name": (b"c" + b"a" * 100_000 + b"\nb\n.", "asks for the code"),
    "inst": (b"(S'touch ran'\nios\nsystem\n.", "asks for the code 'os'.'system'"),
    "obj": (b"(cos\nsystem\nS'touch ran'\no.", "asks for the code 'os'.'system'"),
    "newobj": (b"\x80\x02cos\n_wrap_close\n)\x81.", "asks for the code 'os'.'_wrap_close'"),
    "newobj of text": (b"\x80\x02U\x02os)\x81.", "NEWOBJ"),
    "newobj_ex of text": (b"\x80\x04\x8c\x02os)}\x92.", "NEWOBJ_EX"),
    "reduce of text": (b"S'os'\n(tR.", "not callable"),
    "build on a list": (b"]}\x8c\x01aNsb.", "attribute"),
    "build on a dict": (b"}}\x8c\x01aNsb.", "attribute"),
    "ext1": (b"\x80\x02\x82\x01.", "unregistered extension code 1"),
    "ext2": (b"\x80\x02\x83\x01\x01.", "unregistered extension code 257"),
    "ext4": (b"\x80\x02\x84\x01\x00\x00\x00.", "unregistered extension code 1"),
    "persid": (b"Psecret\n.", "refers to objects outside"),
    "binpersid": (b"\x8c\x06secretQ.", "refers to objects outside"),
    "next buffer": (b"\x80\x05\x97.", "buffer"),
    "memo bomb": (bomb(10, 10_000, "a"), "over 8388608 values"),
    "memo bomb of dicts": (pickle.dumps([{"a": (big := [0] * 4000)}] + [big] * 4000, 2), "over 8388608 values"),
    "bomb of one text": (bomb(1, 1000, "a" * MIB), "or 134217728 characters"),
    "deep bomb": (bomb(100, 2, "a"), "nested over 16 deep|over 8388608 values"),
    "ring": (ring(), "nested over 16 deep"),
    "many values": (b"(" + b"N" * (2**23 + 1) + b"l.", "over 8388608 values"),
    "deep nesting": (b"(" * 200_000 + b"l" * 200_000 + b".", "nested over 16 deep"),
    "1 TiB of text": (b"\x80\x04\x8d" + TIB + b"a", "truncated|memory|exceeds"),
    "1 TiB of bytes": (b"\x80\x04\x8e" + TIB + b"a", "truncated|memory|exceeds"),
    "1 TiB of bytearray": (b"\x80\x05\x96" + TIB + b"a", "truncated|memory|exceeds"),
    "1 TiB frame": (b"\x80\x04\x95" + TIB + b"N.", "truncated|memory|exhausted|exceeds"),
    "2 GiB long": (b"\x80\x02\x8b\xff\xff\xff\x7fa", "truncated|memory"),
    "negative long": (b"\x80\x02\x8b\xff\xff\xff\xffa", "negative byte count"),
    "memo number of 32 bits": (b"Nr\xff\xff\xff\xff.", "over 536870912 bytes of memory"),
    "memo number in text": (b"Np99999999999\n.", "over 536870912 bytes of memory"),
    "memo without": (b"h\x07.", "Memo value not found"),
    "5,000 digits": (b"I" + b"9" * 5000 + b"\n.", "could not convert string to int"),
    "70 bits": (pickle.dumps(2**70, 2), "beyond 64 bits"),
    "nan": (pickle.dumps([float("nan")], 2), "not finite"),
    "inf": (b"Finf\n.", "not finite"),
    "bytes": (pickle.dumps(b"a", 4), "of the kind bytes"),
    "set": (pickle.dumps({1}, 4), "of the kind set"),
    "number as key": (pickle.dumps({1: 2}, 4), "a key that is no text but int"),
    "half a pair": (pickle.dumps("\ud800", 4), "surrogates not allowed"),
    "not UTF-8": (b"U\x01\xff.", "utf-8"),
    "truncated": (pickle.dumps(list(range(100)), 4)[:-5], "truncated|Ran out"),
    "unknown protocol": (b"\x80\x99N.", "unsupported pickle protocol"),
    "empty stack": (b".", "stack|underflow"),
    "empty": (b"", "Ran out of input"),
    "text": (b"refs for everyone\n", "r"),
}  # fmt: skip


# the child's own peak: the kernel's count for a process also holds what its parent had when it was started
WATCHED = """
import runpy, sys
try:
    runpy.run_path(sys.argv[1], run_name="__main__")
finally:
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    open(sys.argv[2], "w").write(peak.split()[1])
"""


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_end_in_one_line_within_the_limits(tmp_path, name):
    data, message = HOSTILE[name]
    (tmp_path / "in.p").write_bytes(data)
    with (
        open(tmp_path / "in.p", "rb") as given,
        open(tmp_path / "out", "wb") as out,
        open(tmp_path / "err", "wb") as err,
    ):
        command = [sys.executable, "-I", "-S", "-c", WATCHED, str(CHILD), str(tmp_path / "peak")]
        child = subprocess.Popen(command, stdin=given, stdout=out, stderr=err, cwd=tmp_path)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    error = (tmp_path / "err").read_text()
    assert child.returncode == 1, error
    assert not (tmp_path / "out").read_bytes() and not (tmp_path / "ran").exists()
    assert error.count("\n") == 1 and len(error) < 300
    assert any(part in error for part in message.split("|")), error
    assert 0 < int((tmp_path / "peak").read_text()) * 1024 < 512 * MIB
    assert used.ru_utime + used.ru_stime < 5


def test_plain_data_come_back(tmp_path):
    plain = [{"ref_id": 1, "tokens": ["a", "é", "人"], "x": [1.5, None, True, -(2**62)], "empty": [{}, []]}]
    for protocol in range(6):
        (tmp_path / "refs.p").write_bytes(pickle.dumps(plain, protocol))
        assert read_plain_pickle(tmp_path / "refs.p") == plain
    (tmp_path / "refs.p").write_bytes(pickle.dumps((1, (2,)), 2))
    assert read_plain_pickle(tmp_path / "refs.p") == [1, [2]]
    of_python_2 = b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xc3\\xa9'\np3\nsS'id'\np4\nL7L\nsa."
    (tmp_path / "refs.p").write_bytes(of_python_2)
    assert read_plain_pickle(tmp_path / "refs.p") == [{"sent": "café", "id": 7}]


def test_the_parent_says_it_in_one_line(tmp_path, monkeypatch):
    path = tmp_path / "refs.p"
    monkeypatch.chdir(tmp_path)
    path.write_bytes(pickle.dumps(Runs(), 4))
    with pytest.raises(
        DataError, match=r"refs\.p: not a pickle of plain data: it asks for the code 'io'\.'open'; fetch"
    ):
        read_plain_pickle(path)
    assert not (tmp_path / "ran").exists()
    path.write_bytes(b"N.")
    with open(path, "r+b") as file:
        file.truncate(128 * MIB + 1)
    with pytest.raises(DataError, match="it is over 134217728 bytes"):
        read_plain_pickle(path)
    with pytest.raises(DataError, match=r"gone\.p: no such file"):
        read_plain_pickle(tmp_path / "gone.p")
    with pytest.raises(DataError, match=r"\(Is a directory\)"):
        read_plain_pickle(tmp_path)


def test_a_reader_that_never_ends_is_stopped(tmp_path, monkeypatch):
    path, endless = tmp_path / "refs.p", tmp_path / "endless.py"
    path.write_bytes(b"N.")
    source = CHILD.read_text(encoding="utf-8").replace("    nodes = characters = 0\n", "    while True: pass\n")
    endless.write_text(source.replace("MAX_SECONDS = 5 ", "MAX_SECONDS = 1 "))
    monkeypatch.setattr("popen.data.restricted_pickle.CHILD", endless)
    with pytest.raises(
        DataError, match=r"refs\.p: the reader was stopped by signal (9|24), out of time or memory; fetch"
    ):
        read_plain_pickle(path)
    endless.write_text("import time; time.sleep(60)")
    monkeypatch.setattr("popen.data.restricted_pickle.WAIT", 0.5)
    with pytest.raises(DataError, match=r"not read within 0\.5 seconds"):
        read_plain_pickle(path)


def test_a_file_as_large_as_the_benchmarks_is_read(tmp_path):
    words = ["the", "man", "on", "left"]
    made = [
        {
            "ref_id": n, "ann_id": n, "category_id": 1, "image_id": n // 3, "split": "train", "sent_ids": [n],
            "file_name": f"COCO_train2014_{n:012}.jpg",
            "sentences": [{"raw": f"the man {n}", "sent": f"man {n}", "sent_id": n, "tokens": [*words]}] * 3,
        }
        for n in range(2000)
    ]  # fmt: skip
    buffer = io.BytesIO()
    fast = pickle.Pickler(buffer, 2)
    fast.fast = True  # no memo: every object of its own, as in the published files
    fast.dump(made)
    (tmp_path / "refs.p").write_bytes(buffer.getvalue())
    assert read_plain_pickle(tmp_path / "refs.p") == json.loads(json.dumps(made))
