"""Captions to words."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Any

_APOSTROPHES = str.maketrans("\u2018\u2019\u02bc\uff07", "''''")


def tokenize(caption: str, *, lowercase: bool) -> list[str]:
    """The words of `caption` in order; no word is empty, holds a blank or is punctuation alone.

    The code of Zheng et al. 2020 splits at blanks and at - . , ( ), for MSCOCO also at ?. Here everything
    that is no letter, digit, combining mark or apostrophe splits, so that a quoted, slashed or starred word
    is still the word that the vectors know. Words with an apostrophe are parted by NLTK's Penn Treebank
    rules ("man's" is "man", "'s"), because the captions of Flickr8k and Flickr30k are published so: a typed
    query meets the words that training saw. Spellings of one letter are made one (Unicode NFC).
    `lowercase=False` is the paper's way.

    Chinese and Japanese characters are a word each, because these languages put no blanks between words. Thai, Lao,
    Khmer and Burmese, which do not either, are parted into letters with their marks.

    >>> tokenize("A T-shirt (red): the man's dog, isn't it?", lowercase=True)
    ['a', 't', 'shirt', 'red', 'the', 'man', "'s", 'dog', 'is', "n't", 'it']
    """
    text = unicodedata.normalize("NFC", caption.lower() if lowercase else caption).translate(_APOSTROPHES)
    pieces = "".join(c if _belongs_to_a_word(c) else " " for c in _UNSPACED.sub(r" \g<0> ", text)).split()
    return [word for piece in pieces for word in _parts(piece)]


_UNSPACED = re.compile(
    "[\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
    "|[\u0e00-\u0eff\u1780-\u17ff\u1000-\u109f][\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd"
    "\u17b4-\u17d3\u102b-\u103e]*"
)
"""Kana and Chinese characters, and letters of South-East Asian scripts with the vowels and tones that follow them."""


@functools.lru_cache(maxsize=4096)
def _belongs_to_a_word(character: str) -> bool:
    return character.isalnum() or character == "'" or unicodedata.category(character).startswith("M")


@functools.lru_cache(maxsize=65536)
def _parts(piece: str) -> tuple[str, ...]:
    """The words in a text without blanks; most need no NLTK, whose import takes a second."""
    words = _treebank().tokenize(piece) if "'" in piece else [piece]
    return tuple(word for word in words if any(map(str.isalnum, word)))


@functools.cache
def _treebank() -> Any:
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()
