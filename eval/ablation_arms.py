"""The arms of the study of preference objectives: what each is made of, as data.

Every arm sees the same pictures and the same pairs in the same order, for the same number of steps; the control is the
same training without preferences.
"""

from dataclasses import dataclass, replace
from functools import partial

from popen.objectives.pairs import (
    SegObjective,
    TextObjective,
    seg_embedding_dpo,
    seg_info_nce,
    seg_mask_dpo,
    seg_mask_offset,
    seg_medium_triplet,
    seg_triplet,
    text_dpo,
    text_simpo,
)
from popen.objectives.preference import conservative_loss, hinge_loss, ipo_loss, robust_loss, sigmoid_loss
from popen.objectives.scores import (
    changed_token_logps,
    embedding_cosine_margin,
    embedding_distance_margin,
    embedding_squared_margin,
    mean_weighted_token_logps,
    weighted_token_logps,
)

BETA = 0.1  # of text margins
SEG_BETA = 1.0
SMOOTHING = 0.1


@dataclass(frozen=True)
class Arm:
    """λ_t L_t + λ_s L_s beside the anchor; λ = 0 leaves a part out.

    `localise_share` is that of curriculum stage 1, whose L_s is `seg`; `refine` is that of stage 2 where it is another
    one. With `gap_quantile` q stage 1 sees pairs above the q-quantile of its IoU gaps, stage 2 those below its own.
    After each of `rounds` equal parts of the steps preferences are mined again from the model as it then is.
    """

    text: TextObjective | None = None
    seg: SegObjective | None = None
    refine: SegObjective | None = None
    text_weight: float = 0.0
    seg_weight: float = 0.0
    localise_share: float = 0.5
    gap_quantile: float | None = None
    rounds: int = 1


PLAIN = partial(weighted_token_logps, weight=1.0)
DDPO = partial(weighted_token_logps, weight=1.1)  # RLHF-V's released weight
MEAN = partial(mean_weighted_token_logps, weight=1.0)
SIGMOID = partial(sigmoid_loss, beta=BETA)
SEG_SIGMOID = partial(sigmoid_loss, beta=SEG_BETA)


def text(score, loss, weight: float = 0.1) -> Arm:
    return Arm(text=partial(text_dpo, score=score, loss=loss), text_weight=weight)


def seg(objective: SegObjective, weight: float = 0.1, **options) -> Arm:
    return Arm(seg=objective, seg_weight=weight, **options)


MASK = partial(seg_mask_dpo, loss=SEG_SIGMOID)
POPEN = Arm(text=partial(text_dpo, score=PLAIN, loss=SIGMOID), seg=MASK, text_weight=0.1, seg_weight=0.03)

ARMS = {
    "continued_sft": Arm(),
    # losses on the text margin
    "text_sigmoid": text(PLAIN, SIGMOID),
    "text_hinge": text(PLAIN, partial(hinge_loss, beta=BETA)),
    "text_ipo": text(MEAN, partial(ipo_loss, beta=1.0)),
    "text_cdpo": text(PLAIN, partial(conservative_loss, beta=BETA, label_smoothing=SMOOTHING)),
    "text_rdpo": text(PLAIN, partial(robust_loss, beta=BETA, label_smoothing=SMOOTHING)),
    "text_simpo": Arm(text=partial(text_simpo, beta=2.0, gamma=0.5), text_weight=0.1),
    # scores of the tokens
    "text_ddpo": text(DDPO, SIGMOID),
    "text_ddpo_5": text(partial(weighted_token_logps, weight=5.0), SIGMOID),
    "text_changed_only": text(changed_token_logps, SIGMOID),
    # losses on the mask margin
    "seg_mask": seg(MASK),
    "seg_mask_hinge": seg(partial(seg_mask_dpo, loss=partial(hinge_loss, beta=SEG_BETA))),
    "seg_mask_ipo": seg(partial(seg_mask_dpo, loss=partial(ipo_loss, beta=SEG_BETA))),
    "seg_mask_offset": seg(partial(seg_mask_offset, beta=SEG_BETA, alpha=1.0)),
    # scores of the embedding
    "seg_cosine": seg(partial(seg_embedding_dpo, margin=embedding_cosine_margin, loss=SEG_SIGMOID)),
    "seg_distance": seg(partial(seg_embedding_dpo, margin=embedding_distance_margin, loss=SEG_SIGMOID)),
    "seg_squared": seg(partial(seg_embedding_dpo, margin=embedding_squared_margin, loss=SEG_SIGMOID)),
    "seg_triplet": seg(partial(seg_triplet, margin=1.0)),
    "seg_info_nce": seg(partial(seg_info_nce, temperature=0.1)),
    # curriculum; that of `seg_mask` is R1, superior against inferior and then against medium
    "seg_mask_localise": seg(MASK, localise_share=1.0),
    "seg_mask_refine": seg(MASK, localise_share=0.0),
    "seg_mask_quantile": seg(MASK, gap_quantile=0.5),
    "seg_triplet_r2": seg(partial(seg_triplet, margin=1.0), refine=partial(seg_medium_triplet, margin=1.0)),
    # both
    "popen": POPEN,
    "popen_refreshed": replace(POPEN, rounds=2),
}
