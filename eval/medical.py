"""Scores a saved segmenter on a split of a medical data set, case by case and in millimetres.

    python -m eval.medical --model runs/polyps --data DATA --part dev --out runs/eval/polyps
    python -m eval.medical --model runs/polyps --data OTHER --split validation --out runs/eval/polyps

`--part` takes those cases of the DATA it was trained on that `recipes/medical.py` put there and named in splits.json:
dev, on which the threshold was found, or test, at which nothing looked. DATA/SPLIT holds `images/` with `masks/` or
`labels/`; of a DATA with a `dataset.json` (nnU-Net, the decathlon) the split is Tr or Ts. Writes `rows.jsonl` (a line
per case and region), `summary.json`, `report.md` and pictures of the worst, the median and the best case. `--flips`
averages over views mirrored along every axis, 4 of a picture, 8 of a volume, at the threshold that was found so. Under
a launcher the processes share the cases and give the same rows.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from eval.claims import head_commit, machine
from eval.medical_metrics import MedicalRow, ScoringProtocol, row_from_json, score_masks
from eval.medical_pictures import case_picture, extreme_cases
from eval.medical_splits import read_scored, scored_regions, true_masks
from eval.medical_summary import markdown, summarise
from eval.ranks import gather_rows, share
from eval.rows import write_rows
from popen.data.medical_case import Case, CaseReference
from popen.data.safe_io import storage_error, write_json
from popen.distributed.ranks import Ranks, launched
from popen.errors import one_line_errors
from popen.medical.inference import predict_logits
from popen.medical.segment_file import load_segmenter
from popen.medical.segmenter import Segmenter
from popen.medical.transforms import Preprocessing


@dataclass(frozen=True)
class Inference:
    """A segmenter and how its pictures are prepared, cut into patches and mirrored."""

    segmenter: Segmenter
    preprocessing: Preprocessing
    overlap: float
    flips: bool

    @property
    def threshold(self) -> float:
        """The logit that masks are cut at."""
        return self.segmenter.settings.threshold_of(self.flips)

    @torch.no_grad()
    def segment(self, case: Case) -> tuple[np.ndarray, np.ndarray]:
        """Masks bool and probabilities float32 in 0..1 on the case's own grid, (K, *spatial), no background."""
        config = self.segmenter.settings
        picture, record = self.preprocessing.apply(case)
        axes = range(config.spatial_dims) if self.flips else ()
        device = next(self.segmenter.parameters()).device
        logits = predict_logits(self.segmenter, picture.to(device), config.patch_size, self.overlap, axes)
        own = self.preprocessing.undo(logits, record)[None]
        probabilities = own.sigmoid() if config.activation == "sigmoid" else own.softmax(1)
        first = len(config.regions) - len(scored_regions(config))
        masks = self.segmenter.masks_from(own, self.flips)
        return masks[0, first:].cpu().numpy(), probabilities[0, first:].cpu().numpy()


def main() -> None:
    args = parser_of(__doc__.splitlines()[0], "--model").parse_args()
    protocol = ScoringProtocol(args.tolerance, args.band)
    inference = Inference(*load_segmenter(args.model), args.overlap, args.flips)
    references = read_scored(args, inference.segmenter.settings)
    with launched() as ranks:
        inference.segmenter.to(ranks.device)
        rows = score_split(inference, references, protocol, ranks, f"{args.data}, {args.part or args.split}")
        if ranks.rank > 0:
            return
    summary = described("eval.medical", args, inference, protocol, rows)
    report = head(summary, protocol)
    for place, case_id in summary["shown"].items():
        report += f"\n{place.capitalize()} case, {case_id}, the truth on the left:\n\n![{place}]({place}.png)\n"
    write(Path(args.out), rows, summary, report, draw(inference, references, summary["shown"]))
    print(markdown(summary, protocol))


def described(
    module: str, args: argparse.Namespace, inference: Inference, protocol: ScoringProtocol, rows: list[MedicalRow]
) -> dict:
    """Numbers of the rows, which cases are shown, and all that a reader needs to get them again."""
    origin = {
        "model": str(args.model),
        "data": str(args.data),
        "split": args.part or args.split,
        "flips": args.flips,
        "threshold": inference.threshold,
        "threshold_found_alike": not args.flips or inference.segmenter.settings.flips_threshold is not None,
        "protocol": asdict(protocol),
        "command": f"python -m {module} {shlex.join(sys.argv[1:])}",
        "commit": head_commit(),
        "machine": machine(),
        "shown": extreme_cases(rows),
    }
    return origin | summarise(rows, args.seed)


