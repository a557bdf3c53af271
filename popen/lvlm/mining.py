"""Mining a data set with a model: shard by shard, on any number of processes, resumable; same seed, same bytes."""

import hashlib
import json
import os
import secrets
import shutil
import socket
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import datasets
import pyarrow
import torch
from pyarrow import parquet
from tqdm.auto import tqdm

from popen.data.preference_schema import SEG_FEATURES, TEXT_FEATURES
from popen.data.safe_io import DataError, read_json, settle_json, storage_error, write_json
from popen.data.schema import Sample
from popen.distributed.ranks import ALONE, Ranks
from popen.lvlm.candidates import TOO_LONG, seg_row, text_rows
from popen.lvlm.gallery import Gallery
from popen.lvlm.hypotheses import embedding_hypotheses, view_hypotheses
from popen.lvlm.inference import forced_drafts
from popen.lvlm.lengths import check_lengths, no_answer, true_answer
from popen.lvlm.out_of_memory import questions_at_a_time
from popen.preference.correcting import CORRECT, REFUSALS, correct_all_with_truth
from popen.preference.endpoint import Endpoint, EndpointCorrector
from popen.preference.hallucination import name_pattern
from popen.preference.mining import TIE
from popen.preference.reference import model_fingerprint
from popen.preference.sampling import item_seed, noise_rectangle

REPORT = "mining.json"
PATIENCE = ("corrector_workers", "corrector_timeout")  # change no row: a run that timed out goes on with more of it


@dataclass
class MiningArguments:
    """How candidates are sampled and ranked."""

    seed: int = field(default=0, metadata={"help": "Seed of every view and every noise."})
    views: Literal["rectangle", "embedding"] = field(
        default="rectangle", metadata={"help": "Candidates of P_s: noise-rectangle views, or embedding noise."}
    )
    streams: Literal["both", "text", "seg"] = field(
        default="both", metadata={"help": "What to mine: P_t and P_s, or one of them."}
    )
    seg_pictures: int | None = field(
        default=None,
        metadata={
            "help": "Mine P_s from this many pictures only, the first ones: every picture has masks to compare, "
            "few have an answer that is wrong."
        },
    )
    temperature: float = field(
        default=1.0,
        metadata={"help": "Temperature of the model's own answers; 0 is greedy and mines confident errors only."},
    )
    max_new_tokens: int = field(
        default=96,
        metadata={"help": "Longest answer of the model's own in tokens; with many targets 512, as PixelLM."},
    )
    corrector: Literal["truth", "openai"] = field(
        default="truth",
        metadata={
            "help": "Who corrects answers: the data set's own, or a model behind an OpenAI-compatible endpoint."
        },
    )
    base_url: str = field(
        default="https://api.openai.com/v1", metadata={"help": "The endpoint; its key is read from OPENAI_API_KEY."}
    )
    corrector_model: str | None = field(default=None, metadata={"help": "Name of the model behind the endpoint."})
    corrector_pictures: bool = field(
        default=True, metadata={"help": "Send pictures; without, only the names of the things in them."}
    )
    corrector_workers: int = field(default=8, metadata={"help": "Requests to the endpoint at a time, at least 1."})
    corrector_timeout: float = field(default=60.0, metadata={"help": "Seconds per request; more for a slow server."})
    candidates: int = field(default=6, metadata={"help": "K candidates per target beside the clean one, at least 1."})
    margin: float = field(default=0.02, metadata={"help": "Least IoU gap between ranks."})
    min_area: float = field(default=0.08, metadata={"help": "Least share of the picture a rectangle covers."})
    max_area: float = field(default=0.15, metadata={"help": "Largest share of the picture a rectangle covers."})
    sigma: float = field(default=0.5, metadata={"help": "Noise inside the rectangle, 1 = the full range of a colour."})
    embedding_noise: float = field(default=0.5, metadata={"help": "Embedding noise in units of the training spread."})
    shard_rows: int = field(default=256, metadata={"help": "Pictures per shard; a restart redoes at most one."})
    batch_size: int = field(default=64, metadata={"help": "Questions asked together."})

    def __post_init__(self):
        if self.candidates < 1:
            raise DataError(f"candidates = {self.candidates}: mining needs K >= 1 candidates per target")
        if self.seg_pictures is not None and self.seg_pictures < 1:
            raise DataError(f"seg_pictures = {self.seg_pictures}: give at least 1, or streams: text to mine none")
        if self.corrector == "openai" and not self.corrector_model:
            raise DataError("corrector_model is not set: name the model behind base_url that corrects answers")
        if self.corrector_workers < 1 or self.corrector_timeout <= 0:
            raise DataError(
                f"corrector_workers = {self.corrector_workers}, corrector_timeout = {self.corrector_timeout}: "
                "give at least 1 and more than 0"
            )
        if self.max_new_tokens < 1:
            raise DataError(f"max_new_tokens = {self.max_new_tokens}: give at least 1")
        if self.temperature < 0:
            raise DataError(f"temperature = {self.temperature}: give 0 (greedy) or more")


