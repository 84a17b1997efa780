from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dpce_cli.core.data.readers.folder import read_folder
from dpce_cli.core.data.readers.webdataset import read_webdataset
from dpce_cli.core.data.records import CaptionedImages
from dpce_cli.core.data.shards import open_photo
from dpce_cli.core.errors import ConfigError, DataError
from dpce_cli.core.progress import Reporter
from tests.tars import Member, unpack, write_tar


def read(root: Path, *, val: float = 0.0, test: float = 0.0, seed: int = 0) -> CaptionedImages:
    return read_webdataset(root, val_fraction=val, test_fraction=test, seed=seed, reporter=Reporter())


def captions_of(data: CaptionedImages) -> dict[str, tuple[str, ...]]:
    return {image.image_id: image.captions for image in data.images}


def splits_of(data: CaptionedImages) -> dict[str, str]:
    return {image.image_id: image.split for image in data.images}


def photo(data: CaptionedImages, index: int) -> bytes:
    image = data.images[index]
    with open_photo(data.root / image.path, image.extent) as file:
        return file.read()


def sample(key: str, caption: str = "a dog") -> list[Member]:
    return [(f"{key}.jpg", key.encode()), (f"{key}.txt", caption.encode())]


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "a.jpg"
    return member


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the library leaves its shards open
@pytest.mark.parametrize("form", ["txt", "json"])
def test_samples_are_those_of_the_webdataset_library(tmp_path: Path, form: str) -> None:
    with webdataset.ShardWriter(str(tmp_path / "train-%06d.tar"), maxcount=3, verbose=0) as writer:
        for number in range(8):
            texts = [f"caption {k} of {number} ☂" for k in range(number % 3 + 1)]
            captions = {"captions": texts} if form == "json" else "\n".join(texts)
            writer.write({"__key__": f"{number:05}", "jpg": jpeg(number), form: captions, "cls": number})
    shards = sorted(map(str, tmp_path.glob("*.tar")))
    expected = list(webdataset.WebDataset(shards, shardshuffle=False))
    data = read(tmp_path)
    assert len(shards) == 3
    assert len(expected) == len(data.images) == 8
    assert (data.name, data.root, data.skipped) == ("webdataset", tmp_path, ())
    for index, (theirs, ours) in enumerate(zip(expected, data.images, strict=True)):
        assert ours.path == ours.image_id == f"{Path(theirs['__url__']).name}/{theirs['__key__']}.jpg"
        assert ours.split == "train"
        assert photo(data, index) == theirs["jpg"]
        text = theirs[form].decode()
        assert list(ours.captions) == (json.loads(text)["captions"] if form == "json" else text.splitlines())


@pytest.mark.skipif(sys.platform != "linux", reason="the commands are GNU's")
@pytest.mark.parametrize(
    "command",
    [
        "tar --sort=name -cf ../shards/train-0000.tar .",
        "find . -type f | LC_ALL=C sort | split -l 4 -d -a 4 --filter='tar -cf ../shards/train-$FILE.tar -T -' - ''",
    ],
)
def test_the_commands_of_the_readme_write_shards(tmp_path: Path, command: str) -> None:
    keys = ("a", "a-b", "a1", "trip/c")
    for key in keys:
        for name, content in sample(key, f"a photo of {key}"):
            (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "photos" / name).write_bytes(content)
    (tmp_path / "shards").mkdir()
    subprocess.run(["bash", "-c", command], cwd=tmp_path / "photos", check=True)
    data = read(tmp_path / "shards")
    assert (data.skipped, {image.split for image in data.images}) == ((), {"train"})
    found = {image.path.partition("/")[2]: (photo(data, i), image.captions) for i, image in enumerate(data.images)}
    assert found == {f"{key}.jpg": (key.encode(), (f"a photo of {key}",)) for key in keys}


