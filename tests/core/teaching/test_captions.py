from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dpce_cli.core.data.readers.folder import read_folder
from dpce_cli.core.errors import DataError, WorkspaceError
from dpce_cli.core.galleries.overview import remove_gallery
from dpce_cli.core.storage.locks import exclusive
from dpce_cli.core.teaching import captions as module
from dpce_cli.core.teaching.captions import CaptionsOfGallery, Photo, TaughtModel, find_photo, photos_of
from tests.core.galleries.conftest import Place

HOSTILE = [
    '=HYPERLINK("http://x";"y")',
    '"a dog", <img src=x onerror=alert(1)>; --',
    "a dog\r\nimage,caption\tand\x00a\x1b[31m cat",
    "ein Hund läuft 犬 🐕",
    "'; DROP TABLE items",
]


def photo(number: int) -> Photo:
    return Photo(Path(f"/photos/{number}.png"), f"{number:064x}")


def test_captions_are_what_prepare_vocab_folder_reads(place: Place, captions: CaptionsOfGallery) -> None:
    names = ["a.png", "sub/b,c.png", 'd"e.png', "ü f.png", "g.png"]
    for shade, name in enumerate(names):
        place.add(name, (255, shade, 0))
    place.index()
    for name, text in zip(names, HOSTILE, strict=True):
        captions.add(find_photo(place.gallery, Path(name)), text, "m")
    captions.add(find_photo(place.gallery, place.photos / "a.png"), "a second caption", "m")

    read = read_folder(place.photos, captions=captions.path, val_fraction=0.1, test_fraction=0.1, seed=0)
    assert read.skipped == (f"photos found under a slightly different name: 5 (first: {_renamed(place, names)})",)
    assert {image.path: image.captions for image in read.images} == {
        "a.png": (HOSTILE[0], "a second caption"),
        "sub/b,c.png": (HOSTILE[1],),
        'd"e.png': ("a dog image,caption and a [31m cat",),
        "ü f.png": (HOSTILE[3],),
        "g.png": (HOSTILE[4],),
    }
    assert [image.split for image in read.images if image.path == "g.png"] == ["test"]
    assert len([image for image in read.images if image.split == "train"]) == 4
    assert os.listdir(place.photos / "sub") == ["b,c.png"]


def _renamed(place: Place, names: list[str]) -> str:
    return ", ".join(f"{place.photos / name} as {name}" for name in names[:3])


def test_a_caption_is_taken_back(captions: CaptionsOfGallery) -> None:
    for number in range(3):
        captions.add(photo(number), "a dog", "m")
    captions.remove(photo(1).content, "a dog")
    assert [one.image for one in captions.read()] == ["/photos/0.png", "/photos/2.png"]
    with pytest.raises(DataError, match="the photo has no caption 'a dog' any more"):
        captions.remove(photo(1).content, "a dog")


def test_every_fifth_photo_is_held_out_with_all_its_captions(captions: CaptionsOfGallery) -> None:
    for number in range(10):
        captions.add(photo(number), "a dog", "m")
    captions.add(photo(4), "another dog", "m")
    captions.add(photo(3), "another dog", "m")
    assert [one.image for one in captions.read() if one.split == "test"] == [f"/photos/{n}.png" for n in (4, 9, 4)]
    captions.remove(photo(9).content, "a dog")
    assert captions.add(photo(9), "a dog again", "m").split == "test"


def test_captions_without_a_word_or_twice_are_refused_and_none_of_several_is_kept(captions: CaptionsOfGallery) -> None:
    captions.add(photo(0), "a dog", "m")
    before = captions.path.read_bytes()
    for text, reason in {
        " \n": "has no word",
        "?!": "has no word",
        "a \ud800": "not Unicode text",
        "a  dog": "has the caption 'a dog' already",
        "dog " * 300: "1,199 characters; write at most 1,000",
    }.items():
        with pytest.raises(DataError, match=reason):
            captions.add_all([(photo(1), "a cat", None), (photo(0), text, None)], "m")
    with pytest.raises(DataError, match=r"the photo's name: .* is not Unicode text"):
        captions.add(Photo(Path(os.fsdecode(b"/photos/\xff.png")), photo(1).content), "a dog", "m")
    assert captions.path.read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("image,", "photo,"),
        ("train", "dev"),
        ("0" * 64, "0"),
        ("a dog", '"a" dog"'),
        ("a dog", "a dog,"),
        ("dog", "\xff"),
    ],
)
def test_a_damaged_file_is_named_and_never_overwritten(captions: CaptionsOfGallery, old: str, new: str) -> None:
    captions.add(photo(0), "a dog", "m")
    damaged = captions.path.read_bytes().replace(old.encode(), new.encode("latin-1"))
    captions.path.write_bytes(damaged)
    with pytest.raises(WorkspaceError, match=r"captions\.csv"):
        captions.add(photo(1), "a dog", "m")
    assert captions.path.read_bytes() == damaged


