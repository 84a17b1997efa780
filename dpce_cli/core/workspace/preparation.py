"""From captioned images to a prepared data set: tokens, vocabulary, token ids."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpce_cli.core.config import Config
from dpce_cli.core.data.records import SPLITS, CaptionedImages
from dpce_cli.core.errors import DataError, WorkspaceError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.text.tokenizer import tokenize
from dpce_cli.core.text.vocabulary import build_vocabulary, check_no_leak
from dpce_cli.core.text.word_vectors import (
    WordVectors,
    build_word_vectors,
    load_word_vectors,
    read_word_vectors,
    save_word_vectors,
    train_word_vectors,
)
from dpce_cli.core.workspace.workspace import PreparedDataset, PreparedImage, Workspace

# Passes of word2vec over the captions; gensim's default of 5 is for corpora of a billion words.
WORD2VEC_EPOCHS = 20


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """What a split holds."""

    split: str
    images: int
    captions: int
    cut_captions: int
    """Captions with more known words than `max_words`; the rest of their words is not read."""
    unknown_words: float
    """Share of the split's words that are not in the vocabulary."""


def prepare_dataset(
    workspace: Workspace, captioned: CaptionedImages, config: Config, reporter: Reporter
) -> tuple[PreparedDataset, list[SplitSummary]]:
    """Tokenize every caption, build the vocabulary from the training captions alone, and make the data set current.

    Raises:
        DataError: there is no training image.
        VocabularyError: no training word occurs often enough.
        WorkspaceError: the workspace cannot be written.
    """
    tokens: list[list[list[str]]] = []
    with reporter.track("tokenizing captions", len(captioned.images)) as advance:
        for image in captioned.images:
            tokens.append([tokenize(caption, lowercase=config.text.lowercase) for caption in image.captions])
            advance()
    training = [
        caption
        for image, captions in zip(captioned.images, tokens, strict=True)
        if image.split == "train"
        for caption in captions
    ]
    if not training:
        raise DataError(f"{captioned.root}: no image is in the train split; assign some to it and run again")
    vocabulary = build_vocabulary(training, lowercase=config.text.lowercase, min_count=config.text.min_count)
    check_no_leak(vocabulary, training)
    images = [
        PreparedImage(
            image_id=image.image_id,
            path=image.path,
            split=image.split,
            captions=image.captions,
            identity=image.identity,
            extent=image.extent,
            token_ids=tuple(tuple(vocabulary.token_ids(caption)) for caption in captions),
        )
        for image, captions in zip(captioned.images, tokens, strict=True)
    ]
    summaries = []
    for split in SPLITS:
        members = [i for i, image in enumerate(images) if image.split == split]
        if members:
            words = sum(len(caption) for i in members for caption in tokens[i])
            known = [len(ids) for i in members for ids in images[i].token_ids]
            summaries.append(
                SplitSummary(
                    split=split,
                    images=len(members),
                    captions=len(known),
                    cut_captions=sum(length > config.text.max_words for length in known),
                    unknown_words=1 - sum(known) / words if words else 0.0,
                )
            )
    dataset = workspace.save_dataset(
        name=captioned.name,
        root=captioned.root.resolve(),
        config=config,
        vocabulary=vocabulary,
        images=images,
        source=(captioned.source or captioned.root).resolve(),
    )
    return dataset, summaries


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