def test_captions_of_json_come_before_those_of_a_text_file(tmp_path: Path) -> None:
    records: dict[str, dict[str, Any]] = {
        "a": {"caption": " one\ndog "},
        "b": {"captions": ["two", "dogs"], "width": 3},
        "c": {"width": 3},
        "d": {"caption": None, "captions": None},
        "e": {"caption": None, "captions": ["five"]},
    }
    write_tar(
        tmp_path / "0.tar",
        [
            member
            for key, record in records.items()
            for member in (*sample(key, "\n from text \n\nand more"), (f"{key}.JSON", json.dumps(record).encode()))
        ],
    )
    from_text = ("from text", "and more")
    expected = {"a": ("one dog",), "b": ("two", "dogs"), "c": from_text, "d": from_text, "e": ("five",)}
    assert captions_of(read(tmp_path)) == {f"0.tar/{key}.jpg": captions for key, captions in expected.items()}


def test_a_sample_ends_where_the_path_up_to_the_first_dot_changes(tmp_path: Path) -> None:
    members = [
        ("./sub.dir/a.PNG", b"1"),
        ("./sub.dir/a.seg.png", b"2"),
        ("./sub.dir/.hidden", b""),
        ("./sub.dir/README", b""),
        ("sub.dir/a.txt", "\ufeffa café".encode()),
        *sample("a"),
    ]
    write_tar(tmp_path / "0.tar", members)
    data = read(tmp_path)
    assert captions_of(data) == {"0.tar/sub.dir/a.PNG": ("a café",), "0.tar/a.jpg": ("a dog",)}
    passed_over = "images whose name to the first dot is another image's: 1 (first: sub.dir/a.seg.png)"
    assert (photo(data, 0), data.skipped) == (b"1", (passed_over,))


@pytest.mark.parametrize("pattern", ["{}-0001.tar", "my_{}2017.TAR", "{}/0001.tar", "{}/part/0001.tar"])
def test_splits_are_those_of_the_shards_names(tmp_path: Path, pattern: str) -> None:
    words = {"train": "train", "Val": "val", "dev": "val", "valid": "val", "validation": "val", "TEST": "test"}
    for word in words:
        write_tar(tmp_path / pattern.format(word), sample("a"))
    found = splits_of(read(tmp_path, val=0.5))
    assert found == {f"{pattern.format(word)}/a.jpg": split for word, split in words.items()}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train/test-0.tar",), r"train/test-0\.tar: its path names the splits test and train; rename it"),
        (("train-0.tar", "training.tar"), r"training\.tar: its path names no split, but those of other tars do"),
    ],
)
def test_splits_that_contradict_each_other_are_refused(tmp_path: Path, names: Iterable[str], message: str) -> None:
    for name in names:
        write_tar(tmp_path / name, sample("a"))
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_drawn_splits_are_those_of_a_folder_of_the_same_photos(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    for shard in range(4):
        write_tar(root / f"{shard}.tar", [member for key in range(9, -1, -1) for member in sample(str(key))])
    folder = unpack(root, tmp_path / "folder")
    drawn = read(root, val=0.25, test=0.1, seed=3)
    loose = read_folder(folder, captions=None, val_fraction=0.25, test_fraction=0.1, seed=3)
    assert splits_of(drawn) == splits_of(loose) != splits_of(read(root, val=0.25, test=0.1, seed=4))
    assert sorted(captions_of(drawn).items()) == sorted(captions_of(loose).items())
    assert [image.path for image in drawn.images][:2] == ["0.tar/9.jpg", "0.tar/8.jpg"]  # as they lie in the shard
    with pytest.raises(ConfigError, match="choose two fractions"):
        read(root, val=0.5, test=0.5)


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path: Path) -> None:
    sparse = special("sparse.jpg", tarfile.GNUTYPE_SPARSE)
    write_tar(
        tmp_path / "0.tar",
        [
            special("folder", tarfile.DIRTYPE),
            *sample("a"),
            special("soft.jpg", tarfile.SYMTYPE),
            special("hard.jpg", tarfile.LNKTYPE),
            special("dev.jpg", tarfile.CHRTYPE),
            special("pipe.jpg", tarfile.FIFOTYPE),
            sparse,
            ("text.txt", b"no image"),
            ("bare.jpg", b""),
            *sample("empty", " \n\t\n"),
            *sample("blank", "\x00"),
            *sample("two"),
            ("two.png", b""),
            *sample("twice", "first"),
            ("twice.txt", b"second"),
            ("./a.json", b'{"caption": "late"}'),
            *sample("again", "dog\ndog"),
        ],
    )
    data = read(tmp_path)
    assert captions_of(data) == {
        "0.tar/a.jpg": ("a dog",),
        "0.tar/twice.jpg": ("first",),
        "0.tar/again.jpg": ("dog",),
    }
    names = "0.tar/soft.jpg, 0.tar/hard.jpg, 0.tar/dev.jpg"
    assert data.skipped == (
        f"links, devices and sparse files in tars: 5 (first: {names})",
        "samples without an image: 1 (first: 0.tar/text)",
        "images of samples with several: 2 (first: 0.tar/two.jpg, 0.tar/two.png)",
        "files that came before in their sample: 1 (first: twice.txt)",
        "files apart from the others of their sample: 1 (first: 0.tar/a.json)",
        f"empty captions: 1 (first: {tmp_path}/0.tar/blank.txt:1)",
        f"repeated captions: 1 (first: {tmp_path}/0.tar/again.txt:2)",
        "images without a caption: 3 (first: 0.tar/bare.jpg, 0.tar/blank.jpg, 0.tar/empty.jpg)",
    )


