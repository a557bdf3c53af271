"""What a frozen pixel encoder makes of training pictures, kept so that it sees each picture once on a processor."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn

KEPT_BYTES = 2**30  # of maps; 300 KB a picture of 128 pixels with TinyViT


class FrozenMaps:
    """The maps of the pictures seen last, found again by the pictures' own bytes.

    Each picture is encoded alone, so that its maps do not depend on the rest of a batch: a run that was resumed and
    one that remembers get the same bits. Maps are forgotten when the encoder's weights change.

    Args:
        kept_bytes: the maps that were used last are kept up to this size.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES):
        self.kept_bytes = kept_bytes
        self._weights: tuple = ()
        self._maps: OrderedDict[bytes, tuple[torch.Tensor, ...]] = OrderedDict()
        self._bytes = 0

    def __deepcopy__(self, memo) -> "FrozenMaps":
        return FrozenMaps(self.kept_bytes)  # a copy's weights may go another way

    @staticmethod
    def serve(encoder: nn.Module, pictures: torch.Tensor) -> bool:
        """Whether they may: nothing of the encoder learns or is random, on a processor, where it takes long.

        Never where weights are not whole plain tensors: ranks that share them (ZeRO-3, FSDP) gather them in the
        encoder's forward pass, and one that skips it leaves the others waiting; `popen plan` has none at all.
        """
        weights = list(encoder.parameters())
        learns = encoder.training or any(own.requires_grad for own in (pictures, *weights))
        plain = all(type(own.data) is torch.Tensor and not hasattr(own, "ds_id") for own in (pictures, *weights))
        return plain and not learns and pictures.device.type == "cpu"

    def of(
        self, encoder: nn.Module, pictures: torch.Tensor, encode: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
    ) -> tuple[torch.Tensor, ...]:
        """Maps of pictures (B, 3, S, S): what `encode` gives for each (1, 3, S, S), joined along B.

        Args:
            encoder: whose weights `encode` uses.
        """
        self._forget_if_changed(encoder)
        found = [self._one(picture, encode) for picture in pictures]
        return tuple(torch.cat(level) for level in zip(*found, strict=True))

    def _one(self, picture: torch.Tensor, encode) -> tuple[torch.Tensor, ...]:
        kind = f"{picture.dtype} {tuple(picture.shape)} {torch.is_autocast_enabled('cpu')}".encode()
        whole = picture.contiguous().view(torch.uint8).numpy()
        key = hashlib.blake2b(whole, digest_size=16, key=hashlib.sha256(kind).digest()).digest()
        if key not in self._maps:
            with torch.no_grad():
                self._maps[key] = encode(picture[None])
            self._bytes += _size(self._maps[key])
        self._maps.move_to_end(key)
        while self._bytes > self.kept_bytes and len(self._maps) > 1:
            _, oldest = self._maps.popitem(last=False)
            self._bytes -= _size(oldest)
        return self._maps[key]

    def _forget_if_changed(self, encoder: nn.Module) -> None:
        weights = tuple((own.data_ptr(), own._version) for own in (*encoder.parameters(), *encoder.buffers()))
        if weights != self._weights:
            self._maps.clear()
            self._weights, self._bytes = weights, 0


def _size(maps: tuple[torch.Tensor, ...]) -> int:
    return sum(level.nbytes for level in maps)
