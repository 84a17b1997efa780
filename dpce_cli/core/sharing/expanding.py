"""A model with more words than its training captions had: vocabulary expansion (Kiros et al. 2015, section 2.2)."""

from __future__ import annotations

from pathlib import Path

from dpce_cli.core.errors import VocabularyError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.model import WORDS, Model
from dpce_cli.core.text.expansion import mapped_rows
from dpce_cli.core.text.tokenizer import tokenize
from dpce_cli.core.text.word_vectors import read_word_vectors


def with_more_words(model: Model, path: Path, leading: int, reporter: Reporter) -> Model:
    """The model with those of the `leading` first words of a file of word vectors that it does not know.

    It embeds photos, and sentences without these words, exactly as before.

    Raises:
        VocabularyError: the file cannot be read, shares too few words with the model, or has no other word.
    """
    import torch

    known = model.vocabulary
    vectors, _ = read_word_vectors(path, known.words, reporter, leading=leading)
    new = [word for word in vectors if tokenize(word, lowercase=known.lowercase) == [word] and word not in known]
    if not new:
        raise VocabularyError(f"{path}: the model knows all its words; give a larger file")
    learned = model.weights[WORDS][1:].numpy()
    return model.with_words(new, torch.from_numpy(mapped_rows(known, learned, vectors, new)))
