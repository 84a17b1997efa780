"""The words a model knows and the numbers it knows them by."""

from __future__ import annotations

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
    """The known words in id order: id 0 is the blank position, `words[i]` has id i + 1."""

    words: tuple[str, ...]
    lowercase: bool
    """Whether captions are lower-cased before they are looked up."""

    @cached_property
    def _id_of_word(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words, start=1)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the words, their order and `lowercase`: equal only for equal vocabularies."""
        return hashlib.sha256(json.dumps(self.to_json()).encode("ascii")).hexdigest()

    def __len__(self) -> int:
        """The number of words; the blank is not one."""
        return len(self.words)

    def token_ids(self, tokens: Sequence[str]) -> list[int]:
        """The ids of `tokens` in order; unknown words are dropped (Zheng et al. 2020, section 3.2)."""
        ids = self._id_of_word
        return [ids[token] for token in tokens if token in ids]

    def restricted_to(self, words: Collection[str]) -> Vocabulary:
        """The vocabulary without the words that are not in `words`; the order is kept."""
        kept = frozenset(words)
        return Vocabulary(tuple(word for word in self.words if word in kept), self.lowercase)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {"lowercase": self.lowercase, "words": list(self.words)}

    @staticmethod
    def from_json(obj: Any, source: str) -> Vocabulary:
        """The vocabulary that `to_json` described; `source` names the file in errors.

        Raises:
            VocabularyError: not such a description, or a word is empty, not a string or there twice.
        """
        advice = "re-run `dpce prepare-vocab`"
        if not isinstance(obj, dict) or not isinstance(obj.get("lowercase"), bool):
            raise VocabularyError(f"{source}: not a vocabulary: 'lowercase' is not true or false; {advice}")
        words = obj.get("words")
        if not isinstance(words, list) or not words:
            raise VocabularyError(f"{source}: not a vocabulary: 'words' is not a list of words; {advice}")
        for index, word in enumerate(words):
            if not isinstance(word, str) or not word:
                raise VocabularyError(f"{source}: words[{index}] is {word!r}, not a word; {advice}")
        word, count = Counter(words).most_common(1)[0]
        if count > 1:
            raise VocabularyError(f"{source}: the word {word!r} is there {count} times; {advice}")
        return Vocabulary(tuple(words), obj["lowercase"])


def build_vocabulary(
    tokenized_training_captions: Iterable[Sequence[str]], *, lowercase: bool, min_count: int
) -> Vocabulary:
    """The words that occur at least `min_count` times, by falling count, then alphabetically.

    Zheng et al. 2020 keep the words that their word2vec dictionary holds, however rare:
    `build_word_vectors(..., oov="drop")` is that second step.

    Raises:
        VocabularyError: no word occurs often enough.
    """
    counts = Counter(chain.from_iterable(tokenized_training_captions))
    kept = [word for word, count in counts.items() if count >= min_count]
    if not kept:
        raise VocabularyError(
            f"none of the {len(counts)} words of the training captions occurs {min_count} times or more; "
            "lower the minimum count or add captions"
        )
    return Vocabulary(tuple(sorted(kept, key=lambda word: (-counts[word], word))), lowercase)


def check_no_leak(vocabulary: Vocabulary, tokenized_training_captions: Iterable[Sequence[str]]) -> None:
    """Check that every word was seen in training, so that evaluation captions had no part in the vocabulary.

    The Flickr30k dictionary released with Zheng et al. 2020 had seen the validation captions.

    Raises:
        VocabularyError: a word is in no training caption.
    """
    unseen = set(vocabulary.words).difference(*tokenized_training_captions)
    if unseen:
        raise VocabularyError(
            f"the vocabulary holds {len(unseen)} words that no training caption holds "
            f"({', '.join(sorted(unseen)[:5])}{', ...' if len(unseen) > 5 else ''}); "
            "re-run `dpce prepare-vocab`"
        )


def pack_token_ids(
    sequences: Sequence[Sequence[int]], max_words: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The first `max_words` ids of each sequence, left-aligned before blanks (0), and how many they are.

    Returns:
        token ids (sequences, max_words) and lengths (sequences,).
    """
    token_ids = np.zeros((len(sequences), max_words), dtype=np.int32)
    lengths = np.zeros(len(sequences), dtype=np.int32)
    for index, sequence in enumerate(sequences):
        kept = sequence[:max_words]
        token_ids[index, : len(kept)] = kept
        lengths[index] = len(kept)
    return token_ids, lengths
