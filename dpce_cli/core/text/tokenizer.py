"""Split captions into words."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Any

_APOSTROPHES = str.maketrans("\u2018\u2019\u02bc\uff07", "''''")


def tokenize(caption: str, *, lowercase: bool) -> list[str]:
    """The words of `caption`, in order. Each word contains a letter or digit, and no space.

    The code of Zheng et al. 2020 splits at spaces and at - . , ( ), and for MSCOCO also at ?. This function splits at
    every character that is not a letter, digit, combining mark or apostrophe. A word in quotes or between slashes is
    then still a word that has a vector. Words with an apostrophe are split by NLTK's Penn Treebank rules ("man's"
    becomes "man", "'s"), because the published captions of Flickr8k and Flickr30k are split this way: a query then has
    the same words as the training captions. Text is normalised to Unicode NFC. The paper has `lowercase=False`.

    Each Chinese or Japanese character is a word, because these languages put no spaces between words. Thai, Lao, Khmer
    and Burmese have no spaces either: each letter with its marks is a word.

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
"""Kana and Chinese characters, and letters of South-East Asian scripts with the vowel and tone marks after them."""


@functools.lru_cache(maxsize=4096)
def _belongs_to_a_word(character: str) -> bool:
    return character.isalnum() or character == "'" or unicodedata.category(character).startswith("M")


@functools.lru_cache(maxsize=65536)
def _parts(piece: str) -> tuple[str, ...]:
    """The words in a text without spaces. NLTK is imported only where it is needed: the import takes a second."""
    words = _treebank().tokenize(piece) if "'" in piece else [piece]
    return tuple(word for word in words if any(map(str.isalnum, word)))


@functools.cache
def _treebank() -> Any:
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()