def mine(
    model, processor, rows, selection: range, model_name: str, output_dir, args: MiningArguments, ranks: Ranks = ALONE
) -> dict:
    """Writes `text/`, `seg/` and `mining.json` under `output_dir` and returns the report, on every process.

    Processes take every N-th of the shards that are missing; the first one merges. What is mined does not depend on
    N, only, by rounding, on how many threads a process has.

    Raises:
        DataError: `output_dir` holds shards of another model, data set or setting, or is not one for all processes; or
            a question does not fit.
        StorageError: the disk refused; finished shards stay readable.
    """
    if not selection:
        raise DataError(f"rows {selection.start} to {selection.stop}: nothing to mine, the split has {len(rows)} rows")
    output = Path(output_dir)
    _check_shared(output, ranks)
    there = range(selection.start, min(selection.stop, len(rows)))
    forced = there[:0] if args.streams == "text" else there[: args.seg_pictures]
    for part, words in ((forced, true_answer), (there[len(forced) :], no_answer)):
        if part:
            check_lengths(processor, rows.select(part), words, quiet=ranks.rank > 0)
    shards = {
        output / "shards" / f"{start:08d}": range(start, min(start + args.shard_rows, selection.stop))
        for start in range(selection.start, selection.stop, args.shard_rows)
    }
    identity = {
        "model": model_fingerprint(model_name),
        "data": rows._fingerprint,
        "rows": [selection.start, selection.stop],
        "settings": {name: value for name, value in asdict(args).items() if name not in PATIENCE},
    }
    missing = ranks.first(lambda: _claim(output, identity, shards))
    names = {name for names in rows["objects"][:] for name in names}
    vocabulary = name_pattern(names) if names else None
    corrector = correct_all_with_truth
    if args.corrector == "openai":
        where = Endpoint(
            args.base_url, args.corrector_model, args.corrector_pictures,
            timeout=args.corrector_timeout, workers=args.corrector_workers,
        )  # fmt: skip
        corrector = EndpointCorrector(where, output / "corrections")
    if ranks.rank > 0:
        datasets.disable_progress_bars()  # one process speaks
    for folder in tqdm(ranks.deal(missing), desc="mining", unit="shard", disable=ranks.rank > 0):
        shard = shards[folder]
        most = len(selection) if args.seg_pictures is None else args.seg_pictures
        seg_count = max(0, selection.start + most - shard.start)
        wanted = shard[:seg_count] if args.streams == "seg" else shard
        samples = [Sample.from_row(rows[i]) for i in wanted]
        kept = "finished shards are kept, but of other settings: give another output_dir"
        with questions_at_a_time("batch_size: ", args.batch_size, kept):
            text, seg, outcomes = _mine_shard(
                model, processor, samples, shard.start, vocabulary, corrector, args, seg_count
            )
        _write_shard(folder, text, seg, outcomes)
    counts = ranks.gather(corrector.counts if isinstance(corrector, EndpointCorrector) else None)
    spent = {"corrector": dict(sum(counts, Counter()))} if args.corrector == "openai" else {}
    name = Path(model_name).name if Path(model_name).is_absolute() else str(model_name)  # reports are shared
    return ranks.first(lambda: _merge(output, list(shards), identity | {"model_name": name} | spent))


