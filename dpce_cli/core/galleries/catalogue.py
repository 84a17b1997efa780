"""What a gallery holds: an SQLite catalogue of files and contents, and the embeddings in one file that only grows.

    galleries/photos/
      lock                    held by the process that indexes
      current                 name of the generation that is searched
      generation-1/
        catalogue.sqlite      roots, files and contents, each content with the row of its embedding
        embeddings.f32        float32 rows of an embedding and minus its hubness, memory-mapped for search

Rows are appended and synced to the disk first; then one transaction of the catalogue names them. A process that is
killed in between leaves rows that no transaction names. Rows never move or change, so a search during indexing sees
the state after one transaction. Another model makes a new generation, which replaces the old one when it is complete.

The embeddings are in a plain file because an HDF5 file cannot be read while it is extended, and is damaged if its
writer is killed. The catalogue has a CRC-32 per row, to find damaged rows.
"""

from __future__ import annotations

import mmap
import os
import shutil
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dpce_cli.core.errors import WorkspaceError
from dpce_cli.core.storage.files import replacing

FORMAT = "1"
_SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE roots (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE);
CREATE TABLE contents (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    row INTEGER UNIQUE,  -- of its embedding
    checksum INTEGER,    -- CRC-32 of that row
    problem TEXT,        -- why it has none
    date TEXT            -- when the photo was taken, ISO 8601
);
CREATE TABLE items (
    root INTEGER NOT NULL REFERENCES roots (id),
    path BLOB NOT NULL,        -- relative to the root; in a gallery of sentences, the sentence
    size INTEGER NOT NULL,
    changed INTEGER NOT NULL,  -- modification time in ns; in a gallery of sentences, the line
    content INTEGER REFERENCES contents (id),
    problem TEXT,              -- why the content is not known
    PRIMARY KEY (root, path)
) WITHOUT ROWID;
CREATE INDEX items_of_content ON items (content);
"""
Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class About:
    """What a gallery is made of."""

    kind: str
    """"photos" or "sentences"."""
    row_length: int
    """Numbers per row: of an embedding, and minus its hubness (see `retrieval.hubness`)."""
    fingerprint: str
    """Of the model that made the embeddings."""
    model: str
    """Folder or hub name of that model; "" for the best model of the workspace's data set."""
    model_name: str
    """For people."""
    corrects_hubs: bool
    """Whether the hubness of the items is known; else it is 0."""


@dataclass(frozen=True)
class Found:
    """A file on the disk, or a sentence in a file."""

    path: bytes
    """Relative to its root; bytes, because file names need not be UTF-8. Of a sentence, the sentence."""
    size: int
    changed: int
    """Modification time in ns. Of a sentence, its line."""


