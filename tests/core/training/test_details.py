from __future__ import annotations

from collections import Counter

import pytest
import torch

from dpce_cli.core.seeding import generator_for
from dpce_cli.core.text.details import Kinds, read_details
from dpce_cli.core.text.vocabulary import Vocabulary, pack_token_ids
from dpce_cli.core.training.details import DetailSwaps

KINDS = {"colour": [["red", "blue", "pink"]], "number": [["two", "three"]], "light": [["light", "dark", "blue"]]}
CAPTIONS = {
    0: ["two red dogs", "dogs in blue"],
    1: ["a pink hat", "a hat on three dogs"],
    2: ["dogs on a hat"],
    3: ["a light hat", "a blue blue blue hat"],
}
VOCABULARY = Vocabulary(
    ("a", "dogs", "hat", "in", "on", "red", "blue", "pink", "two", "three", "light"), lowercase=True
)
OWNERS = torch.tensor([instance for instance, captions in CAPTIONS.items() for _ in captions])
SENTENCES = [caption for captions in CAPTIONS.values() for caption in captions]
TOKEN_IDS = torch.from_numpy(pack_token_ids([VOCABULARY.token_ids(text.split()) for text in SENTENCES], 6)[0]).long()


def _swaps(kinds: Kinds = KINDS) -> DetailSwaps:
    return DetailSwaps(kinds, VOCABULARY, TOKEN_IDS, OWNERS, instances=len(CAPTIONS))


def _draw(swaps: DetailSwaps, number: int) -> dict[str, str]:
    """The swapped caption of each caption that has one."""
    token_ids, caption = swaps.draw(TOKEN_IDS, OWNERS, generator_for("draw", number))
    words = [" ".join(VOCABULARY.words[word - 1] for word in row if word) for row in token_ids.tolist()]
    return {SENTENCES[position]: text for position, text in zip(caption.tolist(), words, strict=True)}


def _possible(caption: str, instance: int) -> set[str]:
    """Every caption with one word swapped that names nothing else that is said of the instance."""
    words, said = caption.split(), " ".join(CAPTIONS[instance]).split()
    return {
        " ".join([*words[:place], other, *words[place + 1 :]])
        for place, word in enumerate(words)
        for groups in KINDS.values()
        for group in groups
        for other in group
        if word in group and other not in said and other in VOCABULARY.words
    }


def test_swapped_captions_are_all_those_that_differ_in_one_detail_that_nobody_named() -> None:
    swaps, drawn = _swaps(), dict[str, set[str]]()
    for number in range(200):
        for caption, swapped in _draw(swaps, number).items():
            drawn.setdefault(caption, set()).add(swapped)
    expected = {text: _possible(text, int(owner)) for text, owner in zip(SENTENCES, OWNERS, strict=True)}
    assert drawn == {caption: swapped for caption, swapped in expected.items() if swapped}
    assert drawn["two red dogs"] == {"three red dogs", "two pink dogs"}  # another caption says "blue"


def test_every_other_word_of_the_group_is_drawn_as_often() -> None:
    swaps = _swaps({"colour": KINDS["colour"]})
    drawn = Counter(_draw(swaps, number)["a pink hat"] for number in range(1000))
    assert drawn["a blue hat"] / 1000 == pytest.approx(1 / 2, abs=0.05)
    assert drawn["a red hat"] / 1000 == pytest.approx(1 / 2, abs=0.05)


def test_every_detail_of_a_caption_is_swapped_as_often() -> None:
    swaps = _swaps({"colour": KINDS["colour"], "number": KINDS["number"]})
    drawn = Counter(_draw(swaps, number)["two red dogs"] for number in range(1000))
    assert drawn["three red dogs"] / 1000 == pytest.approx(1 / 2, abs=0.05)


def test_swaps_depend_on_the_generator_alone() -> None:
    swaps = _swaps()
    assert _draw(swaps, 1) == _draw(swaps, 1)
    assert len({str(_draw(swaps, number)) for number in range(9)}) > 1


def test_where_words_stand_and_blanks_do_not_matter() -> None:
    moved = torch.cat([torch.zeros(len(TOKEN_IDS), 2, dtype=torch.long), TOKEN_IDS], dim=1)
    swapped, caption = _swaps().draw(moved, OWNERS, generator_for("moved"))
    differs = swapped != moved[caption]
    assert (differs.sum(1) == 1).all()
    assert (moved[caption][differs] > 0).all()
    assert (swapped[differs] > 0).all()


@pytest.mark.parametrize("kinds", [{}, {"fruit": [["apple", "pear"]]}, {"colour": [["red", "green"]]}])
def test_without_words_that_captions_have_there_are_no_swaps(kinds: Kinds) -> None:
    swapped, caption = _swaps(kinds).draw(TOKEN_IDS, OWNERS, generator_for("none"))
    assert swapped.shape == (0, TOKEN_IDS.shape[1])
    assert caption.shape == (0,)


def test_the_words_of_dpce_have_swaps() -> None:
    vocabulary = Vocabulary(("a", "left", "right", "five", "two"), lowercase=True)
    token_ids = torch.tensor([[1, 2], [1, 3], [1, 1]])
    swaps = DetailSwaps(read_details("english"), vocabulary, token_ids, torch.arange(3), instances=3)
    swapped, caption = swaps.draw(token_ids, torch.arange(3), generator_for("sides"))
    assert swapped.tolist() == [[1, 3], [1, 2]]
    assert caption.tolist() == [0, 1]


def test_words_that_another_caption_names_are_swapped_in_on_request() -> None:
    swaps = DetailSwaps(KINDS, VOCABULARY, TOKEN_IDS, OWNERS, instances=len(CAPTIONS), swap_in_named=True)
    drawn = {_draw(swaps, number)["two red dogs"] for number in range(100)}
    assert drawn == {"three red dogs", "two pink dogs", "two blue dogs"}
