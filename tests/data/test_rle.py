import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from popen.data.rle import MAX_PIXELS, area, decode, encode

# by hand: runs column by column, from zeros; five bits a character + 48; from the fourth on minus the run two before
BY_HAND = [
    ([[0, 0], [0, 0]], [4], "4"),
    ([[1, 1], [1, 1]], [0, 4], "04"),
    ([[0, 1], [0, 1]], [2, 2], "22"),
    ([[0, 0], [1, 1]], [1, 1, 1, 1], "1110"),  # fourth: 1 - 1 = 0
    ([[0, 0, 1, 0, 1, 1]], [2, 1, 1, 2], "2111"),  # 2 - 1 = 1
    ([[0, 1, 1, 0, 1]], [1, 2, 1, 1], "121O"),  # 1 - 2 = -1: one group 11111 = 31, 31 + 48 = 'O'
    ([[0] * 16], [16], "`0"),  # 16 has bit 4: group 16 + 32 + 48 = '`', then a zero that carries the sign
    ([[1] * 40], [0, 40], "0X1"),  # 40 = 8 + 32: 8 + 32 + 48 = 'X', 1 + 48 = '1'
]


@pytest.mark.parametrize(("mask", "runs", "counts"), BY_HAND)
def test_matches_the_values_derived_by_hand(mask, runs, counts):
    mask_HW = np.array(mask, dtype=bool)
    rle = encode(mask_HW)
    assert rle == {"size": list(mask_HW.shape), "counts": counts}
    for form in (counts, counts.encode(), runs, tuple(runs), np.array(runs), np.array(runs, dtype=np.uint8)):
        assert np.array_equal(decode({"size": list(mask_HW.shape), "counts": form}), mask_HW)
        assert area({"size": mask_HW.shape, "counts": form}) == mask_HW.sum()


def reference_string(runs):
    """The loop of maskApi.c, transcribed: rleToString."""
    text = ""
    for i, run in enumerate(runs):
        x, more = run - (runs[i - 2] if i > 2 else 0), True
        while more:
            c = x & 0x1F
            x >>= 5
            more = x != -1 if c & 0x10 else x != 0
            text += chr((c | 0x20 if more else c) + 48)
    return text


@settings(max_examples=200, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_round_trip_and_the_string_of_the_c_code(mask_HW):
    rle = encode(mask_HW)
    runs, current = [0], False
    for pixel in mask_HW.T.ravel().tolist():
        if pixel != current:
            runs.append(0)
            current = pixel
        runs[-1] += 1
    assert rle["counts"] == reference_string(runs)
    assert np.array_equal(decode(rle), mask_HW)
    assert np.array_equal(decode({"size": rle["size"], "counts": runs}), mask_HW)
    assert area(rle) == mask_HW.sum()


def test_long_runs_and_views():
    mask_HW = np.zeros((3000, 2000), dtype=bool)
    mask_HW[100:2900:2, 7] = True
    mask_HW[:, 1000:] = True
    for view in (mask_HW, np.asfortranarray(mask_HW), mask_HW[::-1, ::2]):
        assert np.array_equal(decode(encode(view)), view)
    decoded = decode(encode(mask_HW))
    decoded[0, 0] = True  # writable, and nobody else's memory


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 200), array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=90))
def test_few_changes_and_many_are_written_alike(seed, pixels, shape):
    """Where a mask lies row by row few changes are sorted and many are read off the turned mask."""
    mask_HW = np.zeros(shape, dtype=bool)
    mask_HW.flat[np.random.default_rng(seed).integers(0, mask_HW.size, pixels)] = True
    assert encode(mask_HW) == encode(np.asfortranarray(mask_HW))


def test_numbers_of_every_length():
    """Runs of 15, 16, 511, 512 and so on, where another character begins, and differences of both signs."""
    edges = [edge + off for edge in (16, 512, 16384, 524288) for off in (-1, 0, 1)]
    runs = [7, *(run for edge in edges for run in (1, edge, 2, 1))]
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    assert encode(pixels[None])["counts"] == reference_string(runs)


def test_numbers_of_six_characters():
    runs = [1, 2**24 + 2, 1, 1]  # the fourth is written as 1 - (2**24 + 2)
    assert encode(np.repeat([False, True, False, True], runs)[None])["counts"] == reference_string(runs)