class Catalogue:
    """One generation of a gallery, open for reading or, by one process at a time, for writing.

    Raises:
        WorkspaceError: it is missing, damaged, or of another version of dpce.
    """

    def __init__(self, folder: Path, *, writable: bool = False) -> None:
        self.folder = folder
        self._rows_path = folder / "embeddings.f32"
        uri = f"{(folder / 'catalogue.sqlite').absolute().as_uri()}?mode=rw"
        with _sqlite_errors(folder):
            # A reader opens it for writing too: it may have to undo a transaction whose process was killed.
            self.database = sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None)
            self.database.execute("PRAGMA trusted_schema = OFF")
            if not writable:
                self.database.execute("PRAGMA query_only = ON")
            stored = dict(self.database.execute("SELECT key, value FROM about"))
        if stored.pop("format", None) != FORMAT or stored.keys() != {field.name for field in fields(About)}:
            raise WorkspaceError(f"{folder}: was made by another version of dpce; run 'dpce index FOLDER --rebuild'")
        try:
            corrects_hubs = {"True": True, "False": False}[stored["corrects_hubs"]]
            self.about = About(**{**stored, "row_length": int(stored["row_length"]), "corrects_hubs": corrects_hubs})
        except (KeyError, ValueError) as error:
            raise WorkspaceError(
                f"{folder}: the catalogue is damaged ({error}); run 'dpce index FOLDER --rebuild'"
            ) from error

    @classmethod
    def create(cls, folder: Path, about: About) -> Catalogue:
        """An empty catalogue in a new folder, open for writing."""
        values = {"format": FORMAT, **vars(about)}
        with (
            replacing(folder / "catalogue.sqlite") as temporary,
            _sqlite_errors(folder),
            closing(sqlite3.connect(temporary)) as database,
        ):
            database.executescript(_SCHEMA)
            database.executemany("INSERT INTO about VALUES (?, ?)", [(key, str(values[key])) for key in values])
            database.commit()
        return cls(folder, writable=True)

    def close(self) -> None:
        self.database.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Changes that appear together or not at all."""
        with _sqlite_errors(self.folder):
            self.database.execute("BEGIN IMMEDIATE")
            try:
                yield self.database
                self.database.execute("COMMIT")
            except BaseException:
                if self.database.in_transaction:
                    self.database.execute("ROLLBACK")
                raise

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """One state of the catalogue, even if another process writes meanwhile."""
        with _sqlite_errors(self.folder):
            self.database.execute("BEGIN")
            try:
                yield self.database
            finally:
                self.database.execute("ROLLBACK")

    def roots(self) -> dict[Path, int]:
        """Folders or text files that the gallery was made from, each with its number."""
        with _sqlite_errors(self.folder):
            found = self.database.execute("SELECT path, id FROM roots ORDER BY id").fetchall()
        return {Path(os.fsdecode(path)): number for path, number in found}

    def add_root(self, path: Path) -> int:
        """The number of a root, which is added if it is new."""
        with self.transaction() as database:
            database.execute("INSERT OR IGNORE INTO roots (path) VALUES (?)", (os.fsencode(path),))
        return self.roots()[path]

    def known(self, root: int) -> dict[bytes, tuple[int, int, int | None]]:
        """Size, modification time and content of each path below a root."""
        with _sqlite_errors(self.folder):
            items = self.database.execute("SELECT path, size, changed, content FROM items WHERE root = ?", (root,))
            return {path: (size, changed, content) for path, size, changed, content in items}

    def drop(self, root: int, paths: Iterable[bytes]) -> None:
        """Delete paths; the embeddings of their contents stay, in case the files come back."""
        with self.transaction() as database:
            database.executemany("DELETE FROM items WHERE root = ? AND path = ?", [(root, path) for path in paths])

    def put(self, root: int, item: Found, digest: bytes, date: str | None) -> tuple[str, bool]:
        """Keep what is at a path, in a transaction of the caller's.

        Returns what happened to the item, "new", "changed", "moved or copied" or "" where it has the content that it
        had; and whether the content is new.
        """
        added = self.database.execute(
            "INSERT OR IGNORE INTO contents (hash, date) VALUES (?, ?)", (digest, date)
        ).rowcount
        ((content,),) = self.database.execute("SELECT id FROM contents WHERE hash = ?", (digest,))
        before = self.database.execute(
            "SELECT content FROM items WHERE root = ? AND path = ?", (root, item.path)
        ).fetchone()
        self._put(root, item, content, None)
        if before is None:
            return "new" if added else "moved or copied", bool(added)
        return "" if before == (content,) else "changed", bool(added)

    def put_unreadable(self, root: int, item: Found, problem: str) -> None:
        """Keep why what is at a path cannot be read, in a transaction of the caller's."""
        self._put(root, item, None, problem)

    def _put(self, root: int, item: Found, content: int | None, problem: str | None) -> None:
        self.database.execute(
            "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?)",
            (root, item.path, item.size, item.changed, content, problem),
        )

    def pending(self) -> list[tuple[Path, bytes, int, bytes]]:
        """The contents that are to be embedded: root and path of a file that has it, number and hash."""
        with _sqlite_errors(self.folder):
            found = self.database.execute(
                "SELECT roots.path, items.path, contents.id, hash FROM contents "
                "CROSS JOIN items ON content = contents.id JOIN roots ON roots.id = root "
                "WHERE row IS NULL AND contents.problem IS NULL "
                "GROUP BY contents.id ORDER BY root, items.path"
            ).fetchall()
        return [(Path(os.fsdecode(root)), path, content, digest) for root, path, content, digest in found]

    def set_problems(self, problems: Iterable[tuple[str, int]]) -> None:
        """Keep why contents cannot be embedded."""
        with self.transaction() as database:
            database.executemany("UPDATE contents SET problem = ? WHERE id = ?", problems)

    def item_count(self) -> int:
        """Items that have an embedding."""
        with _sqlite_errors(self.folder):
            ((count,),) = self.database.execute(
                "SELECT count(*) FROM items JOIN contents ON contents.id = content WHERE row IS NOT NULL"
            )
        return int(count)

    def row_count(self) -> int:
        """Rows of the embeddings' file that the catalogue may name."""
        ((last,),) = self.database.execute("SELECT max(row) FROM contents")
        return 0 if last is None else last + 1

    def embeddings(self, count: int) -> Rows:
        """The first `count` rows, `(count, row_length)`, read from the disk when they are used.

        Raises:
            WorkspaceError: the file is missing or too short.
        """
        if not count:
            return np.empty((0, self.about.row_length), dtype=np.float32)
        try:
            with open(self._rows_path, "rb") as file:
                mapped = mmap.mmap(file.fileno(), count * self.about.row_length * 4, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise WorkspaceError(
                f"{self._rows_path}: is missing or cut off ({error}); run 'dpce index FOLDER' again to repair it"
            ) from error
        return np.frombuffer(mapped, np.float32).reshape(count, self.about.row_length)

    def append(self, contents: Sequence[int], rows: Rows) -> None:
        """Keep the embeddings of contents: on the disk first, then in the catalogue.

        Raises:
            WorkspaceError: the disk is full, or the files cannot be written.
        """
        data = [np.ascontiguousarray(row, dtype=np.float32).tobytes() for row in rows]
        length = self.about.row_length * 4
        try:
            file = os.open(self._rows_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                first = -(-os.fstat(file).st_size // length)  # after a row that a killed process did not finish
                _write(file, b"".join(data), first * length)
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise WorkspaceError(
                f"{self._rows_path}: cannot be written ({error.strerror}); free space, then run again to continue"
            ) from error
        with self.transaction() as database:
            database.executemany(
                "UPDATE contents SET row = ?, checksum = ? WHERE id = ?",
                [
                    (first + i, zlib.crc32(row), content)
                    for i, (row, content) in enumerate(zip(data, contents, strict=True))
                ],
            )

    def forget_damaged_rows(self) -> int:
        """Forget damaged rows, so that their contents are embedded again; returns how many.

        Reads the whole file: about 3 s for a million rows of 512 numbers that are in the system's cache.
        """
        length = self.about.row_length * 4
        with _sqlite_errors(self.folder):
            named = self.database.execute(
                "SELECT id, row, checksum FROM contents WHERE row IS NOT NULL ORDER BY row"
            ).fetchall()
        available = self._rows_path.stat().st_size // length if self._rows_path.exists() else 0
        rows = self.embeddings(available)
        damaged = [
            content
            for content, row, checksum in named
            if row >= available or zlib.crc32(rows[row].tobytes()) != checksum
        ]
        if damaged:
            with self.transaction() as database:
                database.executemany("UPDATE contents SET row = NULL WHERE id = ?", [(content,) for content in damaged])
        return len(damaged)


def _write(file: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


@contextmanager
def _sqlite_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise WorkspaceError(
            f"{folder / 'catalogue.sqlite'}: cannot be used ({error}); free space, or stop the process that "
            "uses it, then run again"
        ) from error
    except sqlite3.Error as error:
        raise WorkspaceError(
            f"{folder / 'catalogue.sqlite'}: is damaged ({error}); run 'dpce index FOLDER --rebuild'"
        ) from error


def generation(folder: Path) -> Path | None:
    """The folder of the gallery's current generation; None where there is no gallery.

    Raises:
        WorkspaceError: the gallery names a generation that is not there.
    """
    try:
        name = (folder / "current").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    if not _number(name) or not (folder / name).is_dir():
        raise WorkspaceError(f"{folder}: its current state {name!r} is gone; run 'dpce index FOLDER --rebuild'")
    return folder / name


def _number(name: str) -> int:
    """Of a generation, from 1; 0 for another name."""
    prefix, _, number = name.partition("-")
    return int(number) if prefix == "generation" and number.isdecimal() else 0


def next_generation(folder: Path) -> Path:
    """Where the next generation is made, by this process or an earlier one that was interrupted."""
    try:
        current = generation(folder)
    except WorkspaceError:
        current = None
    taken = _number(current.name) if current else 0
    return folder / f"generation-{taken + 1}"


def make_current(made: Path) -> None:
    """Make `made` the generation that is searched."""
    with replacing(made.parent / "current") as temporary:
        temporary.write_text(made.name + "\n", encoding="utf-8")


def remove_other_generations(kept: Path) -> None:
    """Delete what rebuilding left: older generations, and newer ones that were not finished."""
    for other in kept.parent.glob("generation-*"):
        if other != kept:
            shutil.rmtree(other, ignore_errors=True)
