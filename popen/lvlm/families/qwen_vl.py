"""Qwen2.5-VL and Qwen3-VL: patches in merge blocks, and positions with three axes (time, row, column)."""

from typing import Any, ClassVar

import torch
from transformers.utils import ModelOutput
from transformers.vision_utils import get_vision_window_index

from popen.lvlm.families.family import Family, SeenPictures


class Qwen25VL(Family):
    """The tower takes any multiple of patch · merge; picture tokens share one time and have rows and columns."""

    image_options: ClassVar[dict[str, Any]] = {"do_resize": False}
    takes_flex = True  # transformers' flag is of tower and language model together; the latter attends as Llama does

    def misfit(self, backbone_config, side: int) -> str | None:
        vision = backbone_config.vision_config
        block = vision.patch_size * vision.spatial_merge_size
        if side % block:
            return f"image_size {side} is no multiple of its merge block; set it to {round(side / block) * block}"
        if "sliding_attention" in (backbone_config.get_text_config().layer_types or ()):
            return (
                "its language model has sliding windows, which packed rows cannot use; set use_sliding_window: false"
            )
        return None

    def pixel_values(self, image_processor, squares: list) -> torch.Tensor:
        """B pictures to (B, patches, channels · time · patch²)."""
        flat = super().pixel_values(image_processor, squares)
        return flat.unflatten(0, (len(squares), -1))

    def pictures(self, pixel_values: torch.Tensor, backbone_config) -> torch.Tensor:
        """Patches of (B, patches, 3 · time · patch²) in their places: (B, 3, side, side)."""
        vision = backbone_config.vision_config
        patch, merge = vision.patch_size, vision.spatial_merge_size
        blocks = int(pixel_values.shape[1] ** 0.5) // merge
        patches = pixel_values.unflatten(2, (3, vision.temporal_patch_size, patch, patch))[
            :, :, :, 0
        ]  # all times alike
        patches = patches.unflatten(1, (blocks, blocks, merge, merge))
        return patches.permute(0, 5, 1, 3, 6, 2, 4, 7).flatten(5, 7).flatten(2, 4)

    def see(self, backbone, pixel_values: torch.Tensor, side: int, layers: tuple[int, ...]) -> SeenPictures:
        pictures = len(pixel_values)
        vision = backbone.config.vision_config
        sizes = self._sizes(pictures, side, vision, pixel_values.device)
        tower = backbone.model.get_image_features(
            pixel_values.flatten(0, 1), sizes, output_hidden_states=True, return_dict=True
        )
        order = self._order(sizes, vision).to(pixel_values.device)
        side_blocks, merge = int(sizes[0, 1]) // vision.spatial_merge_size, vision.spatial_merge_size

        def unmerged(states: torch.Tensor) -> torch.Tensor:
            blocks = states.unflatten(0, (-1, merge * merge))[order]
            maps = blocks.reshape(pictures, side_blocks, side_blocks, merge, merge, -1)
            return maps.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

        deep = tuple(self._deep(tower, len(tower.pooler_output[0])))
        maps = tuple(unmerged(tower.hidden_states[layer]) for layer in layers)
        return SeenPictures(list(tower.pooler_output), maps, deep)

    def positions(self, position_ids: torch.Tensor, input_ids: torch.Tensor, backbone_config) -> torch.Tensor:
        """(B, S) to (3, B, S): picture tokens stand on a grid, and what follows goes on after its longer side."""
        is_picture = input_ids == backbone_config.image_token_id
        tokens = is_picture.sum(1, keepdim=True)
        side = tokens.float().sqrt().round().long()
        last = torch.iinfo(position_ids.dtype).max
        first = position_ids.masked_fill(~is_picture, last).amin(1, keepdim=True)
        within = position_ids - first
        after = position_ids >= first + tokens
        plain = torch.where(after, position_ids - tokens + side, position_ids)
        row = first + within.div(side.clamp(min=1), rounding_mode="floor")
        column = first + within.remainder(side.clamp(min=1))
        time = first.expand_as(plain)
        return torch.stack([torch.where(is_picture, axis, plain) for axis in (time, row, column)])

    def _sizes(self, pictures: int, side: int, vision, device) -> torch.Tensor:
        patches = side // vision.patch_size
        return torch.tensor([[1, patches, patches]], device=device).repeat(pictures, 1)

    def _order(self, sizes: torch.Tensor, vision) -> torch.Tensor:
        """Where each merge block stands among hidden states, which are kept window by window."""
        windows, _ = get_vision_window_index(
            sizes, vision.spatial_merge_size, window_size=vision.window_size, patch_size=vision.patch_size
        )
        return windows.argsort()

    def _deep(self, tower, tokens: int) -> list[list[torch.Tensor]]:
        return []


class Qwen3VL(Qwen25VL):
    """As Qwen2.5-VL without windows; early layers of the language model get the tower's middle layers too."""

    def for_language(self, language: list[torch.Tensor], deep: tuple[list[torch.Tensor], ...]) -> ModelOutput:
        return ModelOutput(pooler_output=language, deepstack_features=list(deep))

    def _order(self, sizes: torch.Tensor, vision) -> torch.Tensor:
        return torch.arange(int(sizes.prod(1).sum()) // vision.spatial_merge_size**2)

    def _deep(self, tower, tokens: int) -> list[list[torch.Tensor]]:
        return [_per_picture(layer, tokens) for layer in tower.deepstack_features]


def _per_picture(layer, tokens: int) -> list[torch.Tensor]:
    return list(layer.split(tokens)) if isinstance(layer, torch.Tensor) else list(layer)
