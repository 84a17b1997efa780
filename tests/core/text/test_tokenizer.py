from __future__ import annotations

import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpce_cli.core.text.tokenizer import tokenize

ANYTHING = st.text(alphabet=st.characters(exclude_categories=()))


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A dog runs .", ["A", "dog", "runs"]),
        ("dog,cat(bird)-fish.end", ["dog", "cat", "bird", "fish", "end"]),
        (
            "A well-known black-and-white T-shirt",
            ["A", "well", "known", "black", "and", "white", "T", "shirt"],
        ),
        ("Where is it?", ["Where", "is", "it"]),
        ('"Stop!" a he/she: *now*; [3] #tag_1', ["Stop", "a", "he", "she", "now", "3", "tag", "1"]),
        ("2.5 m, 5th & 6th", ["2", "5", "m", "5th", "6th"]),
        ("-- ... ?! ' '' \" `` _", []),
        ("", []),
        (" \t\n\r\x0b\x0c\u00a0\u2003\u3000", []),
        ("\x00a\x1fb\x7fc\x85d\u200be\ud800f\ufefff", ["a", "b", "c", "d", "e", "f", "f"]),
        ("\U0001f415 dog \U0001f415\u200d\u2764\ufe0f", ["dog"]),
        ("一只狗。一只猫", ["一", "只", "狗", "一", "只", "猫"]),
        ("犬がhelloと走る", ["犬", "が", "hello", "と", "走", "る"]),
        ("หมาวิ่ง", ["ห", "ม", "า", "วิ่", "ง"]),
        ("개가 뛴다", ["개가", "뛴다"]),
        ("हिन्दी कुत्ता", ["हिन्दी", "कुत्ता"]),
    ],
)
def test_words_are_made_of_letters_digits_and_marks(caption: str, words: list[str]) -> None:
    assert tokenize(caption, lowercase=False) == words


def test_a_typed_contraction_gives_the_words_of_a_published_caption() -> None:
    for typed, published in [
        ("the man's hat", "the man 's hat"),
        ("the man\u2019s hat", "the man 's hat"),
        ("they don't see", "they do n't see"),
        ("THEY DON'T SEE", "THEY DO N'T SEE"),
        ("the girls' hats", "the girls ' hats"),
    ]:
        assert tokenize(typed, lowercase=False) == tokenize(published, lowercase=False)
    assert tokenize("the man's hat", lowercase=False) == ["the", "man", "'s", "hat"]
    assert tokenize("five o'clock", lowercase=False) == ["five", "o'clock"]


def test_case_is_kept_unless_asked_otherwise() -> None:
    assert tokenize("A Dog in ÅRHUS", lowercase=False) == ["A", "Dog", "in", "ÅRHUS"]
    assert tokenize("A Dog in ÅRHUS", lowercase=True) == ["a", "dog", "in", "århus"]


def test_composed_and_decomposed_letters_are_the_same_word() -> None:
    assert tokenize("cafe\u0301", lowercase=True) == tokenize("café", lowercase=True) == ["café"]


@pytest.mark.parametrize("unit", ["a", "'", "' ", "don't ", "n't", ".", "\u0301", "'s"])
@pytest.mark.timeout(20)
def test_a_very_long_caption_does_not_hang(unit: str) -> None:
    assert "".join(tokenize(f"{unit * 50_000} end", lowercase=True)).endswith("end")


@given(ANYTHING | st.text(alphabet="aB's\u2019 nt`\"-.,é\u0301"), st.booleans())
def test_any_text_gives_words_without_spaces_and_with_a_letter_or_digit(caption: str, lowercase: bool) -> None:
    for word in tokenize(caption, lowercase=lowercase):
        assert any(character.isalnum() for character in word)
        assert all(c.isalnum() or c == "'" or unicodedata.category(c)[0] == "M" for c in word)
        assert word.split() == [word]
        assert unicodedata.is_normalized("NFC", word)


@given(st.lists(st.text(alphabet="abcXYZ019é", min_size=1), max_size=8), st.sampled_from([" ", "-", ". ", " ("]))
def test_words_are_the_same_with_any_separator(words: list[str], separator: str) -> None:
    assert tokenize(separator.join(words), lowercase=False) == words


def test_a_caption_without_an_apostrophe_imports_no_nltk() -> None:
    code = (
        "import sys; from dpce_cli.core.text.tokenizer import tokenize\n"
        "assert tokenize('A dog, running.', lowercase=True) == ['a', 'dog', 'running']\n"
        "sys.exit(int('nltk' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
