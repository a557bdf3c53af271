"""SmolVLM: a SigLIP tower and pixel-shuffled picture tokens; a picture is never split."""

from typing import Any, ClassVar

import torch

from popen.lvlm.families.family import Family, SeenPictures, grid


class SmolVLM(Family):
    """The square is one picture at the tower's own size."""

    image_options: ClassVar[dict[str, Any]] = {"do_resize": False, "do_image_splitting": False, "do_pad": False}
    language_model = "text_model"

    def pixel_values(self, image_processor, squares: list) -> torch.Tensor:
        """B pictures to (B, 3, side, side)."""
        return super().pixel_values(image_processor, [[square] for square in squares])[:, 0]

    def see(self, backbone, pixel_values: torch.Tensor, side: int, layers: tuple[int, ...]) -> SeenPictures:
        tower = backbone.model.get_image_features(pixel_values[:, None], output_hidden_states=True, return_dict=True)
        return SeenPictures(list(tower.pooler_output), tuple(grid(tower.hidden_states[layer]) for layer in layers))
