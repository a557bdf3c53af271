"""What a family of vision-language backbones does its own way; the defaults are LLaVA-1.5's."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers.utils import ModelOutput

from popen.lvlm.canvas import Canvas


@dataclass(frozen=True)
class SeenPictures:
    """What the vision side makes of B pictures.

    Args:
        language: B tensors (P, H), what the language model reads.
        maps: the vision tower's hidden states at the layers that were asked for, each (B, C, h, w).
        deep: for each early layer of the language model that gets pictures too, B tensors (P, H).
        shown: where some picture tokens are hidden from the language model, B tensors (P,) bool.
    """

    language: list[torch.Tensor]
    maps: tuple[torch.Tensor, ...]
    deep: tuple[list[torch.Tensor], ...] = ()
    shown: list[torch.Tensor] | None = None


class Family:
    """A square picture of a fixed side in, picture tokens and maps out; it holds no state.

    A new family overrides what differs and is named in `popen.lvlm.families.FAMILIES`.
    """

    image_options: ClassVar[dict[str, Any]] = {"do_resize": False, "do_center_crop": False}
    canvas: ClassVar[type[Canvas]] = Canvas  # how pictures are placed on the square
    language_model = "language_model"  # the language model's name inside `backbone.model`
    square_tokens = True  # picture tokens are the rows of a square grid, and nothing else
    takes_flex = False  # its language model takes FlexAttention, though transformers' class does not say so

    def misfit(self, backbone_config, side: int) -> str | None:
        """Why a backbone cannot take square pictures of `side` pixels, and the way out; None where it can."""
        vision = backbone_config.vision_config
        if side != vision.image_size:
            return f"its vision tower takes {vision.image_size} pixels, not {side}; set image_size to that"
        return None

    def pixel_values(self, image_processor, squares: list) -> torch.Tensor:
        """B square pictures to the backbone's pixels, (B, …)."""
        return image_processor(squares, return_tensors="pt", **self.image_options)["pixel_values"]

    def pictures(self, pixel_values: torch.Tensor, backbone_config) -> torch.Tensor:
        """The backbone's pixels back as plain pictures (B, 3, side, side), for a pixel encoder beside the tower."""
        return pixel_values

    def see(self, backbone, pixel_values: torch.Tensor, side: int, layers: tuple[int, ...]) -> SeenPictures:
        """Runs the vision tower once; `layers` are the hidden states to give as maps."""
        tower = backbone.model.get_image_features(pixel_values, output_hidden_states=True, return_dict=True)
        return SeenPictures(list(tower.pooler_output), tuple(grid(tower.hidden_states[layer]) for layer in layers))

    def for_language(self, language: list[torch.Tensor], deep: tuple[list[torch.Tensor], ...]) -> ModelOutput:
        """Pictures in the form in which the backbone's forward takes them already encoded."""
        return ModelOutput(pooler_output=language)

    def positions(self, position_ids: torch.Tensor, input_ids: torch.Tensor, backbone_config) -> torch.Tensor:
        """Positions along each sequence (B, S) to those that the language model's rotary embedding takes."""
        return position_ids


def grid(states_BPC: torch.Tensor) -> torch.Tensor:
    """(B, P or 1+P, C) patch states to (B, C, √P, √P); a class token in front is dropped."""
    side = int((states_BPC.shape[1]) ** 0.5)
    patches = states_BPC[:, -side * side :]
    return patches.transpose(1, 2).unflatten(2, (side, side))
