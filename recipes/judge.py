"""Turns a pool of pictures into data to learn from: a judge prefers one of the model's own answers to each question.

    python recipes/judge.py --config recipes/judge_tiny.yaml

The first `labelled` pictures keep their true answers and masks; of all others the truth serves the judge alone.
`output_dir` then holds a data set in popen's schema, to mine and to tune on as any other.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from tqdm.auto import tqdm

from popen.data.safe_io import DataError
from popen.data.schema import Sample, load_split, write_dataset
from popen.distributed.cores import use_all_cores
from popen.lvlm.judged_pool import JudgeArguments, judged_samples
from popen.lvlm.loading import load_model
from popen.recipe import run

CHUNK = 32  # pictures in memory at a time


@dataclass
class ScriptArguments:
    """Whose answers are judged, to which questions."""

    model_name_or_path: str = field(metadata={"help": "A popen model folder."})
    dataset: str = field(metadata={"help": "Folder of a data set in popen's schema; its truth makes the judge."})
    split: str = field(default="train", metadata={"help": "Split to judge, and name of the split that is written."})
    labelled: int = field(
        default=0, metadata={"help": "So many pictures, the first ones, are taken with their truth."}
    )
    max_rows: int | None = field(default=None, metadata={"help": "How many rows to take in all; all by default."})
    output_dir: str = field(default="runs/judged", metadata={"help": "Where the data set goes."})


def main(script: ScriptArguments, judging: JudgeArguments) -> None:
    use_all_cores()
    rows = load_split(script.dataset, script.split)
    last = len(rows) if script.max_rows is None else min(script.max_rows, len(rows))
    if not 0 <= script.labelled <= last:
        raise DataError(f"labelled = {script.labelled}: the split has {last} rows to take; give 0 to {last}")
    model, processor = load_model(script.model_name_or_path)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    outcomes: Counter[str] = Counter()

    def taken():
        yield from (Sample.from_row(rows[i]) for i in range(script.labelled))
        for start in tqdm(range(script.labelled, last, CHUNK), desc="judging", unit=f"{CHUNK} pictures"):
            pool = [Sample.from_row(rows[i]) for i in range(start, min(start + CHUNK, last))]
            judged, found = judged_samples(model, processor, pool, judging)
            outcomes.update(found)
            yield from judged

    written = write_dataset(taken(), script.output_dir, script.split)
    print(f"{len(written)} pictures, {script.labelled} of them labelled; questions of the pool: {dict(outcomes)}")


if __name__ == "__main__":
    run(main, ScriptArguments, JudgeArguments)
