"""Cards of preference sets and data sets: schema, counts, where it comes from, licence."""

import datasets
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from popen.data.schema import load_split
from popen.hub.card_facts import CardFacts, fenced, in_words, licence, origin, sections
from popen.hub.folder import SharedFolder
from popen.hub.preference_sets import read_preferences

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
MEANINGS = {
    "preferences": """\
`text` holds pairs of answers: `chosen` is preferred to `rejected`, `…_changed` marks the tokens that differ, and
`ref_…_logps` are the log-probabilities the mined model gives them. `seg` holds, for each target of a picture, IoUs
and embeddings of its candidate masks, which of them is superior, medium and inferior, and the pixels on which they
differ with the mined model's logits there. `row` is the picture's row in the mined split: pictures are not part of
this set.""",
    "dataset": """\
A row is a picture with its questions. In an `answer` a `<seg>` stands after each phrase that has a mask; `phrases` and
`masks` hold them in that order. `objects` is everything visible, `ignore` the pixels nobody labelled. Masks are COCO
run lengths.""",
}
BIAS = {
    "preferences": "The set shows how one model errs on one data set. It prefers what the judge named above prefers.",
    "dataset": "What is asked and named is what its annotators, or the programme that drew it, found worth asking.",
}


def dataset_card(repo_id: str, shared: SharedFolder, facts: CardFacts) -> tuple[DatasetCardData, str]:
    """Metadata with features and counts, and text with the schema; the rows' schema is checked on the way.

    Raises:
        DataError: the files do not hold what popen writes.
    """
    if shared.kind == "preferences":
        text, seg, report = read_preferences(shared.path)
        parts = {"text": {"train": text}, "seg": {"train": seg}}
        snippet = f'from popen.hub.pull import load_preferences\n\ntext, seg, report = load_preferences("{repo_id}")'
        counts, source = _preference_counts(report), _mined_from(report, facts)
        tags = ["popen", "preference", "dpo", "image-segmentation"]
    else:
        splits = sorted({name.split("/")[0] for name in shared.files if "/" in name})
        parts = {"default": {split: load_split(shared.path, split) for split in splits}}
        snippet = f'from popen.hub.pull import load_rows\n\nrows = load_rows("{repo_id}", "{splits[0]}")'
        counts, source = _dataset_counts(parts["default"]), ""
        tags = ["popen", "reasoning-segmentation", "image-segmentation"]
    rows = sum(len(split) for splits in parts.values() for split in splits.values())
    data = DatasetCardData(
        license=facts.licence,
        pretty_name=repo_id.split("/")[1],
        size_categories=next((name for most, name in SIZES if rows < most), "n>1M"),
        tags=tags,
        task_categories=["image-segmentation", "image-text-to-text"],
        viewer=False,  # the files are for `datasets.load_from_disk`, which the viewer does not read
    )
    DatasetInfosDict({part: _info(splits) for part, splits in parts.items()}).to_dataset_card_data(data)
    body = sections(
        repo_id.split("/")[1],
        f"A {'preference set' if shared.kind == 'preferences' else 'data set'} in the schema of popen, "
        "which fine-tunes segmentation models with preferences.",
        Use=f"{fenced('pip install popen-seg', 'bash')}\n\n{fenced(snippet, 'python')}",
        Rows=f"{counts}\n\n{MEANINGS[shared.kind]}",
        Schema="\n\n".join(_schema(part, next(iter(splits.values()))) for part, splits in parts.items()),
        Origin=f"Source: {in_words(facts.data)}.\n{source}\n\n{origin(facts, 'Made')}",
        Bias=BIAS[shared.kind],
        Licence=licence(facts),
    )
    return data, body


def _info(splits: dict[str, datasets.Dataset]) -> datasets.DatasetInfo:
    first = next(iter(splits.values()))
    counts = datasets.SplitDict()
    for name, split in splits.items():
        counts.add(datasets.SplitInfo(name, num_bytes=split.data.nbytes, num_examples=len(split)))
    return datasets.DatasetInfo(features=first.features, splits=counts)


def _schema(part: str, rows: datasets.Dataset) -> str:
    lines = [f"`{part}`", "", "| column | type |", "|---|---|"]
    return "\n".join(lines + [f"| `{name}` | `{_type(feature)}` |" for name, feature in rows.features.items()])


def _type(feature) -> str:
    """A feature in short: list of {index int32, …}."""
    if isinstance(feature, dict):
        return "{" + ", ".join(f"{name} {_type(inner)}" for name, inner in feature.items()) + "}"
    if isinstance(feature, datasets.List):
        return f"list of {_type(feature.feature)}"
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__.lower()


def _preference_counts(report: dict) -> str:
    lines = ["| stream | kept | seen | outcomes |", "|---|---|---|---|"]
    for stream in ("text", "seg"):
        found = report[stream]
        outcomes = ", ".join(f"{reason} {count}" for reason, count in found["reasons"].items())
        lines.append(f"| {stream} | {found['kept']} | {found['seen']} | {outcomes} |")
    return "\n".join(lines)


def _dataset_counts(splits: dict[str, datasets.Dataset]) -> str:
    lines = ["| split | pictures | questions | masks |", "|---|---|---|---|"]
    for name, split in splits.items():
        asked = [question for row in split.select_columns(["questions"]) for question in row["questions"]]
        lines.append(f"| {name} | {len(split)} | {len(asked)} | {sum(len(q['masks']) for q in asked)} |")
    return "\n".join(lines)


def _mined_from(report: dict, facts: CardFacts) -> str:
    settings = "\n".join(f"{name}: {value}" for name, value in report["settings"].items() if name != "base_url")
    return (
        f"Mined from the model {in_words(facts.base_model)} (sha256 of its weights `{report['model']}`), rows "
        f"{report['rows'][0]} to {report['rows'][1]} of the data with fingerprint `{report['data']}`, with\n\n"
        f"{fenced(settings, 'text')}"
    )
