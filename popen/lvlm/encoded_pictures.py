"""Pictures that the vision side has seen, in the form that the language model and the mask decoder read."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class EncodedPictures:
    """Pictures seen once: what the language model reads, at its first and at early layers (`deep`), and what the mask
    decoder reads (coarse map first)."""

    language: list[torch.Tensor]
    features: tuple[torch.Tensor, ...]
    deep: tuple[list[torch.Tensor], ...] = ()
    shown: list[torch.Tensor] | None = None

    def of_rows(self, picture: list[int]) -> "EncodedPictures":
        """One entry per row, where `picture` says which picture each row is about."""
        deep = tuple([layer[i] for i in picture] for layer in self.deep)
        shown = None if self.shown is None else [self.shown[i] for i in picture]
        features = tuple(f[picture] for f in self.features)
        return EncodedPictures([self.language[i] for i in picture], features, deep, shown)

    @staticmethod
    def joined(parts: "list[EncodedPictures]") -> "EncodedPictures":
        """The pictures of all parts, in their order."""
        deep = tuple(
            [one for layer in layers for one in layer] for layers in zip(*(p.deep for p in parts), strict=True)
        )
        shown = None if parts[0].shown is None else [one for part in parts for one in part.shown]
        features = tuple(torch.cat(levels) for levels in zip(*(part.features for part in parts), strict=True))
        return EncodedPictures([one for part in parts for one in part.language], features, deep, shown)

    def readable(self, is_picture_BS: torch.Tensor) -> torch.Tensor:
        """Which columns of rows (B, S) others may attend to, bool: all but picture tokens that are not `shown`."""
        columns = torch.ones_like(is_picture_BS)
        if self.shown is not None:
            columns[is_picture_BS] = torch.cat(self.shown)
        return columns
