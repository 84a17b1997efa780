"""Embedding the photos and sentences of a gallery; each process embeds its share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dpce_cli.core.data.loading import read_views
from dpce_cli.core.data.records import CaptionedImage
from dpce_cli.core.data.views import views_in_testing
from dpce_cli.core.galleries.catalogue import Found
from dpce_cli.core.galleries.scanning import check_still_there, identity, read_content
from dpce_cli.core.processes.collectives import share
from dpce_cli.core.retrieval.hubness import Bank, with_hubness
from dpce_cli.core.retrieval.model import Model

_PHOTOS, _SENTENCES = 16, 256
"""Embedded at a time."""
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pending:
    """A content that is to be embedded, with one of the files that have it."""

    content: int
    digest: bytes
    item: Found


@dataclass(frozen=True)
class Work:
    """What is to be embedded of one root."""

    root: Path
    kind: str
    pending: list[Pending]


@dataclass
class EncodedBatch:
    """A batch of contents."""

    embedded: list[tuple[int, Array]] = field(default_factory=list)
    problems: list[tuple[str, str, int]] = field(default_factory=list)
    """Names of contents that cannot be embedded, and why; remembered."""
    unsteady: list[str] = field(default_factory=list)
    """Files that changed meanwhile, or could not be read this time; left to the next run."""


def encode_share(model: Model, bank: Bank | None, work: Sequence[Work], workers: int) -> Iterator[EncodedBatch]:
    """Embed this process's share."""
    for one in work:
        pending = one.pending[share(len(one.pending))]
        if one.kind == "sentences":
            yield from _encode_sentences(model, bank, pending)
        else:
            yield from _encode_photos(model, bank, one.root, pending, workers)


def _encode_sentences(model: Model, bank: Bank | None, pending: Sequence[Pending]) -> Iterator[EncodedBatch]:
    for start in range(0, len(pending), _SENTENCES):
        batch, known = EncodedBatch(), list[tuple[int, str]]()
        for one in pending[start : start + _SENTENCES]:
            sentence = one.item.path.decode()
            if model.knows(sentence):
                known.append((one.content, sentence))
            else:
                batch.problems.append((repr(sentence), "the model knows none of its words", one.content))
        embeddings = torch.from_numpy(model.encode_text([sentence for _, sentence in known]))
        rows = with_hubness(embeddings, bank.hubness_of_texts(embeddings) if bank else None)
        batch.embedded = list(zip((content for content, _ in known), rows, strict=True))
        yield batch


def _encode_photos(
    model: Model, bank: Bank | None, root: Path, pending: Sequence[Pending], workers: int
) -> Iterator[EncodedBatch]:
    before = identity(root)
    size = 1 if model.config.image.test_view == "full" else _PHOTOS  # whole photos differ in size
    images = [CaptionedImage(image_id="", path=os.fsdecode(one.item.path), split="", captions=()) for one in pending]
    views = read_views(root, images, views_in_testing(model.config.image), batch_size=size, workers=workers)
    for number, (positions, photos, messages) in enumerate(views):
        rows = dict[int, Array]()
        if positions:
            embeddings = model.encode_views(photos).cpu()
            hubness = bank.hubness_of_images(embeddings) if bank else None
            rows = dict(zip(positions, with_hubness(embeddings, hubness), strict=True))
        batch, reasons = EncodedBatch(), iter(messages)
        for position in range(number * size, min(len(pending), (number + 1) * size)):
            one, path = pending[position], root / images[position].path
            reason = None if position in rows else next(reasons)
            if not _is_same(path, one, read_again=reason is not None):
                check_still_there(root, before)
                batch.unsteady.append(f"{path}: changed while it was read; run again to index it")
            elif reason is None:
                batch.embedded.append((one.content, rows[position]))
            else:
                batch.problems.append((str(path), reason.removeprefix(f"{path}: "), one.content))
        yield batch


def _is_same(path: Path, pending: Pending, *, read_again: bool) -> bool:
    """Whether the file is still the one that was hashed; with `read_again`, by its bytes, as a disk may have failed."""
    try:
        if read_again:
            return read_content(path.parent, os.fsencode(path.name)).digest == pending.digest
        status = path.stat(follow_symlinks=False)
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (pending.item.size, pending.item.changed)
