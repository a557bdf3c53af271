"""The arms of the medical study: what each learns from besides the labelled few, as data.

Every arm starts from the same base, sees the same labelled pictures and takes the same number of steps. The truth of
the pool enters through the declared judge alone; `oracle` and `truth` are ceilings.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from popen.medical.supervised import cross_entropy_dice, fuzzy, geols, pareto_guided, svls
from popen.objectives.pairs import MarginLoss
from popen.objectives.preference import conservative_loss, ipo_loss, robust_loss, sigmoid_loss
from popen.objectives.region_pairs import Margin, RegionObjective, image_mean, power, region_dpo, region_mean, total
from popen.training.medical import SupervisedLoss

JudgeName = Literal["agreement", "certainty", "regressor", "oracle", "large"]


PLAIN = partial(cross_entropy_dice, activation="sigmoid")
SIGMOID = partial(sigmoid_loss, beta=1.0)


@dataclass(frozen=True)
class Arm:
    """λ_p of `preference` and λ_w of the supervised loss on winners, on pairs that `judge` ordered.

    `pool` says what the pool brings: nothing, judged pairs, the consensus of flips as labels, the teacher's mean
    probabilities, or the truth. `flips` is the share of judgements that are wrong; `rounds` parts of the steps start
    with pairs mined anew, `kept_reference` then keeps the base as reference. `paired_labels`: the labelled pictures
    carry pairs ranked by their truth (MAPO).
    """

    pool: Literal["none", "judged", "pseudo", "teacher", "truth"] = "judged"
    judge: JudgeName = "agreement"
    preference: RegionObjective | None = None
    preference_weight: float = 0.0
    winner_weight: float = 0.0
    flips: float = 0.0
    rounds: int = 1
    kept_reference: bool = False
    paired_labels: bool = False
    supervised: SupervisedLoss = PLAIN


def dpo(margin: Margin = region_mean, loss: MarginLoss = SIGMOID, **options) -> Arm:
    defaults = {"preference_weight": 1.0, "winner_weight": 1.0}
    return Arm(preference=partial(region_dpo, margin=margin, loss=loss), **(defaults | options))


BAND = 3.0  # pixels to either side of the boundary that count as uncertain
CONSERVATIVE = partial(conservative_loss, beta=1.0, label_smoothing=0.2)
ROBUST = partial(robust_loss, beta=1.0, label_smoothing=0.2)
DPO_SUM = partial(sigmoid_loss, beta=0.1)
MAPO = partial(dpo, pool="none", judge="oracle", winner_weight=0.0, paired_labels=True)

ARMS = {
    "supervised": Arm(pool="none"),
    "pseudo_label": Arm(pool="pseudo", winner_weight=1.0),
    "mean_teacher": Arm(pool="teacher"),
    "winner_sft": Arm(winner_weight=1.0),
    # the preference alone
    "dpo_sum": dpo(total, DPO_SUM, winner_weight=0.0),
    "dpo_image_mean": dpo(image_mean, winner_weight=0.0),
    "rn_dpo": dpo(winner_weight=0.0),
    # beside supervised training on the winner
    "rn_dpo_winner": dpo(),
    "dpo_sum_winner": dpo(total, DPO_SUM),
    "root_dpo_winner": dpo(partial(power, alpha=0.5), partial(sigmoid_loss, beta=0.3)),
    "rn_cdpo_winner": dpo(loss=CONSERVATIVE),
    "rn_rdpo_winner": dpo(loss=ROBUST),
    "rn_ipo_winner": dpo(loss=partial(ipo_loss, beta=0.5)),
    "rn_dpo_winner_online": dpo(rounds=3),
    # other judges
    "rn_dpo_winner_certainty": dpo(judge="certainty"),
    "rn_dpo_winner_regressor": dpo(judge="regressor"),
    "rn_dpo_winner_large": dpo(judge="large"),
    "winner_sft_oracle": Arm(judge="oracle", winner_weight=1.0),
    "rn_dpo_winner_oracle": dpo(judge="oracle"),
    "truth": Arm(pool="truth", winner_weight=1.0),
    # wrong judgements, from an oracle so that the rate is the rate
    **{f"rn_dpo_flips_{rate}": dpo(judge="oracle", winner_weight=0.0, flips=rate / 100) for rate in (10, 20, 30, 40)},
    **{
        f"dpo_sum_flips_{rate}": dpo(total, DPO_SUM, judge="oracle", winner_weight=0.0, flips=rate / 100)
        for rate in (10, 20, 30, 40)
    },
    "rn_dpo_winner_flips_30": dpo(judge="oracle", flips=0.3),
    # pairs on the labelled pictures
    "mapo": MAPO(),
    "mapo_online": MAPO(rounds=3),
    "mapo_online_kept_reference": MAPO(rounds=3, kept_reference=True),
    # supervised losses
    "svls": Arm(pool="none", supervised=partial(svls, activation="sigmoid")),
    "geols": Arm(pool="none", supervised=partial(geols, activation="sigmoid")),
    "fuzzy": Arm(pool="none", supervised=partial(fuzzy, activation="sigmoid", band=BAND)),
    "pareto": Arm(pool="none", supervised=partial(pareto_guided, activation="sigmoid", band=BAND)),
}
