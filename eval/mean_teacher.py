"""The mean teacher (Tarvainen and Valpola 2017) as a control of studies: a pool without labels, made to agree."""

import math
from copy import deepcopy

import torch

from popen.medical.views import flipped_rows
from popen.training.medical import MedicalTrainer

NOISE = 0.1  # standard deviation of what the student's pool pictures carry more than the teacher's
RAMP = 0.4  # share of the training over which the weight rises


class MeanTeacherTrainer(MedicalTrainer):
    """Labelled pictures as ever; on the rest the student's probabilities follow those of an average of its weights.

        L = L_true + λ(t) · mean (σ(z_student) − σ(z_teacher))²,   λ(t) = λ exp(−5 (1 − t / T)²) until T = 0.4

    The pool's examples are `Example(picture)`, in views like all others; softmax takes softmax's probabilities.

    Args:
        weight: λ. decay: of the teacher's average.
    """

    def __init__(self, *args, weight: float = 10.0, decay: float = 0.99, **kwargs):
        super().__init__(*args, **kwargs)
        self.weight, self.decay = weight, decay
        self.teacher = deepcopy(self.model).eval().requires_grad_(False)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        clean = inputs["pictures"]
        pool = torch.ones(len(clean), dtype=torch.bool, device=clean.device)
        pool[inputs["true_row"]] = False
        noisy = clean + NOISE * pool.view(-1, *[1] * (clean.dim() - 1)) * torch.randn_like(clean)
        loss, outputs = super().compute_loss(model, inputs | {"pictures": noisy}, True)
        views = [self.views[view] for view in inputs["views"].tolist()]
        with torch.no_grad():
            self._follow()
            taught = flipped_rows(self.teacher(clean).float(), views)[pool]
        gaps = self._probabilities(outputs["logits"][pool]) - self._probabilities(taught)
        consistency = gaps.square().mean() if pool.any() else loss * 0
        progress = min(1.0, self.state.global_step / max(RAMP * self.state.max_steps, 1))
        self.note(**{"teacher/consistency": consistency})
        loss = loss + self.weight * math.exp(-5 * (1 - progress) ** 2) * consistency
        return (loss, outputs) if return_outputs else loss

    def _follow(self) -> None:
        """Moves the teacher towards the student's weights of now; running statistics are copied."""
        for own, weight in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
            own.lerp_(weight.to(own.device), 1 - self.decay)
        for own, value in zip(self.teacher.buffers(), self.model.buffers(), strict=True):
            own.copy_(value)

    def _probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid() if self.model.settings.activation == "sigmoid" else logits.softmax(1)
