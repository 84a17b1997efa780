"""A model with more words than its training captions had: vocabulary expansion (Kiros et al. 2015, section 2.2)."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from dpce_cli.core.errors import VocabularyError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.text.expansion import mapped_rows
from dpce_cli.core.text.tokenizer import tokenize
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.text.word_vectors import read_word_vectors

_ROWS = "text_encoder.words.weight"


def with_more_words(model: Model, path: Path, leading: int, reporter: Reporter) -> Model:
    """The model with those of the `leading` first words of a file of word vectors that it does not know.

    It embeds photos, and sentences without these words, exactly as before.

    Raises:
        VocabularyError: the file cannot be read, shares too few words with the model, or has no other word.
    """
    import torch

    known, table = model.vocabulary, model.weights[_ROWS]
    vectors, _ = read_word_vectors(path, known.words, reporter, leading=leading)
    new = [word for word in vectors if tokenize(word, lowercase=known.lowercase) == [word] and word not in known]
    if not new:
        raise VocabularyError(f"{path}: the model knows all its words; give a larger file")
    rows = torch.from_numpy(mapped_rows(known, table[1:].numpy(), vectors, new))
    weights = {**model.weights, _ROWS: torch.cat([table, rows])}
    name = hashlib.sha256(model.weights_id.encode() + rows.numpy().tobytes()).hexdigest()
    return replace(
        model,
        vocabulary=Vocabulary((*known.words, *new), known.lowercase),
        weights_id=name,
        extends=(*model.extends, model.fingerprint),
        load_weights=lambda: weights,
        text_engine=None,
    )
