"""Writes an untrained popen-tiny for `recipes/sft.py` to train.

    python recipes/init_tiny.py --dataset runs/scenes --output_dir runs/popen-tiny-init

The tokenizer is trained on the questions and answers of the data set's split. A few seconds.
"""

from dataclasses import dataclass, field

from popen.data.schema import load_split
from popen.lvlm.tiny import build_tiny
from popen.recipe import run


@dataclass
class InitArguments:
    """Arguments of the recipe."""

    dataset: str = field(metadata={"help": "Folder of a data set in popen's schema."})
    split: str = field(default="train", metadata={"help": "Split whose words the tokenizer learns."})
    output_dir: str = field(default="runs/popen-tiny-init", metadata={"help": "Where the model folder goes."})
    seed: int = field(default=0, metadata={"help": "Seed of the weights."})


def main(args: InitArguments) -> None:
    rows = load_split(args.dataset, args.split).select_columns(["questions"])
    corpus = [f"{q['question']} {q['answer']}" for row in rows for q in row["questions"]]
    model, processor = build_tiny(corpus, args.seed)
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{args.output_dir}: {millions:.2f} M parameters, vocabulary {len(processor.tokenizer)}")


if __name__ == "__main__":
    run(main, InitArguments)
