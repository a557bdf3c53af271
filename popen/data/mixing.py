"""Several data sets as one, at given rates: LISA trains at 9 : 3 : 3 : 1, PixelLM at 2 : 9 : 2 : 4.

The order is a function of sizes, rates and seed alone, so it is the same on any number of ranks, and a trainer may
shuffle or shard it like any other data set. Nothing is copied: rows stay where they are on disk.
"""

import hashlib
import math
from collections.abc import Sequence

import datasets
import numpy as np

from popen.data.safe_io import DataError
from popen.data.schema import load_split

MOST_ROWS = 10**8  # of an order, which is kept in memory


def load_mixture(
    paths: str | Sequence[str], split: str, rates: Sequence[float] | None = None, seed: int = 0
) -> datasets.Dataset:
    """Load `path/<split>` of one data set or several in the schema, mixed.

    Args:
        paths: the folder of a data set, which is loaded as `load_split` does it, or folders.
        rates: how often rows of each are drawn, in any unit; None is every row once.
        seed: fixes which rows of a set come when, and which come once more.
    Raises:
        DataError: a folder twice, rates that are not one positive number for each set, or what `load_split` refuses.
    """
    folders = [paths] if isinstance(paths, str) else list(paths)
    if not folders:
        raise DataError("dataset: no folder given; name at least one")
    if len(set(folders)) != len(folders):
        raise DataError(f"dataset: {folders} names a folder twice; raise its rate instead")
    if rates is not None and (len(rates) != len(folders) or not all(_is_rate(rate) for rate in rates)):
        raise DataError(f"rates: {list(rates)} for {len(folders)} data sets; give a positive number for each")
    parts = [load_split(folder, split) for folder in folders]
    if len(parts) == 1:
        return parts[0]
    order = mixture_order([len(part) for part in parts], rates or [len(part) for part in parts], seed)
    rows = datasets.concatenate_datasets(parts).select(order)
    digest = hashlib.sha256("/".join(part._fingerprint for part in parts).encode())
    digest.update(order.astype("<i8").tobytes())
    rows._fingerprint = digest.hexdigest()[:16]  # of what was written, not of how `datasets` was called
    return rows


def mixture_order(sizes: Sequence[int], rates: Sequence[float], seed: int) -> np.ndarray:
    """Order the rows of several sets so that every beginning of the order holds the rates.

    The order ends when the set that lasts longest has been seen once; the others are seen again, each pass in an order
    of its own. Among the first n rows a set of share p has n · p, give or take the number of sets.

    Args:
        sizes: rows of each set, positive; rates: positive, in any unit.
    Returns:
        int64 indices into the sets laid end to end.
    Raises:
        DataError: rates under which the order would have over `MOST_ROWS` rows.
    """
    shares = [rate / math.fsum(rates) for rate in rates]
    length = max(size / share for size, share in zip(sizes, shares, strict=True))
    if length > MOST_ROWS:
        raise DataError(
            f"rates: {list(rates)} for {list(sizes)} rows make over {MOST_ROWS} an epoch; bring them closer"
        )
    rows, places = [], []
    for number, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        count = max(size, round(length * share))
        rng = np.random.default_rng([seed, number])
        passes = [rng.permutation(size) for _ in range(math.ceil(count / size))]
        rows.append(np.concatenate(passes)[:count] + sum(sizes[:number]))
        places.append((np.arange(count) + 0.5) / count)  # spread evenly over the whole
    return np.concatenate(rows)[np.argsort(np.concatenate(places), kind="stable")]


def _is_rate(rate) -> bool:
    return isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < math.inf
