"""Cards of models and adapters: what it is, how to ask it, how it was trained, what it scores, what it cannot do."""

from huggingface_hub import EvalResult, ModelCardData

from popen.data.safe_io import read_json
from popen.hub.card_facts import CardFacts, fenced, hub_id, in_words, licence, origin, sections
from popen.hub.folder import SharedFolder

METRICS = {
    "ciou": "cIoU",
    "giou": "gIoU",
    "no_target_acc": "no-target accuracy",
    "chair_i": "CHAIR_i",
    "exact": "exact answers",
}
LIMITS = """\
- It answers questions of the kind it was trained on. Ask about other things and it may name what is not there
  (CHAIR_i, where it is measured) or draw a mask for the wrong thing.
- It sees a picture at {side} × {side} pixels. Things of a few pixels at that size are lost.
- A target's confidence is the model's own estimate of the mask's IoU. It is not a probability that the answer is true.
- Not for decisions about people, for medicine or where a wrong mask does harm."""
BIAS = """\
It has the bias of its backbone and of its training data: what annotators found worth naming, in their language, in
pictures from where those were taken. Beyond the numbers above nobody has measured it."""
LEADS = {
    "model": "Answers a question about a picture in words and in masks.",
    "adapter": "A PEFT adapter: with its base model it answers a question about a picture in words and in masks.",
}


def model_card(repo_id: str, shared: SharedFolder, facts: CardFacts, remote_code: bool) -> tuple[ModelCardData, str]:
    """Metadata with a `model-index`, and text with a snippet that runs."""
    base, side = facts.base_model, None
    if shared.kind == "adapter":
        base = base or read_json(shared.path / "adapter_config.json").get("base_model_name_or_path")
    else:
        side = read_json(shared.path / "config.json").get("image_size")
    name = repo_id.split("/")[1]
    data = ModelCardData(
        base_model=hub_id(base),
        datasets=[facts.data] if hub_id(facts.data) else None,
        library_name="peft" if shared.kind == "adapter" else "popen",
        license=facts.licence,
        model_name=name,
        pipeline_tag="image-text-to-text",
        tags=["popen", "image-segmentation", "reasoning-segmentation"],
        eval_results=_results(facts) or None,
    )
    text = sections(
        name,
        LEADS[shared.kind] + " Tuned with popen, which fine-tunes segmentation models with preferences.",
        Use=_snippet(repo_id, shared, remote_code),
        Training=f"Base model: {in_words(base)}. Data: {in_words(facts.data)}.\n\n{origin(facts, 'Trained')}",
        Scores=_scores(facts),
        Limits=LIMITS.format(side=side or "the base model's"),
        Bias=BIAS,
        Licence=licence(facts),
    )
    return data, text


def _results(facts: CardFacts) -> list[EvalResult]:
    if facts.summary is None:
        return []
    where = str(facts.summary.get("data", "unknown")).rstrip("/").split("/")[-1]
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=facts.data if hub_id(facts.data) else where,
            dataset_name=where,
            dataset_split=facts.summary.get("split"),
            metric_type=metric,
            metric_name=f"{name} ({arm})",
            metric_value=round(numbers[metric], 4),
        )
        for arm, numbers in facts.arms.items()
        for metric, name in _metrics(facts).items()
        if numbers.get(metric) is not None
    ]


def _metrics(facts: CardFacts) -> dict[str, str]:
    """Names of the numbers that a card shows: a chosen few of `eval.segmentation`'s, all of a benchmark's."""
    if facts.evaluator == "eval.segmentation":
        return METRICS
    numbers = {key for own in facts.arms.values() for key, value in own.items() if isinstance(value, float)}
    return {key: METRICS.get(key, key) for key in sorted(numbers)}


def _scores(facts: CardFacts) -> str:
    if facts.summary is None:
        return "Not measured by its author."
    metrics = _metrics(facts)
    lines = [f"| arm | {' | '.join(metrics.values())} | questions |", "|" + "---|" * (len(metrics) + 2)]
    for arm, numbers in facts.arms.items():
        cells = [_cell(numbers, metric) for metric in metrics]
        lines.append(f"| {arm} | {' | '.join(cells)} | {numbers.get('n', '')} |")
    where = str(facts.summary.get("data", "unknown")).rstrip("/").split("/")[-1]
    lead = f"`{facts.evaluator}` on `{where}`, split `{facts.summary.get('split')}`; in brackets 95 % intervals."
    return f"{lead}\n\n" + "\n".join(lines)


def _cell(numbers, metric: str) -> str:
    value, interval = numbers.get(metric), numbers.get(f"{metric}_95")
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _snippet(repo_id: str, shared: SharedFolder, remote_code: bool) -> str:
    if shared.kind == "adapter":
        load = [
            "from PIL import Image",
            "from popen.hub.pull import load_adapter",
            "",
            f'model, processor = load_adapter("{repo_id}")  # add base="…" where the base model lies elsewhere',
        ]
    else:
        trust = ", trust_remote_code=True" if remote_code else ""
        load = [
            *([] if remote_code else ["import popen  # registers the model family"]),
            "from PIL import Image",
            "from transformers import AutoModelForImageTextToText, AutoProcessor",
            "",
            f'model = AutoModelForImageTextToText.from_pretrained("{repo_id}"{trust}).eval()',
            f'processor = AutoProcessor.from_pretrained("{repo_id}"{trust})',
        ]
    ask = [
        'answer = model.segment([Image.open("picture.png")], ["Where is the red ball?"], processor)[0]',
        "print(answer.text)",
        "for target in answer.targets:",
        "    print(target.phrase, target.mask.shape, target.confidence)",
    ]
    code = fenced("\n".join(load + ask), "python")
    return code if remote_code else f"{fenced('pip install popen-seg', 'bash')}\n\n{code}"