def test_photos_and_captions_that_lie_apart_are_explained(tmp_path: Path) -> None:
    photos, texts = zip(*(sample(key) for key in "abc"), strict=True)
    write_tar(tmp_path / "0.tar", [*photos, *texts])
    with pytest.raises(DataError, match=r"no image .* left to read \(files apart from the others of their sample: 3"):
        read(tmp_path)


def test_equal_keys_in_different_shards_are_different_photos(tmp_path: Path) -> None:
    for name in ("0.tar", "1.tar"):
        write_tar(tmp_path / name, sample("a", f"in {name}"))
    assert captions_of(read(tmp_path)) == {"0.tar/a.jpg": ("in 0.tar",), "1.tar/a.jpg": ("in 1.tar",)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"dog\ncaf\xe9", r"0\.tar/a\.txt:2: not UTF-8 text"),
        ("a.json", b'{"caption": "caf\xe9"}', r"0\.tar/a\.json:1: not UTF-8 text"),
        ("a.json", b'{"caption": "x"', r"0\.tar/a\.json: not valid JSON .*; put one whole object there"),
        ("a.json", b"[" * 100_000, r"0\.tar/a\.json: not valid JSON"),
        ("a.json", b'["x"]', r"0\.tar/a\.json: not an object"),
        ("a.json", b'{"captions": {"x": 1}}', r"captions that are no text: 1 \(first: .*0\.tar/a\.json"),
        ("a.json", b'{"caption": "\\ud800"}', r"0\.tar/a\.json: .* is not Unicode text"),
        ("../b.jpg", b"", r"0\.tar: '\.\./b\.jpg' is not a path below"),
        ("/etc/b.jpg", b"", r"0\.tar: '/etc/b\.jpg' is not a path below"),
        ("b/..\\..\\c.jpg", b"", r"0\.tar: .* is not a path below"),
        ("\udcff.jpg", b"", r"0\.tar: .* is not Unicode text"),
    ],
)
def test_a_bad_member_is_a_data_error_with_its_shard(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_tar(tmp_path / "0.tar", [("a.jpg", b""), (name, content)], format=tarfile.GNU_FORMAT)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_a_folder_without_shards_says_what_is_expected_and_found(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(DataError, match=r"not laid out as WebDataset: expected shards \*\.tar .*; found a\.jpg; write"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"none: cannot be listed \(No such file"):
        read(tmp_path / "none")


@pytest.mark.parametrize("name", ["1.tar", "1.tar.gz", "1.tgz"])
def test_compressed_shards_are_not_passed_over(tmp_path: Path, name: str) -> None:
    whole = write_tar(tmp_path / "0.tar", sample("a"))
    (tmp_path / name).write_bytes(gzip.compress(whole.read_bytes()))
    with pytest.raises(DataError, match=rf"{name}: compressed with gzip; decompress it"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no tar", b"x" * 2048])
def test_what_is_not_a_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"0\.tar: not a tar, damaged or cut off"):
        read(tmp_path)


def test_a_shard_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write_tar(tmp_path / "0.tar", sample("a"))
    monkeypatch.setattr("dpce_cli.core.data.readers.webdataset.scan_files", lambda root, suffixes: ["0.tar"])
    shard.unlink()
    with pytest.raises(DataError, match=r"0\.tar: cannot be read \(No such file or directory\); check"):
        read(tmp_path)


def test_links_out_of_the_root_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "secret.tar", sample("a"))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "0.tar").symlink_to(tmp_path / "secret.tar")
    with pytest.raises(DataError, match=r"0\.tar: a link that leads out"):
        read(tmp_path / "root")


