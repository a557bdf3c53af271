"""COCO run-length encoding of masks: strict, and byte for byte what pycocotools writes.

A mask is read column by column; `counts` are the lengths of its runs, the first one of zeros. The compressed form
writes each run (from the fourth on, its difference to the run two before) five bits a character, lowest first: plus
48, and plus 32 where another character follows.
pycocotools itself returns uninitialised memory, hangs or aborts on malformed input; here that is a ValueError.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

MAX_PIXELS = 2**28
LONGEST_GROUP = 6  # characters; 30 bits hold every difference between two runs of at most MAX_PIXELS
GROUPS = 5 * np.arange(LONGEST_GROUP)  # bits below each character


def encode(mask_HW: np.ndarray) -> dict[str, Any]:
    """Encode a mask as compressed COCO RLE.

    Args:
        mask_HW: bool (H, W), neither side 0, at most 2**28 pixels.
    Returns:
        {"size": [H, W], "counts": ascii str}.
    Raises:
        ValueError: not a bool array of two dimensions, or of a size out of range.
    """
    mask_HW = np.asarray(mask_HW)
    if mask_HW.ndim != 2 or mask_HW.dtype != np.bool_:
        raise ValueError(f"mask: expected bool (H, W), got {mask_HW.dtype} {mask_HW.shape}; threshold it first")
    height, width = _check_size(mask_HW.shape)
    first = [0, 0] if mask_HW[0, 0] else [0]  # counts start with zeros, if need be none of them
    runs = np.diff(np.concatenate([first, _changes(mask_HW), [mask_HW.size]]))
    return {"size": [height, width], "counts": _compress(runs)}


def decode(rle: Mapping[str, Any]) -> np.ndarray:
    """Decode COCO RLE, compressed (str or bytes) or not (a list of ints).

    Args:
        rle: {"size": [H, W], "counts": ...}; the counts must sum to H * W.
    Returns:
        bool (H, W), writable, stored column by column (Fortran order).
    Raises:
        ValueError: anything malformed; one line saying what.
    """
    height, width, runs = _read(rle)
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return pixels.reshape(width, height).T


def area(rle: Mapping[str, Any]) -> int:
    """Count the pixels of a mask without decoding it; raises ValueError where `decode` does."""
    return int(_read(rle)[2][1::2].sum())


def _read(rle: Mapping[str, Any]) -> tuple[int, int, np.ndarray]:
    """Height, width and runs, checked."""
    if not isinstance(rle, Mapping) or "size" not in rle or "counts" not in rle:
        raise ValueError('RLE: expected {"size": [height, width], "counts": ...}')
    height, width = _check_size(rle["size"])
    counts = rle["counts"]
    runs = _decompress(counts) if isinstance(counts, str | bytes) else _check_list(counts)
    if runs.size == 0 or runs.min() < 0 or runs.max() > height * width:
        raise ValueError(f"RLE counts: empty, or a run outside 0..{height * width} for size {height}x{width}")
    if runs.sum() != height * width:
        raise ValueError(f"RLE counts: sum to {runs.sum()} and not to {height}x{width} = {height * width} pixels")
    return height, width, runs


def _check_size(size: Any) -> tuple[int, int]:
    if not isinstance(size, list | tuple | np.ndarray) or len(size) != 2 or not all(_is_int(side) for side in size):
        raise ValueError("RLE size: expected two whole numbers [height, width]")
    height, width = int(size[0]), int(size[1])
    # each side first: the product of two monstrous sides is slow to compute and slower to print
    if not (1 <= height <= MAX_PIXELS and 1 <= width <= MAX_PIXELS and height * width <= MAX_PIXELS):
        raise ValueError(f"RLE size: sides must be at least 1 and the area at most {MAX_PIXELS} pixels")
    return height, width


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_list(counts: Any) -> np.ndarray:
    if not isinstance(counts, list | tuple | np.ndarray) or not all(_is_int(run) for run in counts):
        raise ValueError("RLE counts: expected a string or a list of whole numbers")
    runs = np.asarray(counts)
    if runs.size and runs.dtype.kind not in "iu":
        raise ValueError("RLE counts: a number does not fit 64 bits")
    if runs.dtype.kind == "u" and runs.size and runs.max() > MAX_PIXELS:  # before the sign could flip
        raise ValueError(f"RLE counts: a run is longer than {MAX_PIXELS} pixels")
    return runs.astype(np.int64)


def _changes(mask_HW: np.ndarray) -> np.ndarray:
    """Where, counted column by column, a pixel differs from the one before it; ascending.

    They are looked for row by row, as masks lie in memory: turning the mask first would take longer than all the rest.
    """
    height, width = mask_HW.shape
    row, column = np.divmod(np.flatnonzero(mask_HW[1:] != mask_HW[:-1]), width)
    at_the_top = np.flatnonzero(mask_HW[0, 1:] != mask_HW[-1, :-1]) + 1
    return np.sort(np.concatenate([column * height + row + 1, at_the_top * height]))


def _compress(runs: np.ndarray) -> str:
    values = runs.astype(np.int64)
    values[3:] -= runs[1:-2]
    group_R6 = values[:, None] >> GROUPS
    code_R6, left_R6 = group_R6 & 0x1F, group_R6 >> 5
    # done when what is left is only the sign that bit 4 of this group already carries
    last_R1 = np.where(code_R6 & 0x10, left_R6 == -1, left_R6 == 0).argmax(1)[:, None]
    more_R6, kept_R6 = np.arange(LONGEST_GROUP) < last_R1, np.arange(LONGEST_GROUP) <= last_R1
    return (code_R6 + (more_R6 << 5) + 48)[kept_R6].astype(np.uint8).tobytes().decode("ascii")


def _decompress(counts: str | bytes) -> np.ndarray:
    try:
        data = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError:
        raise ValueError("RLE counts: characters that are not ascii") from None
    codes = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    if codes.size == 0:
        return codes
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError("RLE counts: characters outside '0'..'o'")
    last = np.flatnonzero((codes & 0x20) == 0)  # the character that ends each number
    if last.size == 0 or last[-1] != codes.size - 1:
        raise ValueError("RLE counts: truncated in the middle of a number")
    start = np.concatenate([[0], last[:-1] + 1])
    length = last - start + 1
    if length.max() > LONGEST_GROUP:
        raise ValueError(f"RLE counts: a number of more than {LONGEST_GROUP} characters")
    shift = 5 * (np.arange(codes.size) - np.repeat(start, length))
    runs = np.add.reduceat((codes & 0x1F) << shift, start)
    runs -= np.where(codes[last] & 0x10, np.int64(1) << (5 * length), 0)  # two's complement of 5 * length bits
    runs[1::2] = np.cumsum(runs[1::2])  # undo the differences; the first run stands alone
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
