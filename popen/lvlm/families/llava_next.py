"""LLaVA-NeXT: the picture as a whole and cut into tiles of the tower's size."""

from typing import Any, ClassVar

import torch
from transformers.models.llava_next.modeling_llava_next import select_best_resolution

from popen.lvlm.families.family import Family, SeenPictures, grid


class LlavaNext(Family):
    """Maps are those of the tiles, put together: finer than LLaVA-1.5's by the number of tiles along a side."""

    image_options: ClassVar[dict[str, Any]] = {}  # its own processor cuts the tiles
    square_tokens = False  # a token ends each line of the tiles

    def misfit(self, backbone_config, side: int) -> str | None:
        tile = backbone_config.vision_config.image_size
        best = select_best_resolution((side, side), backbone_config.image_grid_pinpoints)
        if list(best) != [side, side] or side % tile:
            squares = [rows for rows, columns in backbone_config.image_grid_pinpoints if rows == columns]
            return f"no grid of tiles is {side} pixels square; set image_size to one of {squares}"
        return None

    def pictures(self, pixel_values: torch.Tensor, backbone_config) -> torch.Tensor:
        """The tiles of (B, 1+n², 3, t, t) put together: (B, 3, n·t, n·t)."""
        return stitched(pixel_values)

    def see(self, backbone, pixel_values: torch.Tensor, side: int, layers: tuple[int, ...]) -> SeenPictures:
        pictures, tiles = pixel_values.shape[:2]
        sizes = torch.full((pictures, 2), side, dtype=torch.long, device=pixel_values.device)
        tower = backbone.model.get_image_features(pixel_values, sizes, output_hidden_states=True, return_dict=True)
        maps = tuple(stitched(grid(tower.hidden_states[layer]).unflatten(0, (pictures, tiles))) for layer in layers)
        return SeenPictures(list(tower.pooler_output), maps)


def stitched(tiles_BNChw: torch.Tensor) -> torch.Tensor:
    """(B, 1+n², C, h, w), the whole picture and then its tiles line by line, to the tiles as (B, C, n·h, n·w)."""
    count = int((tiles_BNChw.shape[1] - 1) ** 0.5)
    tiles = tiles_BNChw[:, 1:].unflatten(1, (count, count)).permute(0, 3, 1, 4, 2, 5)
    return tiles.flatten(4, 5).flatten(2, 3)
