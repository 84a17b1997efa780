"""Word vectors, the weights of the text encoder's first layer: read from a file or trained on captions, and stored."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dpce_cli.core.errors import VocabularyError, WorkspaceError
from dpce_cli.core.progress import Advance, Reporter
from dpce_cli.core.storage.hdf5 import reading_hdf5, writing_hdf5
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.text.word2vec_files import CHUNK_BYTES, Row, read_binary, read_text

_READERS = {
    ".bin": read_binary,
    ".bin.gz": read_binary,
    ".txt": read_text,
    ".txt.gz": read_text,
    ".vec": read_text,
    ".vec.gz": read_text,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class WordVectors:
    """One vector per word of a vocabulary."""

    vocabulary: Vocabulary
    """If `oov` is "drop", words without a vector are left out."""
    matrix: Row
    """(words, dim), finite; row i belongs to `vocabulary.words[i]`, whose id is i + 1."""
    coverage: float
    """The fraction of the vocabulary's words that have a vector."""
    token_coverage: float | None
    """The fraction of the words in the captions that have a vector; None if `build_word_vectors` got no counts."""
    source: str
    """Where the vectors come from."""
    oov: Literal["random", "drop"]
    """Whether words without a vector got a random one or were dropped."""


def read_word_vectors(
    path: Path, words: Collection[str], reporter: Reporter, *, leading: int = 0
) -> tuple[dict[str, Row], int]:
    """The vectors of those `words` that are in the file, and the dimension.

    Reads word2vec's `.bin`, `.txt` and `.vec` and GloVe's `.txt`, each also as `.gz`; only the rows of `words` stay in
    memory. A word that is not in the file is looked up again in lower case, and `reporter` tells how many were found
    this way. The code of Zheng et al. 2020 does not look them up again.

    Args:
        leading: also return the vectors of so many words at the beginning of the file, where frequent words are.

    Raises:
        VocabularyError: the file cannot be read, has another format, or is damaged.
    """
    compressed = path.suffix.lower() == ".gz"
    suffix = "".join(path.suffixes[-2 if compressed else -1 :]).lower()
    if suffix == ".kv":
        raise VocabularyError(
            f"{path}: gensim's own format is a pickle, which can run code; convert it with gensim: KeyedVectors.load("
            f"{path.name!r}).save_word2vec_format('vectors.bin', binary=True)"
        )
    if suffix not in _READERS:
        raise VocabularyError(f"{path}: the name of a word vector file ends in one of {', '.join(_READERS)}")
    wanted = {_key(form) for word in words for form in (word, word.lower())}
    try:
        with (
            open(path, "rb", buffering=0) as file,
            reporter.track(f"{path.name} (bytes)", total=path.stat().st_size) as advance,
        ):
            counted = _Counted(file, advance)
            buffered = io.BufferedReader(counted, CHUNK_BYTES)
            stream: Any = gzip.GzipFile(fileobj=buffered) if compressed else buffered
            try:
                rows, dim = _READERS[suffix](stream, path, wanted, leading)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise VocabularyError(
                    f"{path}: byte {counted.position}: damaged compressed data ({error}); download the file again"
                ) from error
    except OSError as error:
        raise VocabularyError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    exact = {word: rows[_key(word)] for word in words if _key(word) in rows}
    lowered = {word: rows[key] for word in words if word not in exact and (key := _key(word.lower())) in rows}
    reporter.note(
        f"{path.name}: {len(exact) + len(lowered)} of {len(words)} words have a vector of {dim} numbers"
        f" ({len(lowered)} of them only in lower case)"
    )
    others: dict[str, Row] = {}
    for key in rows if leading else ():
        with suppress(UnicodeDecodeError):
            others.setdefault(key.decode(), rows[key])
    return others | exact | lowered, dim


def train_word_vectors(
    tokenized_captions: Sequence[Sequence[str]], *, dim: int, seed: int, epochs: int, reporter: Reporter
) -> dict[str, Row]:
    """Train skip-gram vectors (dim,) for every word in the captions, on these captions alone.

    gensim uses one thread, so that the same captions and seed always give the same vectors.

    Raises:
        VocabularyError: there is no word in the captions.
    """
    if not any(tokenized_captions):
        raise VocabularyError("there is no word in the training captions; re-run `dpce prepare-vocab`")

    from gensim.models import Word2Vec
    from gensim.models.callbacks import CallbackAny2Vec

    with reporter.track("word2vec epochs", total=epochs) as advance:

        class Progress(CallbackAny2Vec):  # type: ignore[misc]  # gensim is untyped
            def on_epoch_end(self, model: Word2Vec) -> None:
                advance()

        trained = Word2Vec(
            tokenized_captions,
            vector_size=dim,
            sg=1,
            min_count=1,
            workers=1,
            seed=seed % 2**32,  # gensim takes no larger one
            epochs=epochs,
            callbacks=[Progress()],
        ).wv
    return {word: trained[word] for word in trained.index_to_key}


