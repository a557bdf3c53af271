"""Shares of work, and what processes tell one another."""

import pytest

from popen.distributed.ranks import ALONE, Ranks


@pytest.mark.parametrize("count", [0, 1, 5, 16])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_piece_is_dealt_once(count, world):
    dealt = [Ranks(rank, world).deal(range(count)) for rank in range(world)]
    assert sorted(piece for own in dealt for piece in own) == list(range(count))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_one_process_is_the_first_and_has_it_all():
    assert ALONE.gather("rows") == ["rows"] and ALONE.first(lambda: 7) == 7
    with pytest.raises(ValueError, match="why"):
        ALONE.first(lambda: (_ for _ in ()).throw(ValueError("why")))
