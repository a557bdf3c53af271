"""What a preference step costs over a supervised one of as many pictures: time, and memory kept for the backward pass.

    python -m benchmarks.medical_step --out docs/results/bench/medical_step.json

The same network takes both steps in turns, on pictures made here: 16 labelled ones, or 8 labelled ones and 8 with a
pair and a winner to learn. The reference's logits are part of the pair, so no second network runs.
"""

from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory

import torch

from benchmarks.figures import Figure, figure, parser, report
from benchmarks.rates import kept_bytes
from benchmarks.turns import take_turns
from popen.errors import one_line_errors
from popen.medical.configuration import SegmenterConfig
from popen.medical.examples import Collator, Example, Streams
from popen.medical.mask_pairs import with_reference
from popen.medical.segmenter import Segmenter
from popen.medical.supervised import cross_entropy_dice
from popen.medical.views import flip_views
from popen.training.medical import MedicalArguments, MedicalTrainer

BAR = 1.15
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


def figures_of(name: str, config: SegmenterConfig, folder: str, turns: int) -> list[Figure]:
    """Time and memory of a preference step over a supervised one's, on one network."""
    torch.manual_seed(0)
    model, views = Segmenter(config), flip_views(config.spatial_dims)
    labelled, paired = batches(model, views)
    trainer = MedicalTrainer(
        model, MedicalArguments(output_dir=folder, report_to="none", average=0),
        train_dataset=Streams([Example(*own) for own in balls(config, 1)], [], views),
        supervised=partial(cross_entropy_dice, activation=config.activation),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    model.train()

    def loss(batch: dict) -> torch.Tensor:
        return trainer.compute_loss(model, batch)

    def step(batch: dict) -> None:
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()

    both = {"supervised": trainer._prepare_inputs(labelled), "preference": trainer._prepare_inputs(paired)}
    taken = take_turns({side: partial(step, batch) for side, batch in both.items()}, turns, name, warm_up=2)
    kept = {side: kept_bytes(partial(loss, batch)) + held(batch) for side, batch in both.items()}
    memory = kept["preference"] / kept["supervised"]
    return [
        figure(f"{name}: time of a preference step / supervised", taken, "preference", "supervised", at_most=BAR),
        Figure(f"{name}: memory kept for backward", memory, memory, memory, 1, at_most=BAR, notes={"bytes": kept}),
    ]


def held(batch: dict) -> int:
    return sum(value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))


def main() -> None:
    args = parser(__doc__, turns=12).parse_args()
    found = []
    with TemporaryDirectory() as folder:
        for name, config in NETWORKS.items():
            size = tuple(side // 2 for side in config.patch_size) if args.toy else config.patch_size
            found += figures_of(name, replace(config, patch_size=size), folder, args.turns)
    report(args, found, pictures=PICTURES)


if __name__ == "__main__":
    with one_line_errors("benchmarks.medical_step"):
        main()
