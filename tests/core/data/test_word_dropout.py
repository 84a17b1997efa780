from __future__ import annotations

import pytest
import torch

from dpce_cli.core.data.word_dropout import drop_words
from dpce_cli.core.seeding import generator_for


def test_words_are_left_out_and_the_others_move_up_in_their_order() -> None:
    token_ids = torch.tensor([[5, 6, 7, 8, 9, 0, 0]]).repeat(200, 1)
    dropped = drop_words(token_ids, 0.4, generator_for("words")).tolist()
    assert len({tuple(row) for row in dropped}) > 20
    for row in dropped:
        words = [word for word in row if word]
        assert words == sorted(set(words))
        assert set(words) <= {5, 6, 7, 8, 9}
        assert row == words + [0] * (7 - len(words))


def test_each_word_is_left_out_with_the_stated_probability() -> None:
    token_ids = torch.ones(4000, 5, dtype=torch.long)
    kept = drop_words(token_ids, 0.25, generator_for("words"))
    assert float((kept == 0).float().mean()) == pytest.approx(0.25, abs=0.01)


def test_a_share_of_0_draws_nothing() -> None:
    generator = generator_for("words")
    before = generator.get_state()
    token_ids = torch.tensor([[3, 1, 0]])
    assert drop_words(token_ids, 0.0, generator) is token_ids
    assert torch.equal(generator.get_state(), before)
