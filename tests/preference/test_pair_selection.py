"""What is selected, by hand."""

from typing import get_args

import datasets
from hypothesis import given
from hypothesis import strategies as st

from popen.preference.correcting import PHRASES, REWRITTEN
from popen.preference.pair_selection import PairTraits, Selection, pair_traits, select_pairs

TRAITS = [
    PairTraits(True, PHRASES, 0),
    PairTraits(True, REWRITTEN, -1),
    PairTraits(True, REWRITTEN, -2),
    PairTraits(True, REWRITTEN, 1),
    PairTraits(False, PHRASES, 0),
    PairTraits(False, REWRITTEN, 1),
    PairTraits(False, REWRITTEN, 2),
    PairTraits(False, REWRITTEN, -1),
]


def test_selections_by_hand():
    assert select_pairs(TRAITS, "all") == list(range(8))
    assert select_pairs(TRAITS, "hallucinated") == [0, 1, 2, 3]
    assert select_pairs(TRAITS, "hallucinated_phrases") == [0]
    for seed in range(5):  # two say less, one says more: one omission makes up for it
        chosen = select_pairs(TRAITS, "hallucinated_balanced", seed)
        assert chosen[:4] == [0, 1, 2, 3] and len(chosen) == 5 and chosen[4] in (5, 6)
    assert {select_pairs(TRAITS, "hallucinated_balanced", seed)[4] for seed in range(20)} == {5, 6}


def test_traits_are_read_off_the_rows():
    columns = {
        "hallucinated": [True, False], "kind": [PHRASES, REWRITTEN],
        "chosen": ["the ball <seg>", "the ball <seg> and the box <seg>"],
        "rejected": ["the box <seg>", "the ball <seg>"],
    }  # fmt: skip
    expected = [PairTraits(True, PHRASES, 0), PairTraits(False, REWRITTEN, 1)]
    assert pair_traits(datasets.Dataset.from_dict(columns)) == expected


traits = st.builds(PairTraits, st.booleans(), st.sampled_from([PHRASES, REWRITTEN]), st.integers(-2, 2))


@given(st.lists(traits, max_size=20), st.sampled_from(get_args(Selection)), st.integers(0, 9))
def test_a_selection_is_ordered_without_repetition_and_follows_the_seed(pairs, selection, seed):
    chosen = select_pairs(pairs, selection, seed)
    assert chosen == sorted(set(chosen)) == select_pairs(pairs, selection, seed)
    if selection == "hallucinated_balanced":
        signs = [pairs[i].added for i in chosen]
        omissions = sum(p.added > 0 and not p.hallucinated for p in pairs)
        short = sum(s < 0 for s in signs) - sum(s > 0 for s in signs)
        assert short <= 0 or omissions == sum(not pairs[i].hallucinated for i in chosen)
