"""Our run-length codec against pycocotools' on the same masks: identical counts, and how long each takes.

    pip install pycocotools
    python benchmarks/rle.py --out docs/results/rle.json

3,000 masks of 480 × 640: blobs as objects are, rectangles, stripes, noise, empty and full ones. The two take turns,
also at going first, so that what else the machine does and fetching the mask from memory fall on both.
"""

import argparse
import time

import numpy as np
from pycocotools import mask as peer
from tqdm.auto import tqdm

from popen.data import rle
from popen.data.safe_io import write_json

HEIGHT, WIDTH = 480, 640


def blob(rng: np.random.Generator) -> np.ndarray:
    """A smooth shape: where a random wave around a centre is farther out than the pixel."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    cy, cx = rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH)
    angle, radius = np.arctan2(y - cy, x - cx), np.hypot(y - cy, x - cx)
    edge = rng.uniform(10, 200) * (
        1 + sum(rng.normal(0, 0.1) * np.cos(k * angle + rng.uniform(0, 6)) for k in (2, 3, 5))
    )
    return radius < edge


def rectangle(rng: np.random.Generator) -> np.ndarray:
    found = np.zeros((HEIGHT, WIDTH), bool)
    top, left = rng.integers(HEIGHT), rng.integers(WIDTH)
    found[top : top + rng.integers(1, HEIGHT), left : left + rng.integers(1, WIDTH)] = True
    return found


def stripes(rng: np.random.Generator) -> np.ndarray:
    return np.broadcast_to((np.arange(HEIGHT) // rng.integers(1, 20) % 2 == 0)[:, None], (HEIGHT, WIDTH))


def noise(rng: np.random.Generator) -> np.ndarray:
    return rng.random((HEIGHT, WIDTH)) < rng.random()


def flat(rng: np.random.Generator) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), bool(rng.integers(2)))


KINDS = {
    "blob": (blob, 2000),
    "rectangle": (rectangle, 500),
    "stripes": (stripes, 200),
    "noise": (noise, 200),
    "flat": (flat, 100),
}


def peer_encode(mask: np.ndarray) -> dict:
    return peer.encode(np.asfortranarray(mask.view(np.uint8)))


ENCODERS = {"ours": rle.encode, "peer": peer_encode}
DECODERS = {"ours": rle.decode, "peer": peer.decode}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="JSON to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, report = np.random.default_rng(args.seed), {"seed": args.seed, "size": [HEIGHT, WIDTH], "kinds": {}}
    for kind, (made, count) in KINDS.items():
        seconds = {"ours encode": 0.0, "peer encode": 0.0, "ours decode": 0.0, "peer decode": 0.0}
        equal = 0
        for number in tqdm(range(count), desc=kind, unit="mask"):
            mask = np.ascontiguousarray(made(rng))  # row by row, as masks come; both read column by column
            order = ("ours", "peer") if number % 2 else ("peer", "ours")
            written, back = {}, {}
            for codec in order:
                start = time.perf_counter()
                written[codec] = ENCODERS[codec](mask)
                seconds[f"{codec} encode"] += time.perf_counter() - start
            for codec in order:
                start = time.perf_counter()
                back[codec] = DECODERS[codec](written[codec])
                seconds[f"{codec} decode"] += time.perf_counter() - start
            same_counts = written["ours"]["counts"] == written["peer"]["counts"].decode()
            equal += same_counts and all(np.array_equal(back[codec], mask) for codec in order)
        report["kinds"][kind] = {
            "masks": count, "equal": equal,
            "encode_ratio": seconds["peer encode"] / seconds["ours encode"],
            "decode_ratio": seconds["peer decode"] / seconds["ours decode"],
            **{name.replace(" ", "_") + "_us": 1e6 * total / count for name, total in seconds.items()},
        }  # fmt: skip
        shown = report["kinds"][kind]
        print(
            f"{kind}: {equal} of {count} identical; encode {shown['encode_ratio']:.2f}x, "
            f"decode {shown['decode_ratio']:.2f}x pycocotools' speed"
        )
    if args.out:
        write_json(args.out, report)


if __name__ == "__main__":
    main()