def head(summary: dict, protocol: ScoringProtocol) -> str:
    """What every report begins with: where its numbers come from, and their table."""
    found = "" if summary["threshold_found_alike"] else ", found without flips: train again for one with"
    return (
        f"# {summary['model']} on {summary['split']}\n\n`{summary['command']}`\n\nCommit {summary['commit']}; "
        f"{summary['machine']}; mask threshold {summary['threshold']:g}{found}.\n\n{markdown(summary, protocol)}"
    )


def score_split(
    inference: Inference, references: Sequence[CaseReference], protocol: ScoringProtocol, ranks: Ranks, where: str
) -> list[MedicalRow]:
    """The rows of all cases on the first process, none on the others; DataError names what is wrong with a case."""
    config = inference.segmenter.settings
    names = scored_regions(config)
    scored = []
    mine = [index for chunk in share(ranks, len(references)) for index in chunk]
    for index in tqdm(mine, desc="cases", unit="case", disable=ranks.rank > 0):
        case = references[index].load()
        truth = true_masks(case, config)
        masks, probabilities = inference.segment(case)
        rows = score_masks(masks, probabilities, truth, case.spacing, names, case.case_id, case.patient, protocol)
        scored += [row.as_json() for row in rows]
    expected = [f"{reference.case_id}/{name}" for reference in references for name in names]
    return [row_from_json(row, where) for row in gather_rows(ranks, scored, expected, where)]


def draw(inference: Inference, references: Sequence[CaseReference], shown: dict[str, str]) -> dict[str, Image.Image]:
    """A picture of each of the cases shown, by its place."""
    of_case = {reference.case_id: reference for reference in references}
    pictures = {}
    for place, case_id in shown.items():
        case = of_case[case_id].load()
        truth = true_masks(case, inference.segmenter.settings)
        pictures[place] = case_picture(case.image_CHW, truth, inference.segment(case)[0], case.spacing)
    return pictures


def write(
    out: Path, rows: list[MedicalRow], summary: dict, report: str, pictures: dict[str, Image.Image], **charts: str
) -> None:
    """Rows, summary, report, pictures and charts; StorageError where the disk refuses."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for place, picture in pictures.items():
            picture.save(out / f"{place}.png")
        for name, chart in charts.items():
            (out / f"{name}.svg").write_text(chart, encoding="utf-8")
        (out / "report.md").write_text(report, encoding="utf-8")
    except OSError as error:
        raise storage_error(error, out, "evaluate again") from error
    write_rows(out / "rows.jsonl", [row.as_json() for row in rows])
    write_json(out / "summary.json", summary)


def parser_of(what: str, model: str) -> argparse.ArgumentParser:
    """The options of an evaluation; `model` is the name of the one that gives the folder."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument(model, dest="model", required=True, help="folder of a segmenter and its preprocessing.json")
    parser.add_argument("--data", required=True, help="folder of the data set")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--part", help="labelled, pool, dev or test of splits.json, of the data it was trained on")
    which.add_argument("--split", default="dev", help="folder in DATA, or Tr or Ts of a dataset.json")
    parser.add_argument("--splits", help="file with the parts; by default splits.json beside the model")
    parser.add_argument("--out", required=True, help="folder for rows, summary, report and pictures")
    parser.add_argument("--flips", action="store_true", help="average over views mirrored along every axis")
    parser.add_argument("--overlap", type=float, default=0.5, help="share of a patch that its neighbour covers too")
    parser.add_argument("--tolerance", type=float, default=1.0, help="of NSD, mm")
    parser.add_argument("--band", type=float, default=2.0, help="mm to either side of the true boundary")
    parser.add_argument("--patient", help="regular expression with one group: the patient in a case's name")
    parser.add_argument("--seed", type=int, default=0, help="draws the intervals")
    return parser


if __name__ == "__main__":
    with one_line_errors("eval.medical"):
        main()
