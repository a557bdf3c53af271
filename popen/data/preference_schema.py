"""What mining writes: text preferences P_t and segmentation preferences P_s, with the reference's answers."""

from dataclasses import dataclass

import numpy as np
from datasets import Features, List, Value

TEXT_FEATURES = Features(
    {
        "id": Value("string"),
        "row": Value("int32"),  # the picture's row in the mined split
        "question": Value("string"),
        "chosen": Value("string"),
        "rejected": Value("string"),
        "kind": Value("string"),
        "hallucinated": Value("bool"),  # the rejected answer names a thing that is not in the picture
        "chosen_changed": List(Value("bool")),
        "rejected_changed": List(Value("bool")),
        "ref_chosen_logps": List(Value("float32")),
        "ref_rejected_logps": List(Value("float32")),
    }
)

SEG_FEATURES = Features(
    {
        "id": Value("string"),
        "row": Value("int32"),
        "targets": List(
            {
                "index": Value("int32"),  # among the picture's targets, in the order of its questions
                "ious": List(Value("float32")),  # candidate 0 is the clean embedding
                "superior": Value("int32"),
                "medium": Value("int32"),
                "inferior": Value("int32"),
                "embeddings": List(Value("float32")),
                "evidence": List(Value("float32")),
                "regions": List(
                    {
                        "rejected": Value("int32"),
                        "pixels": List(Value("int32")),
                        "signs": List(Value("int8")),
                        "ref_logits": List(Value("float32")),
                    }
                ),
            }
        ),
    }
)


@dataclass(frozen=True)
class Region:
    """Pixels of the flattened mask grid where superior and rejected masks differ: +1 where only the superior is on."""

    rejected: int
    pixels: np.ndarray
    signs: np.ndarray
    ref_logits: np.ndarray


@dataclass(frozen=True)
class TargetPreference:
    """Candidates of one target: IoUs (K+1,), embeddings (K+1, L, D), evidence (K+1, F), ranking and regions."""

    index: int
    ious: np.ndarray
    superior: int
    medium: int
    inferior: int
    embeddings: np.ndarray
    evidence: np.ndarray
    regions: tuple[Region, ...]

    @classmethod
    def from_row(cls, row: dict, scales: int) -> "TargetPreference":
        """Reads one entry of a P_s row's `targets`."""
        count = len(row["ious"])
        return cls(
            row["index"],
            np.asarray(row["ious"], np.float32),
            row["superior"],
            row["medium"],
            row["inferior"],
            np.asarray(row["embeddings"], np.float32).reshape(count, scales, -1),
            np.asarray(row["evidence"], np.float32).reshape(count, -1),
            tuple(
                Region(
                    region["rejected"],
                    np.asarray(region["pixels"], np.int64),
                    np.asarray(region["signs"], np.float32),
                    np.asarray(region["ref_logits"], np.float32),
                )
                for region in row["regions"]
            ),
        )

    def region(self, rejected: int) -> Region | None:
        """Where the superior mask and candidate `rejected`'s differ; None where they were not mined as a pair."""
        return next((region for region in self.regions if region.rejected == rejected), None)
