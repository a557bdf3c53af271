"""Turns, ratios, figures and exponents, by hand."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import figures
from benchmarks.evaluation import histogram_loop, masks, ours, ours_matched
from benchmarks.figures import Figure, figure, table
from benchmarks.growth import exponent
from benchmarks.preference_memory import ratio as peak_ratio
from benchmarks.rates import addmm_flops, allocated_peak, flops, kept_bytes, speeds
from benchmarks.segment import check_same
from benchmarks.turns import Spent, ratio, take_turns, timed
from popen.data.safe_io import DataError
from popen.lvlm.segmentation import Answer


def spent(*seconds):
    return [Spent(wall, wall / 2) for wall in seconds]


def test_the_first_to_go_alternates_and_the_warm_up_is_left_out():
    calls = []
    taken = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, "try", warm_up=1)
    assert "".join(calls) == "baabbaab"
    assert {name: len(own) for name, own in taken.items()} == {"a": 3, "b": 3}
    with pytest.raises(ValueError, match="at least one"):
        take_turns({"a": lambda: None}, 0, "try")


def test_a_ratio_is_the_median_over_turns():
    """Turns of 2/1, 9/3, 8/2 and 5/1 seconds: 2, 3, 4, 5; the quartiles are the second from either end."""
    found = ratio(spent(2, 9, 8, 5), [Spent(1, 1), Spent(3, 1), Spent(2, 1), Spent(1, 1)])
    assert (found.median, found.low, found.high, found.turns) == (3.5, 3, 4, 4)
    assert found.cpu == pytest.approx((2.5 + 4) / 2)  # 1, 4.5, 4 and 2.5 processor seconds over one each
    with pytest.raises(ValueError, match="as many of both"):
        ratio(spent(1), [])


def test_what_a_started_program_computes_is_processor_time():
    busy = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"]
    assert timed(lambda: subprocess.run(busy, check=True)).cpu >= 0.5
    assert timed(lambda: None).cpu < 0.5  # an earlier one counts for nobody else


@pytest.mark.parametrize(
    "value, bar, met",
    [(2.2, {"at_least": 2.2}, True), (2.1, {"at_least": 2.2}, False), (0.6, {"at_most": 0.6}, True),
     (0.7, {"at_most": 0.6}, False), (1.0, {}, None)],
)  # fmt: skip
def test_a_bar_is_met_on_its_own_side(value, bar, met):
    assert Figure("x", value, value, value, 3, **bar).met is met


def test_all_figures_of_a_folder_make_one_table(tmp_path):
    own = figure("a / b", {"a": spent(4, 4), "b": spent(2, 2)}, "a", "b", at_least=3.0)
    args = figures.parser("words", 1).parse_args(["--out", str(tmp_path / "one.json")])
    figures.report(args, [own], extra=1)
    written = json.loads((tmp_path / "one.json").read_text())
    assert written["extra"] == 1 and written["figures"][0]["met"] is False and written["commit"]
    assert "| a / b | 2 [2, 2] |" in table(tmp_path) and "≥ 3 | **no** |" in table(tmp_path)
    del written["figures"][0]["cpu"]
    (tmp_path / "one.json").write_text(json.dumps(written))
    assert "| a / b | 2 [2, 2] | – |" in table(tmp_path), "processor time that was not measured may be absent"
    (tmp_path / "two.json").write_text("{}")
    with pytest.raises(DataError, match=r"two\.json: has no figures"):
        table(tmp_path)
    with pytest.raises(DataError, match="run make bench first"):
        table(tmp_path / "nothing")


def test_an_exponent_is_that_of_a_power():
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert exponent([1, 2, 4], [5, 5, 5]) == pytest.approx(0)
    with pytest.raises(ValueError, match="two points"):
        exponent([1], [1])


def test_work_is_counted():
    """(2, 3) @ (3, 5) is 2·2·3·5 FLOPs; a product of two keeps both of their 4·6 bytes."""
    assert flops(lambda: torch.zeros(2, 3) @ torch.zeros(3, 5)) == 60
    assert flops(lambda: torch.addmm(torch.zeros(5), torch.zeros(2, 3), torch.zeros(3, 5), beta=2)) == 60
    assert addmm_flops((5,), (2, 3), (3, 5), None, out_shape=(2, 5)) == 60  # with an out_dtype behind the operands
    a, b = (torch.ones(2, 3, requires_grad=True) for _ in range(2))
    assert kept_bytes(lambda: a * b) == 48
    assert speeds(100, 10, 2.0, 1000.0) == {"flops": 100, "tokens_per_s": 5.0, "share_of_matmul_rate": 0.05}


def test_the_peak_is_what_is_held_at_once():
    """Two of 4 KiB, of which one goes before a third of 1 KiB comes."""

    def work():
        first, second = torch.ones(1024), torch.ones(1024)
        del first
        return second, torch.ones(256)

    assert allocated_peak(work) == 8192


def test_a_ratio_of_peaks_has_its_median_in_the_middle():
    assert peak_ratio([1, 3], [2, 2], what="x").median == 1.0


def test_histograms_and_counts_agree():
    pool = masks(20, 24, 32, seed=1)
    assert histogram_loop(pool, 20) == pytest.approx(ours(pool, 20), abs=1e-5)
    assert ours_matched(pool, 20) == pytest.approx(ours(pool, 20), abs=1e-3)


def test_ways_that_say_different_words_are_no_comparison():
    with pytest.raises(DataError, match="must be equal"):
        check_same({"a": [Answer("red", ())], "b": [Answer("blue", ())]})
