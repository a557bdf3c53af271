"""A segmenter small enough to reckon by hand: a logit per region out of one voxel."""

import torch
from torch import nn

from popen.medical.configuration import SegmenterConfig


class StandIn(nn.Module):
    """logit_k = weight_k · (first channel − level_k): it looks at single voxels, so patches cannot matter."""

    def __init__(
        self, dims=2, channels=1, regions=("bright",), activation="sigmoid", patch_size=None, levels=(0.5,), **settings
    ):
        super().__init__()
        self.settings = SegmenterConfig(
            "stand-in", dims, channels, regions, activation, patch_size or (8,) * dims, **settings
        )
        self.levels = nn.Parameter(torch.tensor(levels))

    def forward(self, pictures):
        shape = (1, -1, *(1,) * self.settings.spatial_dims)
        return 10 * (pictures[:, :1] - self.levels.view(shape))

    def masks_from(self, logits, flips=False):
        if self.settings.activation == "sigmoid":
            return logits > self.settings.threshold_of(flips)
        return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, logits.argmax(1, keepdim=True), True)
