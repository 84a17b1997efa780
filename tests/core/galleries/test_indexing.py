from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dpce_cli.core.errors import DataError, WorkspaceError
from dpce_cli.core.galleries import indexing
from dpce_cli.core.galleries.overview import gallery_states, remove_gallery
from dpce_cli.core.galleries.scanning import read_content
from tests.core.galleries.conftest import LONG_AGO, ColourModel, Place

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the photos that are read."""
    names: list[str] = []

    def read(root: Path, path: bytes) -> Any:
        names.append(os.fsdecode(path))
        return read_content(root, path)

    monkeypatch.setattr(indexing, "read_content", read)
    return names


def test_photos_at_any_depth_are_embedded(place: Place) -> None:
    place.add("a.png")
    place.add("b/c/d.JPG", BLUE)
    result = place.index()

    assert place.content()["a.png"] == (1, 0, 0, None)
    assert place.content()["b/c/d.JPG"][2] > 0.99
    assert (result.items, result.kind, +result.counts) == (2, "photos", {"new": 2, "embedded": 2})


def test_unchanged_photos_are_not_opened(place: Place, opened: list[str]) -> None:
    place.add("a.png")
    place.index()
    opened.clear()

    assert not +place.index().counts
    assert opened == []
    assert place.model.photos == 1


def test_a_changed_photo_is_embedded_again_and_a_touched_one_is_only_hashed(place: Place, opened: list[str]) -> None:
    place.add("a.png")
    touched = place.add("b.png", BLUE)
    place.index()
    place.add("a.png", (0, 255, 0), age=5)
    os.utime(touched, (LONG_AGO + 5,) * 2)
    opened.clear()
    result = place.index()

    assert sorted(opened) == ["a.png", "b.png"]
    assert +result.counts == {"changed": 1, "embedded": 1}
    assert place.content()["a.png"][:3] == (0, 1, 0)
    assert place.model.photos == 3


def test_a_moved_photo_is_not_decoded(place: Place) -> None:
    photo = place.add("a.png")
    place.index()
    (place.photos / "new").mkdir()
    photo.rename(place.photos / "new" / "b.png")
    result = place.index()

    assert place.content().keys() == {"new/b.png"}
    assert +result.counts == {"moved or copied": 1, "gone": 1}
    assert place.model.photos == 1


def test_two_copies_are_two_paths_embedded_once(place: Place) -> None:
    shutil.copy2(place.add("a.png"), place.photos / "b.png")

    assert place.index().items == 2
    assert place.model.photos == 1


def test_what_is_gone_is_dropped_and_keeps_its_embedding_for_its_return(place: Place) -> None:
    place.add("a.png")
    photo = place.add("b.png", BLUE)
    place.index()
    photo.unlink()
    place.index()
    assert place.content().keys() == {"a.png"}
    place.add("b.png", BLUE)
    place.index()
    assert place.content().keys() == {"a.png", "b.png"}
    assert place.model.photos == 2


@pytest.mark.parametrize("state", ["empty", "missing"])
def test_a_root_that_is_empty_or_missing_drops_nothing_without_prune(place: Place, state: str) -> None:
    place.add("a.png")
    place.index()
    shutil.rmtree(place.photos)
    if state == "empty":
        place.photos.mkdir()
    place.index()
    assert place.content().keys() == {"a.png"}
    assert len(place.notes.warnings) == 1
    assert f"{place.photos}: is {state}, as when its disk is not mounted" in place.notes.warnings[0]
    place.index(prune=True)
    assert place.content() == {}


def test_a_folder_that_cannot_be_looked_into_drops_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add("a.png")
    place.add("deep/b.png", BLUE)
    place.index()
    scandir = os.scandir

    def failing(path: bytes) -> Any:
        if os.fsencode(path).endswith(b"deep"):
            raise OSError(5, "Input/output error")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    place.index()

    assert place.content().keys() == {"a.png", "deep/b.png"}
    assert place.notes.warnings == [
        f"{place.photos / 'deep'}: cannot be read (Input/output error); what is indexed of it stays"
    ]


def test_an_unreadable_photo_is_remembered_and_tried_again_when_it_changes(place: Place, opened: list[str]) -> None:
    path = place.photos / "a.png"
    path.write_bytes(b"no photo")
    os.utime(path, (LONG_AGO,) * 2)
    assert +place.index().counts == {"new": 1, "unreadable": 1}
    assert "a.png: not a JPEG" in place.notes.warnings[0]
    assert place.content()["a.png"].startswith("not a JPEG")
    opened.clear()
    assert not +place.index().counts
    assert (opened, place.notes.warnings) == ([], [])
    place.add("a.png", age=5)
    assert +place.index().counts == {"changed": 1, "embedded": 1}


def test_a_photo_that_may_not_be_opened_is_remembered(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add("a.png")

    def refused(root: Path, path: bytes) -> Any:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(indexing, "read_content", refused)
        assert +place.index().counts == {"unreadable": 1}
    assert place.content() == {"a.png": "cannot be read (Permission denied)"}
    assert +place.index().counts == {"changed": 1, "embedded": 1}


def test_a_failing_disk_is_not_taken_for_a_damaged_photo(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add("a.png")
    opens = [0]
    load = Image.open

    def failing(*arguments: Any, **how: Any) -> Any:
        opens[0] += 1
        if opens[0] == 2:  # the first one reads the date
            place.add("a.png", BLUE, age=9)
            raise OSError(5, "Input/output error")
        return load(*arguments, **how)

    monkeypatch.setattr(Image, "open", failing)
    place.index()
    assert place.content() == {"a.png": "to embed"}
    assert "a.png: changed while it was read; run again to index it" in place.notes.warnings[0]
    place.index()
    assert place.content()["a.png"][2] == 1


def test_a_photo_that_changes_after_it_was_hashed_is_left_to_the_next_run(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.add("a.png")
    encode = place.model.encode_views

    def changing(views: Any) -> Any:
        place.add("a.png", BLUE, age=9)
        return encode(views)

    with monkeypatch.context() as patch:
        patch.setattr(place.model, "encode_views", changing)
        place.index()
    assert place.content() == {"a.png": "to embed"}
    place.index()
    assert place.content()["a.png"][2] == 1


def test_a_photo_that_has_just_been_written_is_hashed_again(place: Place, opened: list[str]) -> None:
    path = place.add("a.bmp")
    os.utime(path)
    place.index()
    times = path.stat().st_mtime_ns
    place.add("a.bmp", BLUE)  # as large as before
    os.utime(path, ns=(times, times))
    place.index()

    assert place.content()["a.bmp"][2] == 1


def test_a_disk_that_goes_away_stops_the_run_and_loses_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        place.add(f"{number:02}.png", (number, 255, 0))
    encode = place.model.encode_views

    def unmounting(views: Any) -> Any:
        if place.photos.exists():
            place.photos.rename(place.photos.with_name("elsewhere"))
        return encode(views)

    monkeypatch.setattr(place.model, "encode_views", unmounting)
    with pytest.raises(DataError, match="disappeared while it was read"):
        place.index()
    place.photos.with_name("elsewhere").rename(place.photos)
    monkeypatch.undo()
    assert place.index().items == 40


def test_hidden_and_excluded_files_and_links_are_left_out(place: Place) -> None:
    for name in (".hidden.png", ".cache/a.png", "thumbs/a.png", "b/raw/c.png", "notes.txt.jpg/x.png"):
        place.add(name)
    place.add("kept.png")
    (place.photos / "loop").symlink_to(place.photos)
    (place.photos / "link.png").symlink_to(place.photos / "kept.png")
    os.mkfifo(place.photos / "pipe.png")
    place.index(exclude=["thumb*", "b/raw/*"])

    assert place.content().keys() == {"kept.png", "notes.txt.jpg/x.png"}


def test_names_that_are_not_utf_8_or_hold_newlines(place: Place) -> None:
    names = [b"caf\xe9.png", b"two\nlines.png", "größe.png".encode()]
    for name in names:
        place.add(os.fsdecode(name), (1, 2, len(name)))
    place.index()
    place.index()

    assert {os.fsencode(name) for name in place.content()} == set(names)
    assert place.model.photos == 3


def test_avif_and_heic_photos_are_read_and_other_formats_counted(place: Place) -> None:
    pytest.importorskip("pillow_heif")
    place.add("a.heic")
    place.add("b.avif", BLUE)
    (place.photos / "c.nef").touch()
    place.index()

    assert place.content().keys() == {"a.heic", "b.avif"}
    assert place.notes.warnings == [f"{place.photos}: 1 .nef files are skipped"]


def test_another_model_is_refused_and_rebuild_replaces_the_gallery_when_whole(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.add("a.png")
    place.index()
    before = place.content()
    other = ColourModel("other")
    with pytest.raises(WorkspaceError, match=r"another model \(model colours\) than model other.*--rebuild"):
        place.index(model=other)

    def interrupted(views: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(other, "encode_views", interrupted)
        with pytest.raises(KeyboardInterrupt):
            place.index(model=other, rebuild=True)
    assert place.content() == before
    assert place.index(model=other, rebuild=True).items == 1
    assert [path.name for path in sorted(place.gallery.iterdir())] == ["current", "generation-2", "lock"]
    assert gallery_states(place.gallery.parent)[0].model == "model other"
    with pytest.raises(WorkspaceError):
        place.index()


def test_a_rebuild_without_one_of_the_disks_is_refused(place: Place) -> None:
    place.add("a.png")
    other = place.photos.with_name("other")
    shutil.copytree(place.photos, other)
    place.index(place.photos, other)
    shutil.rmtree(other)
    with pytest.raises(DataError, match="other: is missing; mount its disk"):
        place.index(rebuild=True)
    assert place.index(rebuild=True, prune=True).items == 1


def test_other_roots_are_kept_and_overlapping_ones_refused(place: Place) -> None:
    place.add("a/x.png")
    place.add("b/y.png", BLUE)
    place.index(place.photos / "a")
    assert place.index(place.photos / "b").items == 2
    with pytest.raises(DataError, match="overlaps with"):
        place.index(place.photos)


def test_a_name_that_nobody_chose_does_not_mix_two_folders(place: Place) -> None:
    place.add("a/x.png")
    place.add("b/y.png")
    place.index(place.photos / "a", is_named=False)
    with pytest.raises(DataError, match=r"add .*/b to it with --name photos, or choose another --name"):
        place.index(place.photos / "b", is_named=False)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("missing", "no such folder or file"), ("x.pdf", "expected a folder of photos, or"), ("empty", "holds no photos")],
)
def test_a_root_that_holds_nothing_makes_no_gallery(place: Place, name: str, problem: str) -> None:
    (place.photos / "empty").mkdir()
    (place.photos / "x.pdf").touch()
    with pytest.raises(DataError, match=problem):
        place.index(place.photos / name)
    assert not place.gallery.exists()


def test_damaged_rows_are_embedded_again(place: Place) -> None:
    place.add("a.png")
    place.add("b.png", BLUE)
    place.index()
    before = place.content()
    rows = place.gallery / "generation-1" / "embeddings.f32"
    data = bytearray(rows.read_bytes())
    data[13] ^= 4
    rows.write_bytes(data)
    place.index()

    assert place.notes.warnings == [f"{place.gallery}: 1 embeddings are damaged on the disk; they are computed again"]
    assert place.content() == before
    assert place.model.photos == 3
    rows.unlink()
    place.index()
    assert place.content() == before


def test_one_process_writes_at_a_time(place: Place) -> None:
    place.add("a.png")
    place.index()
    code = (
        "import fcntl, os, sys; file = os.open(sys.argv[1], os.O_WRONLY); fcntl.lockf(file, fcntl.LOCK_EX); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, place.gallery / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(WorkspaceError, match="another process indexes this gallery"):
            place.index()
        with pytest.raises(WorkspaceError, match="a process indexes this gallery"):
            remove_gallery(place.gallery)
        other.communicate()
    remove_gallery(place.gallery)
    assert gallery_states(place.gallery.parent) == []


def test_a_damaged_catalogue_is_one_line_and_rebuild_makes_it_again(place: Place) -> None:
    place.add("a.png")
    place.index()
    (place.gallery / "generation-1" / "catalogue.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(WorkspaceError, match=r"catalogue.sqlite: is damaged \(.*--rebuild"):
        place.index()
    assert place.index(rebuild=True).items == 1


def test_a_gallery_from_before_hubs_were_corrected_says_so_and_rebuild_makes_it_again(place: Place) -> None:
    place.add("a.png")
    place.index()
    with closing(sqlite3.connect(place.gallery / "generation-1" / "catalogue.sqlite")) as database, database:
        database.execute("DELETE FROM about WHERE key = 'corrects_hubs'")
        database.execute("UPDATE about SET key = 'dim' WHERE key = 'row_length'")
    with pytest.raises(WorkspaceError, match=r"generation-1: was made by another version of dpce; .*--rebuild"):
        place.index()
    assert place.index(rebuild=True).items == 1


def test_sentences_of_a_text_file_and_of_a_table(place: Place) -> None:
    text = place.photos / "labels.txt"
    text.write_text("a red car\n\n a  blue   car \na red car\nzyx\n")
    result = place.index(text)
    assert (result.kind, result.items) == ("sentences", 2)
    assert place.content() == {
        "a red car": (1, 0, 0, None),
        "a blue car": (0, 0, 1, None),
        "zyx": "the model knows none of its words",
    }
    text.write_text("a red car\ngreen\n")
    assert +place.index(text).counts == {"new": 1, "gone": 2, "embedded": 1}
    place.add("a/a.png")
    with pytest.raises(WorkspaceError, match="holds sentences, not photos"):
        place.index(place.photos / "a")
    table = place.photos / "captions.csv"
    table.write_text("image,caption\na.jpg,a green car\n")
    assert place.index(table).items == 3
    with pytest.raises(DataError, match="photos or sentences"):
        place.index(table, place.photos / "a")
