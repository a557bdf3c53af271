"""Mining of preferences, questions per second, against a plain loop over questions.

    python -m benchmarks.mining --out docs/results/bench/mining.json

Both mine rendered scenes with popen-tiny: answers drawn from the model, corrected, with the reference's
log-probabilities, and six noise-rectangle views of every picture, decoded and ranked. The loop asks one question at a
time and encodes the picture anew for each; it does not write what it finds, `mine` does. Both find the same answers.
"""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import popen
from benchmarks.figures import figure, parser, report
from benchmarks.shapes import device
from benchmarks.turns import take_turns
from popen.data.safe_io import DataError
from popen.data.scene_questions import sample
from popen.data.schema import Sample, load_split, write_dataset
from popen.errors import one_line_errors
from popen.lvlm.candidates import seg_row, text_rows
from popen.lvlm.hypotheses import view_hypotheses
from popen.lvlm.inference import forced_drafts
from popen.lvlm.loading import load_model
from popen.lvlm.mining import MiningArguments, load_mined, mine
from popen.preference.hallucination import name_pattern
from popen.preference.sampling import item_seed, noise_rectangle

MODEL = Path(popen.__file__).parent / "assets" / "popen-tiny"


def question_by_question(model, processor, rows, settings: MiningArguments) -> list[dict]:
    """The text preferences, mined with the segmentation preferences one question at a time."""
    vocabulary = name_pattern({name for names in rows["objects"][:] for name in names})
    found = []
    for row in range(len(rows)):
        whole = Sample.from_row(rows[row])
        for own in whole.questions:
            alone = replace(whole, questions=(own,))
            seeds = [item_seed(settings.seed, own.id)]
            found += text_rows(
                model, processor, [alone], row, 1, vocabulary, seeds=seeds, temperature=settings.temperature
            )[0]
            image = [whole.image]
            drafts = forced_drafts(model, processor, image, [own.question], [own.answer], batch_size=1)
            views = [
                noise_rectangle(
                    item_seed(settings.seed, whole.image_id, k), settings.min_area, settings.max_area, settings.sigma
                )
                for k in range(settings.candidates)
            ]
            stacked = view_hypotheses(model, processor, image, [own.question], drafts, [views], batch_size=1)[0]
            seg_row(model, alone, drafts[0].features, drafts[0].canvas, stacked, row, settings.margin)
    return found


def check_same(text, loop: list[dict]) -> int:
    """How many text preferences there are.

    Raises:
        DataError: the two ways mined different ones.
    """
    ours, theirs = ({row["id"]: (row["chosen"], row["rejected"]) for row in rows} for rows in (text, loop))
    if ours != theirs:
        raise DataError(f"{len(ours)} text preferences here and {len(theirs)} in the loop: they must be the same ones")
    return len(ours)


def main() -> None:
    args = parser(__doc__, turns=2).parse_args()
    model, processor = load_model(MODEL)
    model.to(device()).eval()
    settings = MiningArguments(seed=args.seed)
    pictures = 2 if args.toy else 256 if torch.cuda.is_available() else 24
    with TemporaryDirectory() as folder:
        write_dataset((sample(args.seed + k) for k in range(pictures)), f"{folder}/data", "train")
        rows = load_split(f"{folder}/data", "train")
        questions = sum(len(own) for own in rows["questions"])
        turn = iter(range(1000))
        loop: list[dict] = []

        def ours() -> None:
            number = next(turn)
            mine(model, processor, rows, range(len(rows)), str(MODEL), f"{folder}/mined{number}", settings)

        def theirs() -> None:
            loop[:] = question_by_question(model, processor, rows, settings)

        taken = take_turns({"loop": theirs, "ours": ours}, args.turns, "mining")
        same = check_same(load_mined(f"{folder}/mined0")[0], loop)
    own = figure("mining, questions/s against a loop over questions", taken, "loop", "ours", at_least=3.0)
    own.notes["questions_per_s"] = {name: questions / seconds for name, seconds in own.seconds.items()}
    own.notes["text_preferences"] = same
    report(args, [own], pictures=pictures, questions=questions)


if __name__ == "__main__":
    with one_line_errors("benchmarks.mining"):
        main()