def build_word_vectors(
    vocabulary: Vocabulary,
    found: Mapping[str, Row],
    *,
    oov: Literal["random", "drop"],
    seed: int,
    source: str,
    counts: Mapping[str, int] | None = None,
) -> WordVectors:
    """Give every word of the vocabulary a vector.

    Args:
        found: vectors (dim,) by word.
        oov: words that are not in `found` are dropped, as in Zheng et al. 2020 ("drop"), or get a vector drawn with
            `seed` from a normal distribution; it has the mean and deviation of each dimension of the found vectors
            ("random").
        counts: how often each word occurs in the captions.

    Raises:
        VocabularyError: no word of the vocabulary has a vector.
    """
    known = [word for word in vocabulary.words if word in found]
    if not known:
        raise VocabularyError(
            f"{source}: none of the vocabulary's {len(vocabulary)} words has a vector; "
            "check that the vectors are of the captions' language"
        )
    rows = np.stack([found[word] for word in known]).astype(np.float32)
    coverage = len(known) / len(vocabulary)
    token_coverage = None
    if counts is not None:
        token_coverage = sum(counts[word] for word in known) / sum(counts[word] for word in vocabulary.words)
    if oov == "drop":
        vocabulary, matrix = vocabulary.restricted_to(known), rows
    else:
        shape = (len(vocabulary), rows.shape[1])
        matrix = np.random.default_rng(seed).normal(rows.mean(axis=0), rows.std(axis=0), shape).astype(np.float32)
        matrix[[word in found for word in vocabulary.words]] = rows
    return WordVectors(
        vocabulary=vocabulary,
        matrix=matrix,
        coverage=coverage,
        token_coverage=token_coverage,
        source=source,
        oov=oov,
    )


def save_word_vectors(path: Path, word_vectors: WordVectors, meta: Mapping[str, Any]) -> None:
    """Write the vectors and `meta` (JSON values) as an HDF5 file, which appears only when it is complete.

    Raises:
        WorkspaceError: the file cannot be written.
    """
    description = json.dumps(
        {
            "vocabulary": word_vectors.vocabulary.to_json(),
            "coverage": word_vectors.coverage,
            "token_coverage": word_vectors.token_coverage,
            "source": word_vectors.source,
            "oov": word_vectors.oov,
            "meta": dict(meta),
        }
    )
    with writing_hdf5(path) as file:
        file["matrix"] = word_vectors.matrix
        file["description"] = description
        file["sha256"] = _checksum(description, word_vectors.matrix)


def load_word_vectors(path: Path) -> tuple[WordVectors, dict[str, Any]]:
    """Read the vectors and `meta` that `save_word_vectors` wrote.

    Raises:
        WorkspaceError: the file is missing or damaged.
    """
    advice = "re-run `dpce build-word2vec`"
    if not path.is_file():
        raise WorkspaceError(f"{path}: there are no word vectors yet; run `dpce build-word2vec` first")
    try:
        with reading_hdf5(path) as file:
            matrix: Row = file["matrix"][()]
            text: str = file["description"].asstr()[()]
            checksum: str = file["sha256"].asstr()[()]
        if checksum != _checksum(text, matrix):
            raise ValueError("damaged: wrong checksum")
        description = json.loads(text)
        word_vectors = WordVectors(
            vocabulary=Vocabulary.from_json(description["vocabulary"], "vocabulary"),
            matrix=matrix,
            coverage=description["coverage"],
            token_coverage=description["token_coverage"],
            source=description["source"],
            oov=description["oov"],
        )
        meta = dict(description["meta"])
        _check(word_vectors)
    except (
        *(OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError, VocabularyError),
    ) as error:
        raise WorkspaceError(f"{path}: these word vectors cannot be read ({error}); {advice}") from error
    return word_vectors, meta


def _check(vectors: WordVectors) -> None:
    """Raise `ValueError` where the parts are not what `WordVectors` says of them."""
    matrix, shares = vectors.matrix, (vectors.coverage, vectors.token_coverage or 0.0)
    if matrix.dtype != np.float32 or matrix.ndim != 2 or len(matrix) != len(vectors.vocabulary) or not matrix.size:
        raise ValueError(f"{matrix.dtype} {matrix.shape} are not the vectors of {len(vectors.vocabulary)} words")
    if not np.isfinite(matrix).all():
        raise ValueError("they hold numbers that are not finite")
    if not isinstance(vectors.source, str) or not all(type(one) in (int, float) and 0 <= one <= 1 for one in shares):
        raise ValueError("their description is not what build-word2vec writes")


def _checksum(description: str, matrix: Row) -> str:
    digest = hashlib.sha256(f"{description}{matrix.shape}{matrix.dtype}".encode("utf-8", "surrogatepass"))
    digest.update(matrix.tobytes())
    return digest.hexdigest()


def _key(word: str) -> bytes:
    return word.encode("utf-8", "surrogatepass")


class _Counted(io.RawIOBase):
    """A file that reports how far it has been read."""

    def __init__(self, file: io.FileIO, advance: Advance) -> None:
        self._file = file
        self._advance = advance
        self.position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self.position += count
        self._advance(count)
        return count
