"""The word vectors that a prepared data set's models begin with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from dpce_cli.core.errors import WorkspaceError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.text.word_vectors import (
    WordVectors,
    build_word_vectors,
    load_word_vectors,
    read_word_vectors,
    save_word_vectors,
    train_word_vectors,
)
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.workspace import Workspace

WORD2VEC_EPOCHS = 20
"""Passes of word2vec over the captions; gensim's default of 5 is for corpora of a billion words."""


def build_initial_vectors(
    workspace: Workspace, path: Path | None, *, oov: Literal["random", "drop"], reporter: Reporter
) -> WordVectors:
    """Take the vocabulary's word vectors from `path`, or train them on the training captions, and save them.

    Raises:
        VocabularyError: the file cannot be read, or holds no word of the vocabulary.
        WorkspaceError: no data set is prepared, or the workspace cannot be written.
    """
    dataset = workspace.load_dataset()
    words, config = dataset.vocabulary.words, dataset.config
    captions = [[words[i - 1] for i in ids] for image in dataset.split("train") for ids in image.token_ids]
    if path:
        found, _ = read_word_vectors(path, words, reporter)
    else:
        found = train_word_vectors(
            captions, dim=config.model.word_dim, seed=config.seed, epochs=WORD2VEC_EPOCHS, reporter=reporter
        )
    vectors = build_word_vectors(
        dataset.vocabulary,
        found,
        oov=oov,
        seed=config.seed,
        source=path.name if path else "word2vec trained on the captions",
        counts=Counter(word for caption in captions for word in caption),
    )
    save_word_vectors(workspace.word_vectors_path, vectors, {"vocabulary": dataset.vocabulary.fingerprint})
    return vectors


def load_initial_vectors(workspace: Workspace, dataset: PreparedDataset, *, otherwise: str = "") -> WordVectors:
    """The word vectors that belong to a prepared data set.

    Args:
        otherwise: what else a person can do where there are none, for the message.

    Raises:
        WorkspaceError: there are none, or they were built for another vocabulary.
    """
    path = workspace.word_vectors_path
    if not path.is_file():
        raise WorkspaceError(f"{path}: there are no word vectors; run 'dpce build-word2vec'{otherwise}")
    vectors, meta = load_word_vectors(path)
    if meta.get("vocabulary") != dataset.vocabulary.fingerprint:
        raise WorkspaceError(
            f"{path}: the word vectors were built for another vocabulary than data set '{dataset.name}' has now; "
            "run 'dpce build-word2vec' again"
        )
    return vectors
