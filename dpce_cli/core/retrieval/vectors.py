"""Embeddings of single photos and sentences, for other programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpce_cli.core.errors import DataError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.model import Array, Model
from dpce_cli.core.storage.files import replacing

if TYPE_CHECKING:
    from PIL import Image


def encode_photos(model: Model, paths: Sequence[Path], *, reporter: Reporter) -> tuple[list[Path], Array]:
    """Embed photos one after another; those that cannot be read are named in a warning and left out.

    Returns:
        The paths that were read, in order, and their embeddings `(paths, dim)`, float32, L2-normalised.

    Raises:
        DataError: none can be read.
    """
    from dpce_cli.core.data.images import load_image

    read = list[Path]()

    def photos() -> Iterator[Image.Image]:
        for path in paths:
            try:
                photo = load_image(path)
            except DataError as error:
                reporter.warn(f"{error}: skipped")
            else:
                read.append(path)
                yield photo
            advance()

    with reporter.track("embedding photos", len(paths)) as advance:
        embeddings = model.encode_images(photos())
    if not read:
        raise DataError(f"none of the {len(paths)} photos can be read; name JPEG or PNG files, for example")
    if skipped := len(paths) - len(read):
        reporter.warn(f"{skipped} of {len(paths)} photos could not be read and have no vector")
    return read, embeddings


def save_vectors(path: Path, names: Sequence[str], embeddings: Array, model: Model) -> Path:
    """Write embeddings as a NumPy array, and what each row is an embedding of as JSON beside it.

    Returns:
        The JSON file, which has the array's name with the ending .json.

    Raises:
        WorkspaceError: they cannot be written.
    """
    beside = path.with_suffix(".json")
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, embeddings)
    about = {"model": model.name, "fingerprint": model.fingerprint, "names": list(names)}
    with replacing(beside) as temporary:  # ASCII, because a name need not be valid UTF-8
        temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="ascii")
    return beside


def vector_line(kind: str, name: str, embedding: np.ndarray[tuple[int], np.dtype[np.float32]]) -> str:
    """One line of JSON with an embedding, each number as short as float32 allows.

    >>> vector_line("query", "two dogs", np.array([0.1, -0.25], np.float32))
    '{"query": "two dogs", "embedding": [0.1, -0.25]}'
    """
    return json.dumps({kind: name, "embedding": [float(str(number)) for number in embedding]})
