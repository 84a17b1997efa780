"""Updating a gallery: new photos are embedded, moved photos keep their embeddings, deleted photos are dropped."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpce_cli.core.data.loading import stop_without_launcher
from dpce_cli.core.errors import DataError, WorkspaceError
from dpce_cli.core.galleries.approximate import update_index
from dpce_cli.core.galleries.catalogue import (
    About,
    Catalogue,
    Found,
    generation,
    make_current,
    next_generation,
    remove_other_generations,
)
from dpce_cli.core.galleries.embedding import EncodedBatch, Pending, Work, encode_share
from dpce_cli.core.galleries.scanning import (
    SENTENCES,
    Content,
    Scan,
    check_still_there,
    identity,
    read_content,
    scan_photos,
    scan_sentences,
)
from dpce_cli.core.processes.collectives import decided_by_first, gather_objects, rank
from dpce_cli.core.progress import Advance, Reporter
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.storage.locks import exclusive

_HASHED = 256
"""Files per transaction."""
_ROUND = 2**13
"""Files that are hashed, then embedded: other processes wait while the first one hashes."""
_SAVE_SECONDS = 5.0
_UNSETTLED = -1
"""Modification time in the catalogue that no file has: the file is hashed again by the next run."""
_REMEDIES = dict.fromkeys((".heic", ".heif"), "; pip install 'dpce[heic]' has them read")
Array = npt.NDArray[np.float32]


@dataclass
class IndexResult:
    """What one run changed, and what the gallery holds then."""

    kind: str
    """"photos" or "sentences"."""
    counts: Counter[str] = field(default_factory=Counter)
    """Items that are "new", "changed", "moved or copied", "gone"; contents that were "embedded" or are "unreadable"."""
    items: int = 0
    """That can be found in the gallery."""


def index_gallery(
    folder: Path,
    roots: Sequence[Path],
    model: Model,
    *,
    model_source: str | None,
    is_named: bool = True,
    exclude: Sequence[str] = (),
    prune: bool = False,
    rebuild: bool = False,
    workers: int,
    reporter: Reporter,
) -> IndexResult:
    """Bring a gallery up to date with folders of photos, or with files of sentences.

    A file whose size and modification time are known is not opened. Any other file is hashed, and decoded only where
    its content is new. A root that holds nothing any more, as when its disk is not mounted, drops nothing without
    `prune`. If it is interrupted, the next run continues. Each of several processes embeds its part; only the first
    one reads the roots and writes the catalogue.

    Args:
        folder: of the gallery.
        roots: those to look at; the gallery keeps what it has of its other roots.
        model_source: what names this model; None for the best model of the workspace.
        is_named: whether a person chose the gallery's name; only then are roots added to a gallery of other roots.
        exclude: patterns of names and of paths relative to their root that are left out.
        prune: drop what is gone also where a root is empty or missing as a whole.
        rebuild: embed everything of all roots again, beside the gallery, which is replaced when all is done.

    Raises:
        DataError: a root is missing, holds nothing, or goes away meanwhile.
        WorkspaceError: the gallery was made with another model, or of another kind, or cannot be written.
    """
    with ExitStack() as stack:
        indexer = _Indexer(folder, exclude=exclude, prune=prune, rebuild=rebuild, reporter=reporter)
        about = About("", model.dim + 1, model.fingerprint, model_source or "", model.name, bool(model.load_bank))
        corrects_hubs = decided_by_first(lambda: indexer.begin(roots, about, stack, is_named=is_named))
        bank = model.bank if corrects_hubs else None
        while work := decided_by_first(indexer.next_work):
            for batches in _together(encode_share(model, bank, work, workers)):
                if not rank():
                    indexer.keep(batches)
                stop_without_launcher()
        return decided_by_first(indexer.finish)


def _together(own: Iterator[EncodedBatch]) -> Iterator[list[EncodedBatch]]:
    """The next batch of each process, until no process has any."""
    while batches := [batch for batch in gather_objects(next(own, None)) if batch is not None]:
        yield batches


class _Indexer:
    """What only the first process does: it looks at the roots, hashes files, and writes the catalogue."""

    catalogue: Catalogue
    result: IndexResult
    _advance: Advance

    def __init__(self, folder: Path, *, exclude: Sequence[str], prune: bool, rebuild: bool, reporter: Reporter) -> None:
        self._folder, self._exclude, self._prune, self._rebuild = folder, exclude, prune, rebuild
        self._reporter = reporter
        self._found: dict[Path, dict[bytes, Found]] = {}
        self._numbers: dict[Path, int] = {}
        self._identities: dict[Path, Any] = {}
        self._fresh: list[tuple[Path, Found]] = []
        self._hashed = 0
        self._tried: set[int] = set()
        self._waiting: list[tuple[int, Array]] = []
        self._saved = time.monotonic()

    def begin(self, roots: Sequence[Path], about: About, stack: ExitStack, *, is_named: bool) -> bool:
        """Check everything; then open the catalogue, and record which files are gone and which are to be hashed.

        Returns whether the gallery corrects hubs.
        """
        roots = list(dict.fromkeys(root.expanduser().resolve() for root in roots))
        lock = exclusive(self._folder / "lock", "another process indexes this gallery; wait for it, or stop it")
        stack.enter_context(lock)
        stack.callback(self._remove_if_empty)
        older = self._older()
        known = list(older.roots()) if older else []
        if older:
            stack.callback(older.close)
            if not is_named and not {*known} & {*roots}:
                name = self._folder.name
                raise DataError(
                    f"gallery '{name}' was made from {', '.join(map(str, known))}; add {roots[0]} to it with --name "
                    f"{name}, or choose another --name"
                )
        about = replace(about, kind=_kind(roots, known) or (older.about.kind if older else ""))
        if older and not self._rebuild:
            _check_same(older.about, about, self._folder)
        wanted = [*known, *roots] if self._rebuild else roots
        scans = {root: self._scan(root, about.kind, is_known=root in known) for root in dict.fromkeys(wanted)}
        if older and not self._rebuild:
            self.catalogue = older
            remove_other_generations(older.folder)
        else:
            self.catalogue = self._new_generation(about, scans)
            stack.callback(self.catalogue.close)
        if not older:
            make_current(self.catalogue.folder)
        if damaged := self.catalogue.forget_damaged_rows():
            self._reporter.warn(
                f"{self._folder}: {damaged:,} embeddings are damaged on the disk; they are computed again"
            )
        self.result = IndexResult(about.kind)
        for root, scan in scans.items():
            self._take_stock(root, scan)
        left = sum(len(work.pending) for work in self._pending())
        track = self._reporter.track(f"indexing {self._folder.name}", len(self._fresh) + left)
        self._advance = stack.enter_context(track)
        return self.catalogue.about.corrects_hubs

    def _remove_if_empty(self) -> None:
        if not (self._folder / "current").exists():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _older(self) -> Catalogue | None:
        """The present gallery; None: there is none, or it is damaged and `rebuild` is set."""
        try:
            current = generation(self._folder)
            return Catalogue(current, writable=True) if current else None
        except WorkspaceError:
            if not self._rebuild:
                raise
            return None

    def _new_generation(self, about: About, scans: Mapping[Path, Scan]) -> Catalogue:
        """The generation that is to replace the gallery: the one that an interrupted run began, or an empty one."""
        folder = next_generation(self._folder)
        try:
            begun = Catalogue(folder, writable=True)
            if begun.about == about and begun.roots().keys() <= scans.keys():
                return begun
            begun.close()
        except WorkspaceError:  # there is none, or not a whole one
            pass
        shutil.rmtree(folder, ignore_errors=True)
        return Catalogue.create(folder, about)

    def _scan(self, root: Path, kind: str, *, is_known: bool) -> Scan:
        if not root.exists():
            scan = Scan()
        elif kind == "photos":
            scan = scan_photos(root, self._exclude)
        else:
            scan = scan_sentences(root)
        for place, reason in scan.unreadable:
            self._reporter.warn(f"{root / os.fsdecode(place)}: cannot be read ({reason}); what is indexed of it stays")
        for suffix, count in sorted(scan.unread.items()):
            self._reporter.warn(f"{root}: {count:,} {suffix} files are skipped{_REMEDIES.get(suffix, '')}")
        if not scan.found and not is_known:
            raise DataError(f"{root}: holds no {kind} to index; check the path")
        if not scan.found and not self._prune:
            state = "is empty" if root.exists() else "is missing"
            if self._rebuild:
                raise DataError(f"{root}: {state}; mount its disk, or leave it out of the new gallery with --prune")
            self._reporter.warn(
                f"{root}: {state}, as when its disk is not mounted; what is indexed of it stays (--prune drops it)"
            )
        return scan

    def _take_stock(self, root: Path, scan: Scan) -> None:
        """Drop what is gone; remember what is new or changed."""
        number = self._numbers[root] = self.catalogue.add_root(root)
        known = self.catalogue.known(number)
        if scan.found or self._prune:
            gone = [path for path in known if path not in scan.found and not scan.may_hold(path)]
            self.catalogue.drop(number, gone)
            self.result.counts["gone"] += len(gone)
        for path, item in scan.found.items():
            size, changed, content = known.get(path, (None, None, None))
            if content is None or (size, changed) != (item.size, item.changed):
                self._fresh.append((root, item))
        self._found[root] = scan.found
        self._identities[root] = identity(root)

    def next_work(self) -> list[Work]:
        """Hash files until some have contents to embed; empty when all is done."""
        self._save()
        while not (work := self._pending()) and self._hashed < len(self._fresh):
            end = min(self._hashed + _ROUND, len(self._fresh))
            while self._hashed < end:
                part = self._fresh[self._hashed : min(self._hashed + _HASHED, end)]
                self._hash(part)
                self._hashed += len(part)
        self._tried.update(pending.content for one in work for pending in one.pending)
        return work

    def _pending(self) -> list[Work]:
        by_root: dict[Path, list[Pending]] = {}
        for root, path, content, digest in self.catalogue.pending():
            item = self._found.get(root, {}).get(path)
            if item and content not in self._tried:
                by_root.setdefault(root, []).append(Pending(content, digest, item))
        return [Work(root, self.result.kind, pending) for root, pending in by_root.items()]

    def _hash(self, part: Sequence[tuple[Path, Found]]) -> None:
        read = [(root, item, self._read(root, item)) for root, item in part]
        counts = self.result.counts
        with self.catalogue.transaction():
            for root, item, content in read:
                number, is_new = self._numbers[root], False
                if isinstance(content, str):
                    self.catalogue.put_unreadable(number, item, content)
                    counts["unreadable"] += 1
                    self._reporter.warn(f"{root / os.fsdecode(item.path)}: {content}; skipped")
                elif content:
                    self._found[root][item.path] = content.item
                    kept = content.item if content.is_settled else replace(content.item, changed=_UNSETTLED)
                    event, is_new = self.catalogue.put(number, kept, content.digest, content.date)
                    if event:
                        counts[event] += 1
                self._advance(not is_new)

    def _read(self, root: Path, item: Found) -> Content | str | None:
        """What a file holds; or why it cannot be read; None where it is gone meanwhile."""
        if self.result.kind == "sentences":
            return Content(hashlib.sha256(item.path).digest(), None, item, is_settled=True)
        try:
            return read_content(root, item.path)
        except FileNotFoundError:
            reason = None
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        check_still_there(root, self._identities[root])
        return reason

    def keep(self, batches: Sequence[EncodedBatch]) -> None:
        """Save what the processes have embedded, every few seconds."""
        for batch in batches:
            self._waiting += batch.embedded
            if batch.problems:
                self.catalogue.set_problems([(reason, content) for _, reason, content in batch.problems])
            for message in [*(f"{name}: {reason}" for name, reason, _ in batch.problems), *batch.unsteady]:
                self._reporter.warn(f"{message}: skipped")
            self.result.counts["embedded"] += len(batch.embedded)
            self.result.counts["unreadable"] += len(batch.problems)
            self._advance(len(batch.embedded) + len(batch.problems) + len(batch.unsteady))
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self._save()

    def _save(self) -> None:
        if self._waiting:
            self.catalogue.append(
                [content for content, _ in self._waiting], np.stack([row for _, row in self._waiting])
            )
        self._waiting, self._saved = [], time.monotonic()

    def finish(self) -> IndexResult:
        """Have searches use what was made."""
        catalogue = self.catalogue
        update_index(catalogue.folder, catalogue.embeddings(catalogue.row_count()), self._reporter)
        if generation(self._folder) != self.catalogue.folder:
            make_current(self.catalogue.folder)
            remove_other_generations(self.catalogue.folder)
        self.result.items = self.catalogue.item_count()
        return self.result


def _kind(roots: Sequence[Path], known: Sequence[Path]) -> str:
    """What the roots hold, "photos" or "sentences"; "" where none of them is there at present."""
    kinds = set()
    for root in roots:
        if root.is_dir():
            kinds.add("photos")
        elif root.is_file() and root.suffix.lower() in SENTENCES:
            kinds.add("sentences")
        elif root.exists():
            raise DataError(f"{root}: expected a folder of photos, or a file of sentences ({', '.join(SENTENCES)})")
        elif root not in known:
            raise DataError(f"{root}: there is no such folder or file; check the path, or mount its disk")
        for other in {*known, *roots} - {root}:
            if root not in known and (root.is_relative_to(other) or other.is_relative_to(root)):
                raise DataError(f"{root}: overlaps with {other}, which is in this gallery too; leave one of them out")
    if len(kinds) > 1:
        raise DataError("a gallery holds photos or sentences; index folders and files of sentences under two names")
    return kinds.pop() if kinds else ""


def _check_same(stored: About, about: About, folder: Path) -> None:
    if stored.kind != about.kind:
        raise WorkspaceError(f"{folder}: this gallery holds {stored.kind}, not {about.kind}; choose another --name")
    if stored.fingerprint != about.fingerprint:
        raise WorkspaceError(
            f"{folder}: this gallery was made with another model ({stored.model_name}) than {about.model_name}; name "
            "that model with --model, or embed everything again with --rebuild"
        )
    if stored.corrects_hubs and not about.corrects_hubs:
        raise WorkspaceError(
            f"{folder}: this gallery corrects hubs, but its model has no bank any more; run 'dpce "
            "extract-features' to make it again, or index without the correction with --rebuild"
        )
