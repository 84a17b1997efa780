"""The captions that a person writes for the photos of a gallery.

    teaching/photos/
      captions.csv      image,caption,split,content,model: what prepare-vocab folder reads, and more
      models.json       the models that were trained on them, and on which photos
      lock              held while captions are written

They stay when the gallery is removed or made again. A photo is known by its content, so that it may move. Every fifth
captioned photo is in the test split: no model is trained on it, and it tells how good the models are on such photos.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dpce_cli.core.data.readers.reading import Skips, on_one_line, read_text
from dpce_cli.core.data.readers.tables import Columns, table_rows
from dpce_cli.core.data.records import check_encodable
from dpce_cli.core.errors import DataError, WorkspaceError
from dpce_cli.core.galleries.gallery import open_gallery
from dpce_cli.core.storage.files import replacing, write_json
from dpce_cli.core.storage.locks import exclusive
from dpce_cli.core.text.tokenizer import tokenize

COLUMNS = ("image", "caption", "split", "content", "model")
HELD_OUT = 5
"""One captioned photo of so many is in the test split."""
LONGEST = 1000
"""Characters of a caption."""
_PATIENCE = 10.0
_DIGEST = re.compile("[0-9a-f]{64}")
_THREADS = threading.Lock()
"""A POSIX lock keeps out other processes only."""


@dataclass(frozen=True)
class Photo:
    """A photo of a gallery."""

    path: Path
    content: str
    """SHA-256 of the file, in hex."""


@dataclass(frozen=True)
class WrittenCaption:
    """A caption that a person has written."""

    image: str
    """Where the photo was then, an absolute path."""
    caption: str
    split: str
    """"train" or "test"; the same for all captions of a photo."""
    content: str
    """SHA-256 of the photo, in hex."""
    model: str
    """Fingerprint of the gallery's model at that time, which therefore was not trained on this caption."""


@dataclass(frozen=True, kw_only=True)
class TaughtModel:
    """What a model was trained on."""

    base: str
    """Folder or hub name of the model that it began with, which was trained on none of the gallery's captions."""
    base_fingerprint: str
    photos: frozenset[str]
    """SHA-256, in hex, of each photo that it was trained on."""


