"""Search in a gallery. It needs PyTorch only if the model that embeds the queries does."""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dpce_cli.core.errors import QueryError, WorkspaceError
from dpce_cli.core.galleries.approximate import WORTHWHILE, nearest, open_index
from dpce_cli.core.galleries.catalogue import About, Catalogue, Rows, generation
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.combining import Term, combined
from dpce_cli.core.retrieval.hits import Filters, Hit, Kind, with_relevance
from dpce_cli.core.retrieval.relevance import Relevance
from dpce_cli.core.sharing.finding import find_model
from dpce_cli.core.storage.locks import exclusive
from dpce_cli.core.workspace.workspace import Workspace, check_name

if TYPE_CHECKING:
    from PIL import Image

    from dpce_cli.core.retrieval.model import Model

_BLOCK = 2**14
"""Embeddings that filters leave and that are copied to memory at a time."""
_FINALISTS = 256
"""How many rows FAISS finds; they are then compared exactly."""
_NEAR_DUPLICATE = 0.98
"""Cosine similarity from which `unique` takes two items for the same."""
Vector = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


class Gallery:
    """A gallery that `dpce index` made; each search sees the state after the indexer's last transaction.

    Args:
        folder: such as `dpce-workspace/galleries/photos`.
        model: the one that made it, or one that only adds words to it.
        filters: which items may be answers.

    Raises:
        WorkspaceError: there is no such gallery, or it was made with another model.
    """

    root = Path("/")
    """What the paths of answers are relative to."""

    def __init__(self, folder: str | Path, model: Model, filters: Filters | None = None) -> None:
        folder = Path(folder)
        self.folder, self.model, self.filters = folder, model, filters or Filters()
        self.about = about_gallery(folder)
        if not can_search(self.about, model):
            raise WorkspaceError(
                f"{folder}: was made with another model ({self.about.model_name}) than {model.name}; name its model "
                "with --model, or run 'dpce index FOLDER --rebuild'"
            )
        self._mapped: tuple[Path, Rows] | None = None
        self._opened: tuple[Path, Any] | None = None

    @property
    def title(self) -> str:
        return f"gallery {self.folder.name}"

    def answers(self, query: object) -> Kind:
        """Photos or sentences, for any query."""
        return "sentences" if self.about.kind == "sentences" else "photos"

    def search(
        self, query: str | Path | Image.Image | Vector, top_k: int = 10, terms: Sequence[Term] = ()
    ) -> list[Hit]:
        """The items nearest to a query, best first.

        Args:
            query: a sentence, the path of a photo or an open one, or an embedding `(dim,)`, L2-normalised, which is
                compared without the correction for hubs.
            terms: what the answers should fit, too, or should not fit.

        Raises:
            QueryError: the model knows no word of the query, `top_k` is below 1, or `filters.under` is no folder of the
                gallery.
            DataError: the photo cannot be read.
        """
        if top_k < 1:
            raise QueryError(f"--top-k {top_k}: ask for at least 1 result")
        vector = self._embedded(query)
        if terms:
            vector[:-1] = combined(self.model, vector[:-1], terms, is_photo=not isinstance(query, str))
        curve = self._relevance() if vector[-1] and not terms else None
        return with_relevance(self._nearest(vector, top_k), curve)

    def _nearest(self, vector: Vector, top_k: int) -> list[Hit]:
        with closing(open_gallery(self.folder)) as catalogue, catalogue.snapshot() as database:
            embeddings = self._embeddings(catalogue)
            where, values = _conditions(catalogue, self.filters)
            if not values and (index := self._index(catalogue, len(embeddings))) is not None:
                finalists = nearest(index, embeddings, vector, max(_FINALISTS, 16 * top_k))
                # Lists that were not read may have better rows than the last of these.
                best = finalists[: len(finalists) // 4]
                hits = self._hits(database, embeddings, best, top_k, where, values)
                if len(hits) == top_k:  # else many of the best are gone, or nearly the same
                    return hits
            rows = _rows(database, where, values) if values else None
            return self._hits(database, embeddings, _ranked(embeddings, rows, vector), top_k, where, values)

    def _hits(
        self,
        database: sqlite3.Connection,
        embeddings: Rows,
        ranked: Iterable[tuple[int, float]],
        top_k: int,
        where: str,
        values: list[Any],
    ) -> list[Hit]:
        """The first `top_k` items of rows in their order, without what is gone or damaged."""
        hits: list[Hit] = []
        shown: list[Vector] = []
        for row, score in ranked:
            items = database.execute(
                "SELECT roots.path, items.path, date, checksum FROM contents JOIN items ON content = contents.id "
                f"JOIN roots ON roots.id = root WHERE row = ? AND {where} ORDER BY root, items.path",
                [row, *values],
            ).fetchall()
            embedding = embeddings[row]
            if not items or zlib.crc32(embedding.tobytes()) != items[0][3]:
                continue  # gone, or damaged on the disk
            if self.filters.unique:
                if any(float(embedding[:-1] @ other[:-1]) >= _NEAR_DUPLICATE for other in shown):
                    continue
                shown.append(embedding)
                items = items[:1]
            for root, path, taken, _ in items:
                hits.append(self._hit(len(hits) + 1, score, root, path, taken))
                if len(hits) == top_k:
                    return hits
        return hits

    def _relevance(self) -> Relevance | None:
        """The curve from score to relevance for answers of the other kind than the query; None: not known."""
        known = self.model.relevances
        return known.of_answers(self.answers(None)) if known and self.about.corrects_hubs else None

    def _index(self, catalogue: Catalogue, count: int) -> Any | None:
        """FAISS's index, where the gallery is large enough for it."""
        if count < WORTHWHILE:
            return None
        if self._opened is None or self._opened[0] != catalogue.folder:
            self._opened = catalogue.folder, open_index(catalogue.folder)
        return self._opened[1]

    def _embedded(self, query: str | Path | Image.Image | Vector) -> Vector:
        """The embedding of a query, and 1 where hubs are to be corrected: among items of the other kind."""
        if isinstance(query, np.ndarray):
            return np.append(query, np.float32(0))
        if isinstance(query, str):
            (vector,), is_other_kind = self.model.encode_text([query]), self.about.kind == "photos"
        else:
            (vector,), is_other_kind = self.model.encode_images([query]), self.about.kind == "sentences"
        return np.append(vector, np.float32(is_other_kind))

    def _embeddings(self, catalogue: Catalogue) -> Rows:
        count = catalogue.row_count()
        if self._mapped is None or self._mapped[0] != catalogue.folder or len(self._mapped[1]) < count:
            self._mapped = catalogue.folder, catalogue.embeddings(count)
        return self._mapped[1][:count]

    def _hit(self, rank: int, score: float, root: bytes, path: bytes, taken: str | None) -> Hit:
        if self.about.kind == "sentences":
            file = os.fsdecode(root)
            return Hit(rank=rank, score=score, image_id=file, path=file, caption=path.decode())
        whole = os.fsdecode(os.path.join(root, path))
        return Hit(rank=rank, score=score, image_id=whole, path=whole, caption="", date=taken)


def load_gallery(
    workspace: Workspace, name: str, reporter: Reporter, *, model: str | None = None, filters: Filters | None = None
) -> Gallery:
    """A workspace's gallery with its model, or with the model named `model`.

    Raises:
        WorkspaceError: there is no such gallery, or it was made with another model.
        CheckpointError: there is no such model, or it is damaged.
    """
    folder = workspace.gallery_folder(check_name(name))
    found = find_model(model or recorded_model(folder), workspace, reporter=reporter)
    return Gallery(folder, found, filters)


def about_gallery(folder: Path) -> About:
    """What a gallery is made of.

    Raises:
        WorkspaceError: there is no such gallery, or it is damaged.
    """
    with closing(open_gallery(folder)) as catalogue:
        return catalogue.about


def can_search(about: About, model: Model) -> bool:
    """Whether a model made a gallery, or only adds words to the model that made it."""
    return about.fingerprint in (model.fingerprint, *model.extends)


def recorded_model(folder: Path) -> str | None:
    """The name of a gallery's model; None: the workspace's best model, or there is no gallery yet."""
    if not (folder / "current").is_file():
        return None
    return about_gallery(folder).model or None


def change_model(folder: Path, before: str, model: Model, source: str) -> None:
    """Change a gallery's model, in one step, to one that embeds its items equally; no item is embedded again.

    Args:
        before: fingerprint of the gallery's model.
        source: the new model's name, as `find_model` takes it.

    Raises:
        WorkspaceError: there is no such gallery, it has another model by now, or it is being indexed.
    """
    with exclusive(folder / "lock", "a process indexes this gallery; wait for it, then run again"):
        current = generation(folder)
        if not current:
            raise no_such_gallery(folder)
        with closing(Catalogue(current, writable=True)) as catalogue, catalogue.transaction() as database:
            if catalogue.about.fingerprint != before:
                raise WorkspaceError(f"{folder}: got another model in the meantime; run again")
            changed = {"fingerprint": model.fingerprint, "model": source, "model_name": model.name}
            database.executemany("UPDATE about SET value = ? WHERE key = ?", [(v, key) for key, v in changed.items()])


def open_gallery(folder: Path) -> Catalogue:
    """The current generation of a gallery, for reading."""
    while current := generation(folder):
        try:
            return Catalogue(current)
        except WorkspaceError:
            if generation(folder) == current:  # else --rebuild has just replaced it
                raise
    raise no_such_gallery(folder)


def no_such_gallery(folder: Path) -> WorkspaceError:
    others = sorted(path.name for path in folder.parent.glob("*") if (path / "current").is_file())
    hint = f"; there are: {', '.join(others)}" if others else ""
    return WorkspaceError(f"{folder}: there is no such gallery; 'dpce index FOLDER' makes one{hint}")


def _ranked(embeddings: Rows, rows: Indices | None, vector: Vector) -> Iterator[tuple[int, float]]:
    """Rows and cosine similarities, best first; equal ones keep their order. `rows`: the rows to rank; None: all.

    The first few hundred are found without sorting all rows.
    """
    scores = np.empty(len(embeddings) if rows is None else len(rows), dtype=np.float32)
    if rows is None:  # one product: it needs no more memory, and blocks take twice as long on two threads
        np.matmul(embeddings, vector, out=scores)
    else:
        for start in range(0, len(rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            np.matmul(embeddings[rows[part]], vector, out=scores[part])
    np.nan_to_num(scores, copy=False, nan=-np.inf)  # of damaged rows
    done, size = 0, 256
    while done < len(scores):
        size = min(size, len(scores))
        least = np.partition(scores, len(scores) - size)[len(scores) - size]
        candidates = np.flatnonzero(scores >= least)
        ordered = candidates[np.argsort(-scores[candidates], kind="stable")]
        for index in ordered[done:]:
            yield int(index if rows is None else rows[index]), float(scores[index])
        done, size = len(ordered), size * 16


def _rows(database: sqlite3.Connection, where: str, values: list[Any]) -> Indices:
    """The rows of the items of which `where` is true, ascending."""
    found = database.execute(
        f"SELECT DISTINCT row FROM items JOIN contents ON contents.id = content WHERE row IS NOT NULL AND {where}",
        values,
    )
    return np.sort(np.fromiter((row for (row,) in found), dtype=np.int64))


def _conditions(catalogue: Catalogue, filters: Filters) -> tuple[str, list[Any]]:
    """What `filters.under`, `since` and `until` mean in SQL."""
    where, values = ["1"], list[Any]()
    if filters.since:
        where.append("contents.date >= ?")
        values.append(filters.since.isoformat())
    if filters.until:
        where.append("contents.date < ?")
        values.append((filters.until + timedelta(days=1)).isoformat())
    if filters.under:
        folder = filters.under.expanduser().resolve()
        places = []
        for root, number in catalogue.roots().items():
            if root.is_relative_to(folder):
                places.append("items.root = ?")
                values.append(number)
            elif folder.is_relative_to(root):
                inside = os.fsencode(folder.relative_to(root))
                places.append("(items.root = ? AND items.path > ? AND items.path < ?)")  # "0" comes after "/"
                values += [number, inside + b"/", inside + b"0"]
        if not places:
            roots = ", ".join(map(str, catalogue.roots()))
            raise QueryError(f"--under {filters.under}: the gallery has nothing there; it was made from {roots}")
        where.append(f"({' OR '.join(places)})")
    return " AND ".join(where), values
