"""Shows a run of `recipes/medical.py`: its scores, its curves, its best and worst masks, and where it is unsure.

    python -m eval.medical_report --run runs/medical/rn_dpo_unet2d --data DATA --part dev --out runs/report

As `eval.medical`, of whose files it writes the same, with the truth, the prediction and the variance over the K
hypotheses of the run beside one another; how far these are apart (mean pairwise IoU); training curves; and dev Dice
at its peak and after the last step. Choose a part or a split that the run was not trained on.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from eval.medical import Inference, described, head, parser_of, score_split, write
from eval.medical_curves import curves, peak_and_last, read_stages
from eval.medical_hypotheses import hypotheses, read_pair_arguments
from eval.medical_metrics import ScoringProtocol
from eval.medical_pictures import case_picture
from eval.medical_splits import read_scored, true_masks
from popen.distributed.ranks import launched
from popen.errors import one_line_errors
from popen.medical.mining import Sampler
from popen.medical.pair_choices import PairArguments, sampler_of
from popen.medical.segment_file import load_segmenter
from popen.preference.diversity import pairwise_iou, variance_map


@dataclass(frozen=True)
class Spread:
    """Of K hypotheses by case their mean pairwise IoU, 0..1, and the pictures of the cases shown, by place."""

    count: int
    ious: dict[str, float]
    pictures: dict[str, Image.Image]


def main() -> None:
    args = parse()
    protocol = ScoringProtocol(args.tolerance, args.band)
    stages, pairs = read_stages(args.model), read_pair_arguments(args.model)
    inference = Inference(*load_segmenter(args.model), args.overlap, args.flips)
    settings = inference.segmenter.settings
    pairs = replace(pairs, sampler=args.sampler or pairs.sampler)
    sampler = sampler_of(pairs, settings.spatial_dims, settings.dropout, args.seed)
    references = read_scored(args, settings)
    with launched() as ranks:
        inference.segmenter.to(ranks.device)
        rows = score_split(inference, references, protocol, ranks, f"{args.data}, {args.part or args.split}")
        if ranks.rank > 0:
            return
    summary = described("eval.medical_report", args, inference, protocol, rows)
    spread = spread_over(inference, references, sampler, summary["shown"])
    summary |= {"sampler": pairs.sampler, "hypotheses": spread.count, "pairwise_iou": spread.ious}
    charts = {title.split(",")[0].lower().replace(" ", "_"): chart for title, chart in curves(stages).items()}
    report = head(summary, protocol) + training(stages, charts) + hypotheses_text(summary)
    write(Path(args.out), rows, summary, report, spread.pictures, **charts)
    print(report)


def spread_over(inference: Inference, references, sampler: Sampler, shown: dict[str, str]) -> Spread:
    """The hypotheses of all cases, one case in memory at a time."""
    ious, pictures, count = {}, {}, 0
    for reference in tqdm(references, desc="hypotheses", unit="case"):
        case = reference.load()
        masks = hypotheses(inference.segmenter, inference.preprocessing, sampler, case, inference.overlap)
        count, ious[case.case_id] = len(masks), pairwise_iou(masks)
        for place, case_id in shown.items():
            if case_id == case.case_id:
                truth, predicted = true_masks(case, inference.segmenter.settings), inference.segment(case)[0]
                most_unsure = variance_map(masks).amax(0).numpy()  # of all regions
                pictures[place] = case_picture(case.image_CHW, truth, predicted, case.spacing, most_unsure)
    return Spread(count, ious, pictures)


def training(stages, charts: dict[str, str]) -> str:
    """The section on how the training went."""
    lasted = " and ".join(f"{stage.name.replace('_', ' ')} of {stage.steps} steps" for stage in stages)
    images = " ".join(f"![{name.replace('_', ' ')}]({name}.svg)" for name in charts)
    return f"\n## Training\n\nOne after another: {lasted}.\n\n{images}\n\n{peak_and_last(stages)}"


def hypotheses_text(summary: dict) -> str:
    """The section on the cases shown and on the hypotheses of all of them."""
    ious = summary["pairwise_iou"]
    text = (
        f"\n## Cases\n\n{summary['hypotheses']} hypotheses by `sampler: {summary['sampler']}`; mean pairwise IoU "
        f"{np.mean(list(ious.values())):.3f} over {len(ious)} cases, from {min(ious.values()):.3f} to "
        f"{max(ious.values()):.3f}. From left to right: the truth, the prediction, and each pixel's variance over the "
        "hypotheses (white: half of them have it).\n"
    )
    for place, case_id in summary["shown"].items():
        text += (
            f"\n{place.capitalize()} case, {case_id}, pairwise IoU {ious[case_id]:.3f}:\n\n![{place}]({place}.png)\n"
        )
    return text


def parse():
    parser = parser_of(__doc__.splitlines()[0], "--run")
    samplers = get_args(PairArguments.__annotations__["sampler"])
    parser.add_argument("--sampler", choices=samplers, help="of the hypotheses; by default the run's own")
    return parser.parse_args()


if __name__ == "__main__":
    with one_line_errors("eval.medical_report"):
        main()
