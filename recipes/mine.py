"""Mines text preferences P_t and segmentation preferences P_s from a model and a data set with true answers.

    accelerate launch --config_file accelerate_config.yaml recipes/mine.py --config recipes/mine_tiny.yaml
    accelerate launch --multi_gpu --num_processes 8 recipes/mine.py --config recipes/mine_tiny.yaml
    torchrun --nproc_per_node 2 recipes/mine.py --config recipes/mine_tiny.yaml  # on CPUs

Work is done in shards that the processes share; an interrupted run goes on where it was, on any number of processes,
and the same seed gives the same rows.
`output_dir` then holds `text/`, `seg/` and `mining.json` with counts, reasons and the model's fingerprint.
"""

from dataclasses import dataclass, field

from popen.data.mixing import load_mixture
from popen.distributed.cores import use_all_cores
from popen.distributed.ranks import launched
from popen.lvlm.loading import load_model
from popen.lvlm.mining import MiningArguments, mine
from popen.recipe import run


@dataclass
class ScriptArguments:
    """What to mine from."""

    model_name_or_path: str = field(metadata={"help": "A popen model folder."})
    dataset: str | list[str] = field(metadata={"help": "Folder of a data set in popen's schema, or several."})
    rates: list[float] | None = field(
        default=None, metadata={"help": "How often rows of each data set are drawn; every row once by default."}
    )
    split: str = field(default="train", metadata={"help": "Split to mine; true answers and masks are read from it."})
    output_dir: str = field(default="runs/mined", metadata={"help": "Where the preference sets go."})
    first_row: int = field(default=0, metadata={"help": "First row to mine, of the split or the mixture."})
    max_rows: int | None = field(default=None, metadata={"help": "How many rows to mine; all by default."})


def main(script: ScriptArguments, mining: MiningArguments) -> None:
    use_all_cores()
    with launched() as ranks:
        model, processor = load_model(script.model_name_or_path)
        model.to(ranks.device).eval()
        rows = load_mixture(script.dataset, script.split, script.rates, mining.seed)
        last = len(rows) if script.max_rows is None else min(script.first_row + script.max_rows, len(rows))
        selection = range(script.first_row, last)
        report = mine(model, processor, rows, selection, script.model_name_or_path, script.output_dir, mining, ranks)
    if ranks.rank == 0:
        for stream in ("text", "seg"):
            print(f"{stream}: {report[stream]['kept']} kept of {report[stream]['seen']}; {report[stream]['reasons']}")


if __name__ == "__main__":
    run(main, ScriptArguments, MiningArguments)
