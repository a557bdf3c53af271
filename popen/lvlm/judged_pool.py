"""A pool of pictures without truth becomes data to learn from: a judge prefers one of the model's own answers.

The judge sees candidates side by side and says which is best, or that none is good; nobody draws a mask or writes a
word. Here it is an oracle, as the data set knows the truth, that may be wrong as often as asked for.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from popen.data import rle
from popen.data.safe_io import DataError
from popen.data.schema import Question, Sample
from popen.lvlm.hypotheses import decode_hypotheses, embedding_hypotheses
from popen.lvlm.inference import Draft, generate_drafts, restored_masks
from popen.preference.judging import iou_with_truth, judged_best, word_agreement
from popen.preference.sampling import item_seed

PREFERRED, NONE_GOOD = "preferred", "none_good"


@dataclass
class JudgeArguments:
    """What the judge chooses from, and how well."""

    answers: int = field(default=8, metadata={"help": "Answers per question: the greedy one and sampled ones."})
    masks: int = field(default=8, metadata={"help": "Masks per target of the preferred answer beside its own."})
    temperature: float = field(default=1.0, metadata={"help": "Of sampled answers, above 0."})
    embedding_noise: float = field(default=0.5, metadata={"help": "Of mask candidates, in units of the spread."})
    least_quality: float = field(
        default=0.5, metadata={"help": "Where no answer is as good as this, 0..1, the judge says so: none is taken."}
    )
    flips: float = field(default=0.0, metadata={"help": "Share of choices, 0..1, that fall on another candidate."})
    batch_size: int = field(default=128, metadata={"help": "Questions generated together."})
    seed: int = field(default=0, metadata={"help": "Seed of answers, masks and flips."})

    def __post_init__(self):
        if self.answers < 1 or self.masks < 1:
            raise DataError(f"answers = {self.answers}, masks = {self.masks}: a judge needs at least 1 of each")
        for name in ("least_quality", "flips"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} = {getattr(self, name)}: give a number in 0..1")
        if not self.temperature > 0:
            raise DataError(f"temperature = {self.temperature}: sampled answers need one above 0")


@torch.no_grad()
def judged_samples(model, processor, samples: list[Sample], args: JudgeArguments) -> tuple[list[Sample], Counter[str]]:
    """The samples with the judge's choices in place of their answers and masks, and what became of every question.

    Questions to which no answer was good are left out, and so are pictures without any question left.
    """
    asked = [(sample, question) for sample in samples for question in sample.questions]
    choices = _drawn_answers(model, processor, asked, args)
    judged: dict[str, list[Question]] = {sample.image_id: [] for sample in samples}
    outcomes: Counter[str] = Counter()
    for index, (sample, question) in enumerate(asked):
        own = {drafts[index].decoded.text: (drafts[index], logits[index]) for drafts, logits in reversed(choices)}
        candidates = [pair for pair in reversed(list(own.values())) if pair[0].decoded.incomplete == 0]
        valid = torch.from_numpy(~sample.decoded_ignore()).to(model.device)
        truth = torch.from_numpy(question.decoded_masks(*valid.shape)).to(model.device)
        found = [_quality(model, draft, logits, question, truth, valid) for draft, logits in candidates]
        if not found or max(found) < args.least_quality:
            outcomes[NONE_GOOD] += 1
            continue
        best = judged_best(found, args.flips, item_seed(args.seed, question.id, "answer"))
        draft = candidates[best][0]
        masks = _judged_masks(model, draft, question, truth, valid, args)
        encoded = tuple(rle.encode(mask) for mask in masks.cpu().numpy())
        decoded = draft.decoded
        judged[sample.image_id].append(
            replace(question, answer=decoded.text, phrases=tuple(decoded.phrases), masks=encoded)
        )
        outcomes[PREFERRED] += 1
    kept = [replace(s, questions=tuple(judged[s.image_id])) for s in samples if judged[s.image_id]]
    return kept, outcomes


def _drawn_answers(model, processor, asked: list, args: JudgeArguments) -> list[tuple[list[Draft], list]]:
    """Per draw the drafts and mask logits of all questions; the greedy draw first."""
    images, questions = [s.image for s, _ in asked], [q.question for _, q in asked]
    found = []
    for k in range(args.answers):
        seeds = [item_seed(args.seed, q.id, k) for _, q in asked]
        drawn = {"seeds": seeds, "temperature": args.temperature} if k else {}
        drafts = generate_drafts(model, processor, images, questions, batch_size=args.batch_size, **drawn)
        found.append((drafts, restored_masks(model, drafts)))
    return found


def _quality(model, draft: Draft, logits, question: Question, truth, valid) -> float:
    """How good the oracle finds an answer: IoU of its masks together, times the share of right names."""
    mask = (logits > model.config.mask_threshold).reshape(-1, *valid.shape).any(0)
    iou = float(iou_with_truth(mask[None], truth.any(0), valid))
    return iou * word_agreement(draft.decoded.phrases, question.phrases)


def _judged_masks(model, draft: Draft, question: Question, truth, valid, args: JudgeArguments) -> torch.Tensor:
    """The preferred mask of each of the answer's targets, bool (T, H, W); a target that is none keeps its own mask."""
    if len(draft.embeddings) == 0:
        return valid.new_zeros(0, *valid.shape)
    seed = item_seed(args.seed, question.id, "masks")
    hypotheses = embedding_hypotheses(model, draft, args.masks, args.embedding_noise, seed)
    features = tuple(level.expand(len(hypotheses), -1, -1, -1) for level in draft.features)
    logits = decode_hypotheses(model, hypotheses, features)
    masks_TKHW = torch.stack([draft.canvas.restore(own) for own in logits]) > model.config.mask_threshold
    ious = np.array([[iou_with_truth(masks, one, valid).tolist() for one in truth] for masks in masks_TKHW])
    chosen = masks_TKHW[:, 0].clone()
    if len(truth):
        for target, true in zip(*linear_sum_assignment(-ious[:, :, 0]), strict=True):
            best = judged_best(ious[target, true].tolist(), args.flips, item_seed(seed, target))
            chosen[target] = masks_TKHW[target, best]
    return chosen & valid
