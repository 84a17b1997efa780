from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpce_cli.core.data.position_shift import placement_starts, shift, shift_randomly
from dpce_cli.core.seeding import generator_for
from dpce_cli.core.text.vocabulary import pack_token_ids

POSITIONS = 8
CAPTIONS = st.lists(st.lists(st.integers(1, 99), max_size=POSITIONS), min_size=1, max_size=6)


def packed(captions: list[list[int]], positions: int = POSITIONS) -> torch.Tensor:
    return torch.from_numpy(pack_token_ids(captions, positions)[0])


def test_shift_by_hand() -> None:
    token_ids = torch.tensor([[5, 6, 7, 0, 0], [5, 6, 7, 0, 0], [8, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]])
    assert shift(token_ids, torch.tensor([0, 2, 4, 3, 0])).tolist() == [
        [5, 6, 7, 0, 0],
        [0, 0, 5, 6, 7],
        [0, 0, 0, 0, 8],
        [0, 0, 0, 0, 0],
        [1, 2, 3, 4, 5],
    ]


@given(captions=CAPTIONS, seed=st.integers(0, 2**32))
def test_position_shift_never_drops_or_reorders_a_word(captions: list[list[int]], seed: int) -> None:
    token_ids = packed(captions)
    placed = shift_randomly(token_ids, torch.Generator().manual_seed(seed))
    assert placed.shape == token_ids.shape
    assert placed.dtype == token_ids.dtype
    for caption, row in zip(captions, placed.tolist(), strict=True):
        start = next((index for index, token_id in enumerate(row) if token_id), 0)
        assert row == [0] * start + caption + [0] * (POSITIONS - start - len(caption))


def test_a_caption_that_fills_all_positions_stays() -> None:
    full = torch.arange(1, POSITIONS + 1).repeat(50, 1)
    assert shift_randomly(full, generator_for("full")).equal(full)


def test_a_caption_without_words_stays_blank() -> None:
    assert not shift_randomly(torch.zeros(50, POSITIONS, dtype=torch.long), generator_for("empty")).any()


@pytest.mark.parametrize("length", [1, 3, 7])
def test_starts_are_uniform(length: int) -> None:
    """Pearson's statistic is below its 99.9th percentile, 24.4 for 7 degrees of freedom."""
    captions = 20_000
    placed = shift_randomly(packed([list(range(1, length + 1))] * captions), generator_for("uniform", length))
    possible = POSITIONS - length + 1
    counts = torch.bincount((placed == 1).nonzero()[:, 1], minlength=POSITIONS)
    assert not counts[possible:].any()
    expected = captions / possible
    assert float((counts[:possible] - expected).square().sum()) / expected < 24.4


def test_the_shift_depends_on_the_generator_alone() -> None:
    token_ids = packed([[1, 2], [3]] * 20)
    first, again, other = (shift_randomly(token_ids, generator_for(seed)) for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


@given(captions=CAPTIONS)
def test_all_placements_are_all_starts_that_leave_room(captions: list[list[int]]) -> None:
    caption, starts = placement_starts(packed(captions))
    expected = [(index, start) for index, words in enumerate(captions) for start in range(POSITIONS - len(words) + 1)]
    assert list(zip(caption.tolist(), starts.tolist(), strict=True)) == expected


@given(captions=CAPTIONS, most=st.integers(1, POSITIONS + 3))
def test_some_placements_are_spread_from_the_first_to_the_last(captions: list[list[int]], most: int) -> None:
    caption, starts = placement_starts(packed(captions), most)
    for index, words in enumerate(captions):
        own, last = starts[caption == index].tolist(), POSITIONS - len(words)
        assert len(own) == min(most, last + 1)
        assert own[0] == 0
        assert own == sorted(set(own))
        if most > 1:
            assert own[-1] == last
            gaps = [after - before for before, after in itertools.pairwise(own)]
            assert not gaps or max(gaps) - min(gaps) <= 1


def test_no_captions_have_no_placements() -> None:
    caption, starts = placement_starts(torch.zeros(0, POSITIONS, dtype=torch.long))
    assert len(caption) == len(starts) == 0
