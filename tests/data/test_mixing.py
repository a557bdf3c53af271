import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.data.mixing import load_mixture, mixture_order
from popen.data.safe_io import DataError
from popen.data.scene_questions import sample
from popen.data.schema import load_split, write_dataset

SETS = st.lists(st.tuples(st.integers(1, 40), st.floats(0.5, 20)), min_size=1, max_size=5)


def which(order, sizes):
    """The number of the set that each row of an order comes from."""
    return np.searchsorted(np.cumsum(sizes), order, side="right")


@pytest.mark.parametrize("rates", [(9, 3, 3, 1), (2, 9, 2, 4)], ids=["LISA", "PixelLM"])
def test_the_field_s_rates(rates):
    sizes = (200, 170, 300, 24)
    order = mixture_order(sizes, rates, seed=0)
    counts = np.bincount(which(order, sizes))
    # by hand: the set that lasts longest is seen once, the others at their rate to it
    unit = max(size / rate for size, rate in zip(sizes, rates, strict=True))
    assert counts.tolist() == [round(unit * rate) for rate in rates]
    assert set(order) == set(range(sum(sizes)))


def test_equal_sets_at_equal_rates_are_seen_once():
    assert sorted(mixture_order((5, 5), (1, 1), seed=3)) == list(range(10))
    assert sorted(mixture_order((7, 3), (7, 3), seed=3)) == list(range(10))


@given(SETS, st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_beginning_holds_the_rates(sets, seed):
    sizes, rates = zip(*sets, strict=True)
    order = mixture_order(sizes, rates, seed)
    drawn = which(order, sizes)
    share = np.array(rates) / sum(rates)
    so_far = np.cumsum(drawn[:, None] == np.arange(len(sizes)), axis=0)
    expected = np.arange(1, len(order) + 1)[:, None] * share
    assert np.abs(so_far - expected).max() <= len(sizes)
    for number, size in enumerate(sizes):  # a row comes again only when all of its set have come
        seen = np.bincount(order[drawn == number] - sum(sizes[:number]), minlength=size)
        assert seen.min() >= 1
        assert seen.max() - seen.min() <= 1


@given(SETS, st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_same_seed_same_order(sets, seed):
    sizes, rates = zip(*sets, strict=True)
    assert np.array_equal(mixture_order(sizes, rates, seed), mixture_order(sizes, rates, seed))


def test_rates_have_no_unit():
    assert np.array_equal(mixture_order((20, 10), (9, 3), 4), mixture_order((20, 10), (0.75, 0.25), 4))


def test_another_seed_another_order():
    orders = [mixture_order((30, 10), (1, 1), seed) for seed in (0, 1)]
    assert not np.array_equal(*orders)
    assert np.array_equal(which(orders[0], (30, 10)), which(orders[1], (30, 10)))  # whose turn it is stays


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    for name, first, count in (("a", 0, 6), ("b", 100, 2)):
        write_dataset((sample(first + i) for i in range(count)), root / name, "train")
    return [str(root / "a"), str(root / "b")]


def test_one_data_set_is_loaded_as_it_is(folders):
    whole = load_split(folders[0], "train")
    for paths in (folders[0], folders[:1]):
        mixed = load_mixture(paths, "train", seed=5)
        assert mixed["image_id"][:] == whole["image_id"][:]
        assert mixed._fingerprint == whole._fingerprint


def test_two_data_sets(folders):
    mixed = load_mixture(folders, "train", [1, 1], seed=0)
    ids = mixed["image_id"][:]
    assert len(ids) == 12
    assert sorted(ids[0::2] + ids[1::2]) == sorted(ids)
    assert set(ids) == {*(f"scene-{n}" for n in range(6)), "scene-100", "scene-101"}
    assert [ids.count("scene-100"), ids.count("scene-101")] == [3, 3]
    assert ids == load_mixture(folders, "train", [2, 2], seed=0)["image_id"][:]
    assert ids != load_mixture(folders, "train", [1, 1], seed=1)["image_id"][:]
    once = load_mixture(folders, "train")["image_id"][:]
    assert len(once) == len(set(once)) == 8


def test_another_process_draws_the_same():
    """Nothing of the process, such as its hash seed or its rank, goes into the order."""
    code = "from popen.data.mixing import mixture_order as m; print(m((6, 2), (1, 1), 0).tolist())"
    environment = {"PYTHONPATH": ":".join(sys.path), "RANK": "1", "WORLD_SIZE": "3", "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout.decode().strip() == str(mixture_order((6, 2), (1, 1), 0).tolist())


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ([1], r"rates: \[1\] for 2 data sets; give a positive number for each"),
        ([1, 0], "give a positive number for each"),
        ([1, -2.0], "give a positive number for each"),
        ([1, float("nan")], "give a positive number for each"),
        ([1, float("inf")], "give a positive number for each"),
    ],
)
def test_rates_that_are_none_are_refused(folders, rates, message):
    with pytest.raises(DataError, match=message):
        load_mixture(folders, "train", rates)


def test_an_order_too_long_for_memory_is_refused():
    with pytest.raises(DataError, match=r"rates: \[1, 1000\] for \[1000000, 10\] rows make over 100000000 an epoch"):
        mixture_order((1_000_000, 10), (1, 1000), 0)


def test_folders_that_do_not_do_are_named(folders):
    with pytest.raises(DataError, match="names a folder twice; raise its rate instead"):
        load_mixture([folders[0]] * 2, "train")
    with pytest.raises(DataError, match="no folder given"):
        load_mixture([], "train")
    with pytest.raises(DataError, match="no split 'dev'; there: train"):
        load_mixture(folders, "dev")
