"""The arms of the medical study, as data: what each learns from besides the labelled few.

Every arm starts from the same base, sees the same labelled pictures and spends the same: as many steps, and as many
pictures per step. The truth of the pool enters through the declared judge alone; `oracle` arms and `truth` are
ceilings.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from popen.medical.loss_choices import Supervised
from popen.objectives.pairs import MarginLoss
from popen.objectives.preference import conservative_loss, ipo_loss, robust_loss, sigmoid_loss
from popen.objectives.region_pairs import Margin, RegionObjective, image_mean, power, region_dpo, region_mean, total

FLIPS = {"sampler": "flips", "judge": "agreement", "consensus": True}
PEERS = FLIPS | {"sampler": "checkpoints_and_flips"}
MIXED = FLIPS | {"sampler": "dropout_and_flips"}
DROPOUT = {"sampler": "dropout", "judge": "truth"}


@dataclass(frozen=True)
class Arm:
    """One arm.

    Args:
        pool_labels: masks with which pool pictures join the labelled ones: the ensemble's consensus, the winners of
            the pairs, or the truth.
        pairs_from: pictures that pairs are mined on, by `choices` of `PairArguments`; `large` judges by size, a biased
            judge on purpose.
        preference, preference_weight, winner_weight: as in `MedicalTrainer`.
        winners_per_pair: how often a winner is shown for each time that its pair is.
        rounds: parts of the steps that begin with new pairs or labels; `keep_reference` then keeps the base's logits.
        teacher: the pool is for a mean teacher.
        peers: networks of other seeds, trained as the base on the same labelled few, that also give hypotheses.
        supervised: the loss on labels, as recipes name it and with their numbers.
    """

    pool_labels: Literal["none", "consensus", "winners", "truth"] = "none"
    pairs_from: Literal["none", "labelled", "pool"] = "none"
    choices: dict[str, Any] = field(default_factory=lambda: FLIPS)
    large: bool = False
    preference: RegionObjective | None = None
    preference_weight: float = 0.0
    winner_weight: float = 0.0
    winners_per_pair: int = 3
    rounds: int = 1
    keep_reference: bool = False
    teacher: bool = False
    peers: int = 0
    supervised: Supervised = "cross_entropy_dice"

    @property
    def uses_pool(self) -> bool:
        """Whether half of a step's pictures come from a second stream; else all are labelled ones."""
        return self.teacher or self.pool_labels != "none" or self.pairs_from != "none"


SIGMOID = partial(sigmoid_loss, beta=1.0)
DPO_SUM = partial(sigmoid_loss, beta=0.1)
BESIDE = 0.1  # λ_p beside winners: a mean over R alone pulls some 20 times as hard as cross-entropy's over the picture


def paired(margin: Margin = region_mean, loss: MarginLoss = SIGMOID, **options) -> Arm:
    """An arm with a preference objective on pool pairs; winners train it as well unless `pool_labels` is none."""
    defaults = {"pairs_from": "pool", "pool_labels": "winners", "preference_weight": BESIDE}
    return Arm(preference=partial(region_dpo, margin=margin, loss=loss), **(defaults | options))


alone = partial(paired, pool_labels="none", preference_weight=1.0)
RN_DPO = paired()
ORACLE = FLIPS | {"judge": "truth"}
MAPO = partial(alone, pairs_from="labelled", choices=DROPOUT)

BASELINES = {
    "supervised": Arm(),
    "pseudo_label": Arm(pool_labels="consensus"),
    "mean_teacher": Arm(teacher=True),
    "winner_sft": Arm(pool_labels="winners", choices=FLIPS | {"consensus": False}),
    "truth": Arm(pool_labels="truth"),
}
OBJECTIVES = {
    "dpo_sum": alone(total, DPO_SUM),
    "dpo_image_mean": alone(image_mean),
    "rn_dpo": alone(),
    "rn_dpo_winner": RN_DPO,
    "dpo_sum_winner": paired(total, DPO_SUM),
    "root_dpo_winner": paired(partial(power, alpha=0.5), partial(sigmoid_loss, beta=0.3)),
    "rn_cdpo_winner": paired(loss=partial(conservative_loss, beta=1.0, label_smoothing=0.2)),
    "rn_rdpo_winner": paired(loss=partial(robust_loss, beta=1.0, label_smoothing=0.2)),
    "rn_ipo_winner": paired(loss=partial(ipo_loss, beta=0.5)),
}
ROUNDS = {
    "pseudo_label_rounds": Arm(pool_labels="consensus", rounds=3),
    "rn_dpo_winner_rounds": replace(RN_DPO, rounds=3),
    "rn_dpo_winner_rounds_kept": replace(RN_DPO, rounds=3, keep_reference=True),
}
COMMITTEE = {  # what two more networks know of the pool; the labels are the same few
    "pseudo_label_peers": Arm(pool_labels="consensus", choices=PEERS, peers=2),
    "rn_dpo_winner_peers": paired(choices=PEERS, peers=2, winner_weight=1.0),
    "rn_dpo_winner_peers_light": paired(choices=PEERS, peers=2, preference_weight=0.02),
    "rn_dpo_winner_peers_rare": paired(choices=PEERS, peers=2, winners_per_pair=15),  # a pair takes a label's place
    # the truth judges where it is known, the committee labels where it is not
    "pseudo_label_peers_mapo": MAPO(
        pool_labels="consensus", preference_weight=BESIDE, choices=PEERS | {"judge": "truth"}, peers=2
    ),
    "dpo_sum_winner_peers": paired(total, DPO_SUM, choices=PEERS, peers=2, winner_weight=1.0),
}
JUDGES = {
    "rn_dpo_winner_mixed": paired(choices=MIXED),
    "rn_dpo_winner_certainty": paired(choices=FLIPS | {"judge": "certainty"}),
    "rn_dpo_winner_large": paired(large=True),
    "winner_sft_oracle": Arm(pool_labels="winners", choices=ORACLE),
    "rn_dpo_winner_oracle": paired(choices=ORACLE),
}
NOISE = {
    name: arm
    for rate in (0, 10, 20, 30, 40)
    for name, arm in {
        f"rn_dpo_flips_{rate}": alone(choices=ORACLE | {"flip_rate": rate / 100}),
        f"dpo_sum_flips_{rate}": alone(total, DPO_SUM, choices=ORACLE | {"flip_rate": rate / 100}),
        f"rn_dpo_winner_flips_{rate}": paired(choices=ORACLE | {"flip_rate": rate / 100}),
    }.items()
}
ON_LABELS = {
    "mapo": MAPO(),
    "mapo_light": MAPO(preference_weight=BESIDE),
    "mapo_light_rounds": MAPO(preference_weight=BESIDE, rounds=3),
    "mapo_light_flips": MAPO(preference_weight=BESIDE, choices=ORACLE),  # without dropout among the hypotheses
    "mapo_rounds": MAPO(rounds=3),
    "mapo_rounds_kept": MAPO(rounds=3, keep_reference=True),
    "svls": Arm(supervised="svls"),
    "geols": Arm(supervised="geols"),
    "fuzzy": Arm(supervised="fuzzy"),
    "intuitionistic": Arm(supervised="intuitionistic"),
    "pareto": Arm(supervised="pareto"),
    "epsilon_constraint": Arm(supervised="epsilon_constraint"),
}
ARMS = BASELINES | OBJECTIVES | ROUNDS | COMMITTEE | JUDGES | NOISE | ON_LABELS
