"""Tables become claims with the bars they were given."""

import json
import sys

import pytest

from eval import claims, study_claims
from popen.data.safe_io import DataError

TABLE = {
    "single": {"n": 10, "ciou": {"difference": 0.0, "difference_95": [0.0, 0.0]}},
    "ensemble": {"n": 10, "ciou": {"difference": 0.037, "difference_95": [0.03, 0.045]}},
    "popen": {"n": 10, "seeds": 3, "ciou": {"difference": -0.01, "difference_95": [-0.02, 0.0]}},
}


def test_gains_by_hand():
    ensemble, popen = study_claims.gains(TABLE, "single", "test", "make it", {"ensemble": 3.0, "popen": 0.0})
    assert ensemble.what == "ensemble − single, points of cIoU" and ensemble.met and ensemble.seeds == (0,)
    assert (ensemble.value, ensemble.low, ensemble.high) == pytest.approx((3.7, 3.0, 4.5))
    assert not popen.met and popen.seeds == (0, 1, 2) and popen.baseline == "single"


def test_an_arm_that_is_not_there_is_named():
    with pytest.raises(DataError, match="no arm 'ensembel'"):
        study_claims.gains(TABLE, "single", "test", "make it", {"ensembel": 3.0})


def test_recorded(tmp_path, monkeypatch, capsys):
    (tmp_path / "table.json").write_text(json.dumps(TABLE))
    monkeypatch.setattr(study_claims, "record", lambda made: claims.record(made, tmp_path / "claims.json"))
    argv = ["eval.study_claims", "--table", str(tmp_path / "table.json"), "--control", "single", "--area", "test"]
    monkeypatch.setattr(sys, "argv", [*argv, "--command", "make it", "--bar", "ensemble", "3"])
    study_claims.main()
    written = claims.read_claims(tmp_path / "claims.json")
    assert [c.met for c in written] == [True, None] and "| test | ensemble − single" in capsys.readouterr().out
