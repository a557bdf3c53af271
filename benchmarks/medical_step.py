"""What a preference step costs over a supervised one of as many pictures: time, and memory kept for the backward pass.

    python benchmarks/medical_step.py --out docs/results/medical_step.json

The same network takes both steps in turns, on pictures made here: 16 labelled ones, or 8 labelled ones and 8 with a
pair and a winner to learn. The reference's logits are part of the pair, so no second network runs.
"""

import argparse
import time
from dataclasses import asdict
from functools import partial
from statistics import median
from tempfile import TemporaryDirectory

import torch
from tqdm.auto import tqdm

from eval.claims import head_commit, machine
from popen.data.safe_io import write_json
from popen.medical.configuration import SegmenterConfig
from popen.medical.examples import Collator, Example, Streams
from popen.medical.mask_pairs import with_reference
from popen.medical.segmenter import Segmenter
from popen.medical.supervised import cross_entropy_dice
from popen.medical.views import flip_views
from popen.training.medical import MedicalArguments, MedicalTrainer

NETWORKS = {
    "unet, 2-D": SegmenterConfig(
        "unet", 2, 3, ("foreground",), "sigmoid", (128, 128), 0.1, options={"channels": (16, 32, 64, 128)}
    ),
    "transattunet, 2-D": SegmenterConfig(
        "transattunet", 2, 3, ("foreground",), "sigmoid", (128, 128), 0.1, options={"channels": (8, 16, 32, 64, 128)}
    ),
    "unet, 3-D": SegmenterConfig(
        "unet", 3, 1, ("foreground",), "sigmoid", (32, 48, 32), 0.1, options={"channels": (16, 32, 64, 128)}
    ),
}
PICTURES = 16


def balls(config: SegmenterConfig, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pictures of a noisy ball with their masks."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, size) for size in config.patch_size], indexing="ij")
    found = []
    for seed in range(count):
        draw = torch.Generator().manual_seed(seed)
        centre = 0.4 * torch.rand(len(axes), generator=draw) - 0.2
        mask = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) < 0.25
        noise = torch.randn(config.in_channels, *config.patch_size, generator=draw)
        found.append((mask.float() + 0.5 * noise, mask[None]))
    return found


def batches(model: Segmenter, views) -> tuple[dict, dict]:
    """A supervised batch and a preference batch of as many pictures."""
    pictures = balls(model.settings, PICTURES)
    labelled = [Example(picture, mask) for picture, mask in pictures]
    half = pictures[PICTURES // 2 :]
    moved = [(mask, mask.roll(4, -1), 0.1) for _, mask in half]
    pairs = with_reference(model, model.settings.activation, [picture for picture, _ in half], moved, views)
    paired = [Example(picture, None, pair) for (picture, _), pair in zip(half, pairs, strict=True)]
    collate, drawn = Collator(views), [number % len(views) for number in range(PICTURES)]
    both = [labelled, labelled[: PICTURES // 2] + paired]
    return tuple(collate([[row] for row in zip(own, drawn, strict=True)]) for own in both)


def kept_bytes(trainer: MedicalTrainer, batch: dict) -> int:
    """Bytes of the tensors that a step keeps for its backward pass, each storage once, and of the batch itself."""
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = (tensor, tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.compute_loss(trainer.model, batch)
    own = sum(value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))
    return own + sum(size for _, size in storages.values())


def step(trainer: MedicalTrainer, optimizer: torch.optim.Optimizer, batch: dict) -> float:
    start = time.perf_counter()
    loss = trainer.compute_loss(trainer.model, batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measured(config: SegmenterConfig, folder: str, repeats: int, name: str) -> dict:
    torch.manual_seed(0)
    model, views = Segmenter(config), flip_views(config.spatial_dims)
    supervised, preference = batches(model, views)
    settings = MedicalArguments(output_dir=folder, report_to="none", average=0)
    trainer = MedicalTrainer(
        model, settings, train_dataset=Streams([Example(*own) for own in balls(config, 1)], [], views),
        supervised=partial(cross_entropy_dice, activation=config.activation),
    )  # fmt: skip
    device = trainer.args.device
    both = [
        {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in own.items()}
        for own in (supervised, preference)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    model.train()
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in tqdm(range(repeats + 2), desc=name, unit="step of each"):
        for own, batch in zip(seconds, both, strict=True):
            spent = step(trainer, optimizer, batch)
            if repeat >= 2:  # the first ones find their kernels
                own.append(spent)
    memory = [kept_bytes(trainer, batch) for batch in both]
    ratios = sorted(p / s for s, p in zip(*seconds, strict=True))
    return {
        "config": asdict(config),
        "seconds": {"supervised": median(seconds[0]), "preference": median(seconds[1])},
        "kept_mb": {"supervised": memory[0] / 1e6, "preference": memory[1] / 1e6},
        "time_ratio": median(ratios),
        "time_ratio_quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
        "memory_ratio": memory[1] / memory[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="JSON to write")
    parser.add_argument("--repeats", type=int, default=20, help="steps of each kind and network")
    args = parser.parse_args()
    report = {"commit": head_commit(), "machine": machine(), "pictures": PICTURES, "repeats": args.repeats}
    with TemporaryDirectory() as folder:
        report["networks"] = {name: measured(config, folder, args.repeats, name) for name, config in NETWORKS.items()}
    write_json(args.out, report)
    for name, found in report["networks"].items():
        low, high = found["time_ratio_quartiles"]
        time_and_memory = f"{found['time_ratio']:.2f} [{low:.2f}, {high:.2f}] of the time, {found['memory_ratio']:.2f}"
        print(f"{name}: {time_and_memory} of the memory")


if __name__ == "__main__":
    main()
