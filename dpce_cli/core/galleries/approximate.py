"""Approximate search in large galleries, by FAISS (extra `faiss`): inverted lists of 8-bit codes.

The file `nearest.faiss` of a generation is derived from its embeddings and can be deleted at any time. Rows never
change, so the file stays valid for the rows that it has; it is made again after many were added. It is memory-mapped.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from dpce_cli.core.galleries.catalogue import Rows
from dpce_cli.core.progress import Reporter
from dpce_cli.core.storage.files import replacing

FILE = "nearest.faiss"
WORTHWHILE = 200_000
"""Rows from which an index is made."""
_STALE = 0.1
"""Share of the rows that may be missing in the index; a search compares the query with each of them."""
_TRAINING_ROWS_PER_LIST = 40
_RECALL, _SAMPLE = 0.99, 64
"""Share of the 10 nearest rows that a search has to find, on average over so many rows of the gallery as queries."""
_BLOCK = 2**14


def update_index(folder: Path, embeddings: Rows, reporter: Reporter) -> None:
    """Make the index of a generation, where it is worthwhile and FAISS is installed, and the index is missing or stale.

    Takes about 2 minutes per million rows of 512 numbers on one core.
    """
    if len(embeddings) < WORTHWHILE:
        return
    index = open_index(folder)
    if index is not None and len(embeddings) * (1 - _STALE) <= index.ntotal <= len(embeddings):
        return
    try:
        import faiss
    except ImportError:
        reporter.note("searches will be faster with FAISS: pip install 'dpce[faiss]', then run this command again")
        return
    count, dim = embeddings.shape
    lists = int(4 * math.sqrt(count))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dim), dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.niter = 5
    sample = min(count, _TRAINING_ROWS_PER_LIST * lists)
    rows = np.sort(np.random.default_rng(0).choice(count, sample, replace=False))
    with reporter.track("making the search index", count) as advance:
        index.train(np.nan_to_num(embeddings[rows]))
        for start in range(0, count, _BLOCK):
            block = np.nan_to_num(embeddings[start : start + _BLOCK])
            index.add(block)
            advance(len(block))
        _choose_probed_lists(index, embeddings)
        with replacing(folder / FILE) as temporary:
            faiss.write_index(index, str(temporary))


def _choose_probed_lists(index: Any, embeddings: Rows) -> None:
    """Set how many lists a search reads: as few as reach the recall with this gallery's photos and model.

    Rows serve as queries, corrected for hubs (see `core.galleries.catalogue`): for real photos and captions it takes
    about as many lists to find the neighbours of a photo as those of a caption.
    """
    queries = embeddings[np.sort(np.random.default_rng(1).choice(len(embeddings), _SAMPLE, replace=False))]
    queries[:, -1] = 1

    def answers(lists: int) -> list[set[int]]:
        index.nprobe = lists  # is stored with the index
        return [{row for row, _ in nearest(index, embeddings, query, 256)[:10]} for query in queries]

    exact = answers(index.nlist)
    for part in (64, 32, 16, 8, 4, 2, 1):
        found = answers(max(1, index.nlist // part))
        if sum(len(a & b) for a, b in zip(found, exact, strict=True)) >= _RECALL * sum(map(len, exact)):
            return


def open_index(folder: Path) -> Any | None:
    """The index of a generation, memory-mapped; None where there is none that can be used."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        import faiss

        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except (ImportError, RuntimeError):  # damaged: made again by the next run of the indexer
        return None


def nearest(index: Any, embeddings: Rows, vector: Rows, count: int) -> list[tuple[int, float]]:
    """About the `count` rows nearest to a vector `(dim,)`, best first, with their exact cosine similarities.

    Rows that the index does not have are compared one by one.
    """
    _, found = index.search(np.ascontiguousarray(vector[None]), count)
    rows = np.union1d(found[(found >= 0) & (found < len(embeddings))], np.arange(index.ntotal, len(embeddings)))
    scores = np.nan_to_num(embeddings[rows] @ vector, nan=-np.inf)
    order = np.argsort(-scores, kind="stable")[:count]
    return [(int(rows[i]), float(scores[i])) for i in order]