ADD = """
import sys
from pathlib import Path
from dpce_cli.core.teaching.captions import CaptionsOfGallery, Photo
for number in range(20):
    CaptionsOfGallery(Path(sys.argv[1])).add(Photo(Path(sys.argv[2]), "0" * 64), f"{sys.argv[2]} {number}", "m")
"""


def test_processes_and_threads_lose_none_of_each_others_captions(captions: CaptionsOfGallery) -> None:
    def add(name: str) -> None:
        for number in range(20):
            captions.add(Photo(Path(name), "0" * 64), f"{name} {number}", "m")

    other = subprocess.Popen([sys.executable, "-c", ADD, captions.folder, "process"])
    threads = [threading.Thread(target=add, args=(f"thread {number}",)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.wait() == 0
    texts = [one.caption for one in captions.read()]
    assert sorted(texts) == sorted(f"{name} {n}" for name in ("process", "thread 0", "thread 1") for n in range(20))


def test_a_process_that_holds_the_lock_is_named(captions: CaptionsOfGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    code = "import sys, fcntl; f = open(sys.argv[1], 'w'); fcntl.lockf(f, 2); print(1, flush=True); sys.stdin.read()"
    captions.folder.mkdir(parents=True)
    other = subprocess.Popen(
        [sys.executable, "-c", code, captions.folder / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout
    assert other.stdout.readline()
    with pytest.raises(WorkspaceError, match="another process writes captions; try again"):
        captions.add(photo(0), "a dog", "m")
    other.communicate()
    captions.add(photo(0), "a dog", "m")
    with exclusive(captions.folder / "lock", "busy"):
        pass


def test_captions_stay_when_their_gallery_is_removed_and_follow_moved_photos(
    place: Place, captions: CaptionsOfGallery
) -> None:
    old = place.add("old.png")
    place.add("other.png", (0, 255, 0))
    place.index()
    content = captions.add(find_photo(place.gallery, old), "a red photo", "m").content
    remove_gallery(place.gallery)
    old.rename(place.photos / "new.png")
    place.index()

    assert [one.caption for one in captions.read()] == ["a red photo"]
    assert photos_of(place.gallery, [content, "0" * 64]) == {content: place.photos / "new.png"}


def test_only_photos_of_the_gallery_have_captions(place: Place) -> None:
    inside = place.add("a.png")
    outside = place.photos.parent / "b.png"
    outside.write_bytes(inside.read_bytes())
    text = place.photos / "labels.txt"
    text.write_text("a red car\n")
    place.index()
    for path in (outside, Path("../b.png"), place.photos / ".." / "b.png", Path("nosuch.png"), text):
        with pytest.raises(DataError, match="has no such photo"):
            find_photo(place.gallery, path)
    labels = place.gallery.with_name("labels")
    place.gallery = labels
    place.index(text)
    with pytest.raises(WorkspaceError, match="holds sentences"):
        find_photo(labels, text)


def test_captions_that_a_model_was_trained_on_are_remembered(captions: CaptionsOfGallery) -> None:
    for number in range(5):
        captions.add(photo(number), "a dog", "first")
    assert len(captions.unseen_by("first")) == 5
    assert [one.image for one in captions.unseen_by("unknown")] == ["/photos/4.png"]

    assert len(captions.unseen_by("first")) == 5
    photos = frozenset(photo(number).content for number in range(4))
    captions.remember_model("taught", TaughtModel(base="/models/m", base_fingerprint="first", photos=photos))
    captions.add(photo(5), "a dog", "taught")
    captions.add(photo(0), "another caption of a photo that was trained on", "taught")
    assert [one.image for one in captions.unseen_by("taught")] == ["/photos/4.png", "/photos/5.png"]
    captions.remove(photo(0).content, "a dog")
    captions.add(photo(0), "a dog", "taught")
    assert [one.image for one in captions.unseen_by("taught")] == ["/photos/4.png", "/photos/5.png"]
    assert len(captions.unseen_by("first")) == len(captions.read())

    (captions.folder / "models.json").write_text("[")
    with pytest.raises(WorkspaceError, match=r"models\.json: is damaged"):
        captions.unseen_by("taught")