def _mine_shard(
    model, processor, samples, first_row: int, vocabulary, corrector, args: MiningArguments, seg_count: int
):
    gallery = Gallery(model, processor)
    text, text_outcomes = [], []
    if args.streams != "seg":
        text, text_outcomes = _mine_answers(gallery, samples, first_row, vocabulary, corrector, args)
    seg, seg_outcomes = [], []
    if args.streams != "text" and seg_count:
        seg, seg_outcomes = _mine_targets(gallery, samples[:seg_count], first_row, args)
    return text, seg, {"text": dict(Counter(text_outcomes)), "seg": dict(Counter(seg_outcomes))}


def _mine_answers(gallery: Gallery, samples, first_row: int, vocabulary, corrector, args: MiningArguments):
    """Own answers drawn from the policy itself: greedy ones are wrong only where the model is sure.

    Pairs from greedy answers always reject what the model believes most, also where it is right to believe it; drawn
    ones reject both sides of every doubt as often as they are wrong.
    """
    sampling = {}
    if args.temperature > 0:
        seeds = [item_seed(args.seed, question.id) for sample in samples for question in sample.questions]
        sampling = {"seeds": seeds, "temperature": args.temperature}
    return text_rows(
        gallery.model,
        gallery.processor,
        samples,
        first_row,
        args.batch_size,
        vocabulary,
        corrector,
        gallery,
        max_new_tokens=args.max_new_tokens,
        **sampling,
    )


def _mine_targets(gallery: Gallery, samples, first_row: int, args: MiningArguments):
    model, processor = gallery.model, gallery.processor
    asked = [(s, q) for s in samples for q in s.questions]
    images, questions = [s.image for s, _ in asked], [q.question for _, q in asked]
    size = min(args.batch_size, 32)
    drafts = forced_drafts(model, processor, images, questions, [q.answer for _, q in asked], size, gallery=gallery)
    if args.views == "rectangle":
        seeds = [[item_seed(args.seed, s.image_id, k) for k in range(args.candidates)] for s, _ in asked]
        rectangles = [[noise_rectangle(k, args.min_area, args.max_area, args.sigma) for k in own] for own in seeds]
        hypotheses = view_hypotheses(model, processor, images, questions, drafts, rectangles, size)
    else:
        hypotheses = [
            embedding_hypotheses(model, draft, args.candidates, args.embedding_noise, item_seed(args.seed, q.id))
            for draft, (_, q) in zip(drafts, asked, strict=True)
        ]
    seg, seg_outcomes, first = [], [], 0
    for row, sample in enumerate(samples, first_row):
        here = slice(first, first + len(sample.questions))
        first = here.stop
        if here.start == here.stop:
            continue
        draft, stacked = drafts[here.start], torch.cat(hypotheses[here])
        mined, outcomes = seg_row(model, sample, draft.features, draft.canvas, stacked, row, args.margin)
        seg_outcomes += outcomes
        seg.append(mined)
    return seg, seg_outcomes


def _check_shared(output: Path, ranks: Ranks) -> None:
    """Each process leaves a file that the first one, which merges, must see: better now than when all is mined."""
    if ranks.world == 1:
        return
    word = ranks.first(lambda: secrets.token_hex(8))  # a file of an earlier run is none
    left = [output / f".{word}-{rank}" for rank in range(ranks.world)]
    own = left[ranks.rank]
    try:
        output.mkdir(parents=True, exist_ok=True)
        own.touch()
    except OSError as error:
        raise storage_error(error, output, "nothing was written") from error
    machines = ranks.gather(socket.gethostname())

    def look() -> None:
        for rank, file in enumerate(left):
            if not file.exists():
                raise DataError(
                    f"{output}: what rank {rank}, on {machines[rank]}, writes there is not seen on {machines[0]}; "
                    "give an output_dir that all machines share, or mine parts with first_row and max_rows"
                )

    try:
        ranks.first(look)
    finally:
        own.unlink(missing_ok=True)


