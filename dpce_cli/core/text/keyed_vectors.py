"""gensim's own `.kv` files, which are pickles, read without running anything that they name."""

from __future__ import annotations

import pickle
from collections.abc import Set
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dpce_cli.core.errors import VocabularyError
from dpce_cli.core.text.word2vec_files import Row, finite

_ADVICE = "save it with gensim 4 as KeyedVectors, or as word2vec .bin or .txt, or get it again"


def read_keyed_vectors(stream: BinaryIO, path: Path, wanted: Set[bytes]) -> tuple[dict[bytes, Row], int]:
    """The rows of the wanted words (UTF-8) in a file of gensim 4's `KeyedVectors.save`, and the dimension.

    A large matrix beside it in `<path>.vectors.npy` is mapped, not loaded; the words are loaded.

    Raises:
        VocabularyError: the pickle names anything but a KeyedVectors and its arrays, it is damaged, the matrix
            is missing or does not fit the words, or a wanted row is not finite.
    """
    found: dict[bytes, Row] = {}
    try:
        state = _KeyedVectorsUnpickler(stream, path).load().state
        words = state["index_to_key"]
        matrix = _array(state["vectors"]) if "vectors" in state else _array_beside(path)
        rows, dim = matrix.shape
        if rows < len(words) or not dim or matrix.dtype.kind != "f":
            raise ValueError(f"{len(words)} words, but vectors of {matrix.dtype} and shape {matrix.shape}")
        for index, word in enumerate(words):
            key = word.encode("utf-8", "surrogatepass")
            if key in wanted:
                with np.errstate(over="ignore"):  # too large for float32 becomes inf, which finite() reports
                    found[key] = finite(matrix[index].astype(np.float32), key, path, f"word {index + 1}")
    except VocabularyError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise VocabularyError(f"{path}: not the KeyedVectors of gensim 4 ({error!r}); {_ADVICE}") from error
    return found, dim


class _Inert:
    """Stands for every class and function that the pickle may name: keeps what it is given, does nothing."""

    args: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _KeyedVectorsUnpickler(pickle.Unpickler):
    _NAMES = frozenset(
        {
            "gensim.models.keyedvectors.KeyedVectors",
            "numpy._core.multiarray._reconstruct",
            "numpy.core.multiarray._reconstruct",
            "numpy.dtype",
            "numpy.ndarray",
        }
    )

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        super().__init__(stream)
        self._path = path

    def find_class(self, module: str, name: str) -> type[_Inert]:
        if f"{module}.{name}" not in self._NAMES:
            raise VocabularyError(
                f"{self._path}: asks for {module}.{name}, which word vectors do not need, so it is refused; {_ADVICE}"
            )
        return _Inert


def _array(pickled: Any) -> npt.NDArray[Any]:
    match pickled.state:
        case (1, shape, _Inert(args=(("f2" | "f4" | "f8") as kind, *_), state=(_, order, *_)), False, raw):
            return np.frombuffer(raw, np.dtype(kind).newbyteorder(order)).reshape(shape)
    raise ValueError("its vectors are no array of floats")


def _array_beside(path: Path) -> npt.NDArray[Any]:
    file = path.with_name(f"{path.name}.vectors.npy")
    if not file.is_file():
        raise VocabularyError(f"{file}: not found; gensim wrote it beside {path.name}, copy it there too")
    matrix: npt.NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    return matrix
