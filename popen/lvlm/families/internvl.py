"""InternVL in the layout of transformers: one tile of the tower's size, pixel-shuffled picture tokens."""

from typing import Any, ClassVar

import torch
from transformers.utils import ModelOutput

from popen.lvlm.families.family import Family


class InternVL(Family):
    """The square is one tile."""

    image_options: ClassVar[dict[str, Any]] = {"do_resize": False, "crop_to_patches": False}

    def misfit(self, backbone_config, side: int) -> str | None:
        size = backbone_config.vision_config.image_size
        tower = size if isinstance(size, int) else size[0]
        if side != tower:
            return f"its vision tower takes {tower} pixels, not {side}; set image_size to that"
        return None

    def for_language(self, language: list[torch.Tensor], deep: tuple[list[torch.Tensor], ...]) -> ModelOutput:
        return ModelOutput(pooler_output=torch.stack(language))