def _claim(output: Path, identity: dict, shards: Collection[Path]) -> list[Path]:
    """Starts a folder for this identity, or checks that it was started for the same; the shards that are missing."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, output, "nothing was written") from error
    found = settle_json(output / "claim.json", identity)
    for key, value in identity.items():
        if found.get(key) != value:
            raise DataError(f"{output}: was mined with another {key}; delete it or choose another output_dir")
    for leftover in (output / "shards").glob("*.tmp"):
        shutil.rmtree(leftover)
    return [folder for folder in shards if not folder.is_dir()]


def _write_shard(folder: Path, text: list[dict], seg: list[dict], outcomes: dict) -> None:
    work = folder.with_suffix(".tmp")
    try:
        work.mkdir(parents=True)
        _dataset(text, TEXT_FEATURES).to_parquet(str(work / "text.parquet"))
        _dataset(seg, SEG_FEATURES).to_parquet(str(work / "seg.parquet"))
        (work / "outcomes.json").write_text(json.dumps(outcomes))
        os.rename(work, folder)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise storage_error(error, folder, "finished shards are intact, run again to go on") from error


def _merge(output: Path, folders: list[Path], identity: dict) -> dict:
    """One data set per stream out of all shards, and the report."""
    counts = {"text": Counter(), "seg": Counter()}
    for folder in folders:
        for stream, found in read_json(folder / "outcomes.json").items():
            counts[stream].update(found)
    report = dict(identity)
    for stream, features in (("text", TEXT_FEATURES), ("seg", SEG_FEATURES)):
        # not Dataset.from_parquet: it refuses a shard without rows
        tables = [parquet.read_table(folder / f"{stream}.parquet") for folder in folders]
        merged = datasets.Dataset(pyarrow.concat_tables(tables)).cast(features)
        digest = hashlib.sha256(json.dumps(merged["id"][:]).encode()).hexdigest()
        merged = datasets.Dataset(merged.data, info=merged.info, fingerprint=digest[:16])
        target, work = output / stream, output / f".{stream}.tmp"
        shutil.rmtree(work, ignore_errors=True)
        try:
            merged.save_to_disk(work, num_shards=1)  # a set without rows, too, can be loaded
            shutil.rmtree(target, ignore_errors=True)
            os.rename(work, target)
        except OSError as error:
            raise storage_error(error, target, "finished shards are intact, run again to go on") from error
        reasons = dict(sorted(counts[stream].items()))
        dropped = sum(reasons.get(reason, 0) for reason in (CORRECT, TOO_LONG, TIE, *REFUSALS))
        report[stream] = {"seen": sum(reasons.values()), "kept": sum(reasons.values()) - dropped, "reasons": reasons}
    write_json(output / REPORT, report)
    return report


def _dataset(rows: list[dict], features: datasets.Features) -> datasets.Dataset:
    columns = {name: [row[name] for row in rows] for name in features}
    return datasets.Dataset.from_dict(columns, features=features)


def load_mined(folder: str | Path) -> tuple[datasets.Dataset, datasets.Dataset, dict]:
    """P_t, P_s and the mining report of a folder that `mine` finished.

    Raises:
        DataError: it is missing or mining was not finished.
    """
    folder = Path(folder)
    if not (folder / REPORT).is_file():
        raise DataError(f"{folder}: no {REPORT}; mining was not finished there, run recipes/mine.py again to go on")
    report = read_json(folder / REPORT)
    return datasets.load_from_disk(str(folder / "text")), datasets.load_from_disk(str(folder / "seg")), report