def test_photos_whose_names_have_dots_are_all_read(tmp_path: Path) -> None:
    names = [f"Screenshot 2024-05-01 at 10.{minute}.1" for minute in (30, 31, 45)] + ["IMG_1"]
    members = [(f"{name}.{end}", content) for name in names for end, content in (("jpg", b"1"), ("txt", b"a dog"))]
    write_tar(tmp_path / "0.tar", members)
    data = read(tmp_path)
    assert captions_of(data) == {f"0.tar/{name}.jpg": ("a dog",) for name in names}
    assert data.skipped == ()


NAMES = st.builds("{}.{}".format, st.sampled_from(["a", "b", "a.1", "a.2", "b.1.x"]), st.sampled_from(["jpg", "png"]))
TEXTS = st.builds("{}.txt".format, st.sampled_from(["a", "b", "a.1", "a.2", "b.1.x"]))


@given(st.data(), st.sets(NAMES, min_size=1, max_size=3), st.sets(TEXTS, max_size=3))
def test_each_photo_of_a_tar_is_read_or_named_with_the_reason(
    data: st.DataObject, photos: set[str], texts: set[str]
) -> None:
    """At most three photos, because a reason names its first three."""
    order = data.draw(st.permutations(sorted(photos | texts)))
    with TemporaryDirectory() as folder:
        write_tar(Path(folder) / "0.tar", [(name, b"a dog") for name in order])
        try:
            found = read(Path(folder))
        except DataError as error:
            named, kept = str(error), set[str]()
        else:
            named, kept = " ".join(found.skipped), {image.path.removeprefix("0.tar/") for image in found.images}
    for photo in photos - kept:
        assert re.search(rf"(?<![\w.]){re.escape(photo)}(?![\w.])", named), (order, named)


def test_a_photo_of_a_format_that_is_not_read_is_named_with_its_format(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [*sample("a"), ("b.jxl", b"1"), ("b.txt", b"a dog")])
    expected = "samples with a photo of the format .jxl, which is not read: 1 (first: 0.tar/b.jxl)"
    assert read(tmp_path).skipped == (expected,)


def test_a_caption_that_is_no_text_is_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [*sample("a"), ("b.jpg", b"1"), ("b.json", b'{"captions": [3, "x", null]}')])
    data = read(tmp_path)
    assert captions_of(data)["0.tar/b.jpg"] == ("x",)
    assert any(line.startswith("captions that are no text: 2 (first: ") for line in data.skipped)