def test_empty_runs_inside_are_read():
    assert decode({"size": [1, 4], "counts": [1, 1, 0, 1, 1, 0]}).tolist() == [[False, True, True, False]]


MALFORMED = {
    "not a mapping": [2, 2],
    "no counts": {"size": [2, 2]},
    "no size": {"counts": "4"},
    "sum too small": {"size": [2, 2], "counts": "3"},
    "sum too large": {"size": [2, 2], "counts": "5"},
    "list sum too small": {"size": [2, 2], "counts": [1, 2]},
    "empty string": {"size": [2, 2], "counts": ""},
    "empty list": {"size": [2, 2], "counts": []},
    "negative run": {"size": [2, 2], "counts": [5, -1]},
    "negative run, compressed": {"size": [2, 2], "counts": "5O"},
    "negative by difference": {"size": [2, 2], "counts": "121J"},
    "bad character": {"size": [2, 2], "counts": "4!"},
    "not ascii": {"size": [2, 2], "counts": "４"},
    "surrogate": {"size": [2, 2], "counts": "\ud800"},
    "newline": {"size": [2, 2], "counts": "4\n"},
    "truncated": {"size": [2, 2], "counts": "4P"},
    "endless number": {"size": [2, 2], "counts": "P" * 1000 + "0"},
    "float run": {"size": [2, 2], "counts": [4.0]},
    "bool run": {"size": [1, 1], "counts": [True]},
    "nan run": {"size": [2, 2], "counts": [float("nan")]},
    "text run": {"size": [2, 2], "counts": ["4"]},
    "nested runs": {"size": [2, 2], "counts": [[4]]},
    "huge run": {"size": [2, 2], "counts": [2**70]},
    "run over 63 bits": {"size": [2, 2], "counts": [2**63, 4]},
    "runs that overflow to the sum": {"size": [2, 2], "counts": [2**62, 2**62, 2**62, 2**62, 4]},
    "uint64 that turns negative": {"size": [2, 2], "counts": np.array([2**64 - 1, 5], dtype=np.uint64)},
    "counts is a number": {"size": [2, 2], "counts": 4},
    "counts is a dict": {"size": [2, 2], "counts": {}},
    "size of one": {"size": [4], "counts": "4"},
    "size of three": {"size": [2, 2, 1], "counts": "4"},
    "size of text": {"size": "22", "counts": "4"},
    "float size": {"size": [2.0, 2], "counts": "4"},
    "bool size": {"size": [True, 4], "counts": "4"},
    "zero side": {"size": [0, 4], "counts": "0"},
    "negative sides": {"size": [-2, -2], "counts": "4"},
    "absurd size": {"size": [2**31, 2**31], "counts": "4"},
    "size of a million digits": {"size": [10**10000, 1], "counts": "4"},
    "over the cap": {"size": [MAX_PIXELS + 1, 1], "counts": [MAX_PIXELS + 1]},
}


@pytest.mark.parametrize("rle", MALFORMED.values(), ids=MALFORMED)
def test_malformed_is_a_value_error_of_one_line(rle):
    for read in (decode, area):
        with pytest.raises(ValueError, match="RLE") as error:
            read(rle)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    "mask",
    [np.zeros(4, bool), np.zeros((2, 2, 1), bool), np.zeros((2, 2), np.uint8), np.zeros((0, 2), bool), [[0, 1]]],
    ids=["1-D", "3-D", "uint8", "no rows", "list of ints"],
)
def test_encode_refuses(mask):
    with pytest.raises(ValueError, match=r"mask|size"):
        encode(mask)


sides = st.integers(-1, 2**33) | st.integers(1, 12)
numbers = st.integers() | st.integers(0, 20) | st.floats() | st.booleans() | st.none()
strings = st.text(alphabet=[chr(c) for c in range(48, 112)], max_size=12) | st.text(max_size=6) | st.binary(max_size=8)


@settings(max_examples=500, deadline=None)
@given(st.lists(sides, max_size=3) | numbers, strings | st.lists(numbers, max_size=6) | numbers)
def test_fuzz_gives_a_mask_or_a_value_error(size, counts):
    try:
        mask_HW = decode({"size": size, "counts": counts})
    except ValueError:
        return
    assert list(mask_HW.shape) == list(size)
    assert area(encode(mask_HW)) == area({"size": size, "counts": counts})
