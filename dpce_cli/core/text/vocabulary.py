"""The words that a model knows, and their ids."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from dpce_cli.core.errors import VocabularyError


@dataclass(frozen=True)
class Vocabulary:
    """The known words in the order of their ids: `words[i]` has id i + 1; id 0 is the blank position."""

    words: tuple[str, ...]
    lowercase: bool
    """Whether captions are lower-cased before they are looked up."""

    @cached_property
    def _id_of_word(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words, start=1)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex of the words, their order and `lowercase`."""
        return hashlib.sha256(json.dumps(self.to_json()).encode("ascii")).hexdigest()

    def __len__(self) -> int:
        """The number of words, without the blank."""
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._id_of_word

    def near(self, word: str) -> list[str]:
        """Up to three known words with nearly the same spelling, such as the singular of a plural, the nearest first.

        >>> Vocabulary(("boat", "a", "coat", "dog"), lowercase=True).near("boats")
        ['boat']
        """
        return difflib.get_close_matches(word, self.words, n=3, cutoff=0.75)

    def token_ids(self, tokens: Sequence[str]) -> list[int]:
        """The ids of `tokens` in order; unknown words are dropped (Zheng et al. 2020, section 3.2)."""
        ids = self._id_of_word
        return [ids[token] for token in tokens if token in ids]

    def restricted_to(self, words: Collection[str]) -> Vocabulary:
        """The vocabulary with only those of its words that are in `words`, in the same order."""
        kept = frozenset(words)
        return Vocabulary(tuple(word for word in self.words if word in kept), self.lowercase)

    def to_json(self) -> dict[str, Any]:
        """A description that `from_json` reads."""
        return {"lowercase": self.lowercase, "words": list(self.words)}

    @staticmethod
    def from_json(obj: Any, source: str) -> Vocabulary:
        """The vocabulary that `to_json` described; error messages name the file `source`.

        Raises:
            VocabularyError: `obj` is not such a description, or a word is empty, not a string or listed twice.
        """
        advice = "re-run `dpce prepare-vocab`"
        if not isinstance(obj, dict) or not isinstance(obj.get("lowercase"), bool):
            raise VocabularyError(f"{source}: not a vocabulary: 'lowercase' is not true or false; {advice}")
        words = obj.get("words")
        if not isinstance(words, list) or not words:
            raise VocabularyError(f"{source}: not a vocabulary: 'words' is empty or not a list; {advice}")
        for index, word in enumerate(words):
            if not isinstance(word, str) or not word:
                raise VocabularyError(f"{source}: words[{index}] is {word!r}, not a word; {advice}")
        word, count = Counter(words).most_common(1)[0]
        if count > 1:
            raise VocabularyError(f"{source}: the word {word!r} is listed {count} times; {advice}")
        return Vocabulary(tuple(words), obj["lowercase"])


def build_vocabulary(
    tokenized_training_captions: Iterable[Sequence[str]], *, lowercase: bool, min_count: int
) -> Vocabulary:
    """The words that occur at least `min_count` times: the most frequent first, equally frequent ones alphabetically.

    Zheng et al. 2020 keep every word that their word2vec dictionary has, also the rare ones:
    `build_word_vectors(..., oov="drop")` does this in a second step.

    Raises:
        VocabularyError: no word occurs often enough.
    """
    counts = Counter(chain.from_iterable(tokenized_training_captions))
    kept = [word for word, count in counts.items() if count >= min_count]
    if not kept:
        raise VocabularyError(
            f"none of the {len(counts)} words of the training captions occurs at least {min_count} times; "
            "lower the minimum count or add captions"
        )
    return Vocabulary(tuple(sorted(kept, key=lambda word: (-counts[word], word))), lowercase)


def check_no_leak(vocabulary: Vocabulary, tokenized_training_captions: Iterable[Sequence[str]]) -> None:
    """Check that the vocabulary was built from training captions only.

    The Flickr30k dictionary that was released with Zheng et al. 2020 also contains words of the validation captions.

    Raises:
        VocabularyError: a word occurs in no training caption.
    """
    unseen = set(vocabulary.words).difference(*tokenized_training_captions)
    if unseen:
        raise VocabularyError(
            f"the vocabulary has {len(unseen)} words that are in no training caption "
            f"({', '.join(sorted(unseen)[:5])}{', ...' if len(unseen) > 5 else ''}); "
            "re-run `dpce prepare-vocab`"
        )


def pack_token_ids(
    sequences: Sequence[Sequence[int]], max_words: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Put the first `max_words` ids of each sequence into one array; the rest of a row is blank (0).

    Returns:
        Token ids (sequences, max_words), and the number of ids in each row (sequences,).
    """
    token_ids = np.zeros((len(sequences), max_words), dtype=np.int32)
    lengths = np.zeros(len(sequences), dtype=np.int32)
    for index, sequence in enumerate(sequences):
        kept = sequence[:max_words]
        token_ids[index, : len(kept)] = kept
        lengths[index] = len(kept)
    return token_ids, lengths