class CaptionsOfGallery:
    """The captions for the photos of one gallery, in order of time.

    Several processes and threads may add and remove captions at the same time.

    Args:
        folder: such as `dpce-workspace/teaching/photos`; made with the first caption.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "captions.csv"

    def read(self) -> list[WrittenCaption]:
        """All captions; an empty list if none was written yet.

        Raises:
            WorkspaceError: the file cannot be read, or is not as `add` wrote it.
        """
        if not self.path.exists():
            return []
        try:
            text = read_text(self.path)
        except DataError as error:
            raise WorkspaceError(str(error)) from error
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            rows = list(reader)
        except csv.Error as error:
            raise WorkspaceError(f"{self.path}: not valid CSV ({error}); check the quotes") from error
        if not rows or tuple(rows[0]) != COLUMNS:
            raise WorkspaceError(f"{self.path}:1: expected the columns {','.join(COLUMNS)}; correct the line")
        captions = []
        for number, row in enumerate(rows[1:], 2):
            if len(row) != len(COLUMNS) or row[2] not in ("train", "test") or not _DIGEST.fullmatch(row[3]):
                raise WorkspaceError(f"{self.path}: row {number} is not as dpce writes it; correct or delete the row")
            captions.append(WrittenCaption(*row))
        return captions

    def add(self, photo: Photo, text: str, model: str) -> WrittenCaption:
        """Store a caption on one line.

        Args:
            model: fingerprint of the gallery's model.

        Raises:
            DataError: the caption has no word, is too long or no Unicode text, or the photo has it already; or the name
                of the photo is not Unicode text.
            WorkspaceError: the captions cannot be read or written.
        """
        (added,) = self.add_all([(photo, text, None)], model)
        return added

    def add_all(self, captions: Iterable[tuple[Photo, str, str | None]], model: str) -> list[WrittenCaption]:
        """Store several captions, or none if one of them is wrong; see `add`.

        Args:
            captions: each with its photo, and a split for a photo without captions, or None for the usual one.
        """
        with self._writing() as kept:
            added = []
            for photo, text, split in captions:
                new = WrittenCaption(
                    image=str(photo.path),
                    caption=checked_caption(text, photo.path),
                    split=_split_of(photo.content, kept, split),
                    content=photo.content,
                    model=model,
                )
                if any((new.content, new.caption) == (old.content, old.caption) for old in kept):
                    raise DataError(f"{photo.path}: has the caption {new.caption!r} already; write another one")
                kept.append(new)
                added.append(new)
        return added

    def remove(self, content: str, caption: str) -> None:
        """Remove a caption of a photo.

        Raises:
            DataError: the photo has no such caption.
            WorkspaceError: the captions cannot be read or written.
        """
        with self._writing() as kept:
            found = [old for old in kept if (old.content, old.caption) == (content, caption)]
            if not found:
                raise DataError(f"the photo has no caption {caption!r} any more; load the page again")
            kept.remove(found[0])

    @contextmanager
    def _writing(self) -> Iterator[list[WrittenCaption]]:
        busy = "another process writes captions; try again"
        with _THREADS, exclusive(self.folder / "lock", busy, patience=_PATIENCE):
            captions = self.read()
            yield captions
            text = io.StringIO(newline="")
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows([getattr(caption, column) for column in COLUMNS] for caption in captions)
            with replacing(self.path) as temporary:
                temporary.write_bytes(text.getvalue().encode())

    def taught_models(self) -> dict[str, TaughtModel]:
        """The models that were trained on captions of this gallery, by fingerprint.

        Raises:
            WorkspaceError: models.json is damaged.
        """
        path = self.folder / "models.json"
        if not path.exists():
            return {}
        try:
            stored = json.loads(path.read_bytes())
            return {
                fingerprint: TaughtModel(
                    base=str(one["base"]),
                    base_fingerprint=str(one["base_fingerprint"]),
                    photos=frozenset(map(str, one["photos"])),
                )
                for fingerprint, one in stored.items()
            }
        except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise WorkspaceError(
                f"{path}: is damaged ({error}); delete it, and run 'dpce index FOLDER --rebuild'"
            ) from error

    def remember_model(self, fingerprint: str, taught: TaughtModel) -> None:
        """Remember what a model was trained on, before it is used."""
        known = {**self.taught_models(), fingerprint: taught}
        write_json(
            self.folder / "models.json",
            {name: {**vars(one), "photos": sorted(one.photos)} for name, one in known.items()},
        )

    def unseen_by(self, model: str) -> list[WrittenCaption]:
        """The captions of photos that a model was not trained on.

        Of a model whose training is not known, these are the captions of the test split, and those that were written
        when it was the gallery's model already.
        """
        taught = self.taught_models()
        photos = taught[model].photos if model in taught else frozenset()
        is_known = model in taught or any(model == one.base_fingerprint for one in taught.values())
        return [
            one
            for one in self.read()
            if one.content not in photos and (is_known or one.split == "test" or one.model == model)
        ]


def _split_of(content: str, kept: Collection[WrittenCaption], wanted: str | None) -> str:
    """The split of a photo: that of its other captions, or the one that is wanted, or test for one photo of five."""
    splits = {caption.content: caption.split for caption in kept}
    if content in splits:
        return splits[content]
    tests = sum(split == "test" for split in splits.values())
    return wanted or ("test" if (tests + 1) * HELD_OUT <= len(splits) + 1 else "train")


def checked_caption(text: str, photo: Path) -> str:
    """The caption on one line.

    Raises:
        DataError: it has no word, is too long, or no Unicode text; or the name of the photo is no Unicode text.
    """
    caption = on_one_line(text)
    check_encodable(str(photo), "the photo's name")
    check_encodable(caption, "the caption")
    if len(caption) > LONGEST:
        raise DataError(f"the caption has {len(caption):,} characters; write at most {LONGEST:,}")
    if not tokenize(caption, lowercase=True):
        raise DataError(f"the caption {caption!r} has no word; describe the photo in words")
    return caption


def find_photo(gallery: Path, path: Path) -> Photo:
    """The photo at a path, if the gallery has it.

    Args:
        gallery: folder of the gallery.
        path: absolute, or relative to a root of the gallery.

    Raises:
        DataError: the gallery has no such photo, or its content is not known.
        WorkspaceError: there is no such gallery, or it holds sentences.
    """
    with closing(open_gallery(gallery)) as catalogue, catalogue.snapshot() as database:
        if catalogue.about.kind != "photos":
            raise WorkspaceError(f"{gallery}: holds sentences; captions are for the photos of a gallery")
        for root, number in catalogue.roots().items():
            whole = root / path
            if not whole.is_relative_to(root):
                continue
            found = database.execute(
                "SELECT hash FROM items JOIN contents ON contents.id = content WHERE root = ? AND path = ?",
                (number, os.fsencode(whole.relative_to(root))),
            ).fetchone()
            if found:
                return Photo(whole, found[0].hex())
    raise DataError(f"{path}: the gallery '{gallery.name}' has no such photo; run 'dpce index FOLDER' if it is new")


def import_captions(captions: CaptionsOfGallery, gallery: Path, table: Path, model: str) -> int:
    """Add the captions of a table (see `table_rows`) that the gallery's photos do not have yet; returns how many.

    Args:
        gallery: folder of the gallery.
        table: names photos by their absolute path, or relative to a root of the gallery. A split in it is kept; the
            validation split counts as test.
        model: fingerprint of the gallery's model.

    Raises:
        DataError: the table cannot be read, the gallery does not have a photo, or a caption is refused.
        WorkspaceError: the captions cannot be read or written.
    """
    known = {(one.content, one.caption) for one in captions.read()}
    new = []
    for row, split in table_rows(table, Columns(), Skips()):
        try:
            photo = find_photo(gallery, Path(row.image).expanduser())
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from error
        key = photo.content, on_one_line(row.caption)
        if key not in known:
            known.add(key)
            new.append((photo, row.caption, "test" if split == "val" else split))
    if new:
        captions.add_all(new, model)
    return len(new)


def photos_of(gallery: Path, contents: Collection[str]) -> dict[str, Path]:
    """Where the photos with these contents are now; those that are gone are left out.

    Raises:
        WorkspaceError: there is no such gallery.
    """
    places = {}
    with closing(open_gallery(gallery)) as catalogue, catalogue.snapshot() as database:
        for content in contents:
            found = database.execute(
                "SELECT roots.path, items.path FROM contents JOIN items ON content = contents.id "
                "JOIN roots ON roots.id = root WHERE hash = ? ORDER BY root, items.path LIMIT 1",
                (bytes.fromhex(content),),
            ).fetchone()
            if found:
                places[content] = Path(os.fsdecode(os.path.join(*found)))
    return places
