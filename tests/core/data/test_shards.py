from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from dpce_cli.core.data.images import load_image
from dpce_cli.core.data.shards import Extent, extent, members, open_photo, shard_of
from dpce_cli.core.errors import DataError
from tests.tars import write_tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
NAMES = ("a.jpg", "./dogs/b.jpg", f"{'deep/' * 30}c.jpg", f"{'x' * 90}.jpg")
LONG = (f"{'y' * 150}.jpg", "café/子犬.jpg", f"{'z' * 300}/d.jpg")
"""Names that are too long for ustar."""


def content(name: str) -> bytes:
    return name.encode() * 100


def names(path: Path) -> list[str]:
    with open(path, "rb") as file:
        return [member.name for member in members(file)]


def extents(path: Path) -> dict[str, Extent]:
    with open(path, "rb") as file:
        return {member.name: extent(file, member) for member in members(file)}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_photo_is_read_at_its_position_or_searched_for(tmp_path: Path, kind: str) -> None:
    wanted = NAMES if kind == "ustar" else NAMES + LONG
    shard = write_tar(tmp_path / "a.tar", [(name, content(name)) for name in wanted], format=FORMATS[kind])
    places = extents(shard)
    assert list(places) == list(wanted)
    for name in wanted:
        for place in (places[name], None):
            with open_photo(shard / name, place) as photo:
                assert photo.read() == content(name)


def test_reading_a_photo_may_come_between_two_members(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [(name, content(name)) for name in NAMES])
    with open(shard, "rb") as file:
        for member in members(file):
            file.seek(member.offset_data)
            assert file.read(member.size) == content(member.name)


def test_the_shard_of_a_path_is_a_tar_that_is_a_file(tmp_path: Path) -> None:
    outer = tmp_path / "unpacked.tar"
    shard = write_tar(outer / "B.TAR", [("c.tar/d.jpg", b"photo")])
    (outer / "e.jpg").write_bytes(b"loose")
    assert shard_of(shard / "c.tar" / "d.jpg") == shard
    assert shard_of(outer / "e.jpg") is shard_of(shard) is None
    for path, expected in ((shard / "c.tar" / "d.jpg", b"photo"), (outer / "e.jpg", b"loose")):
        with open_photo(path) as photo:
            assert photo.read() == expected


def test_a_shard_that_was_written_again_is_noticed(tmp_path: Path) -> None:
    photos = [("a.jpg", b"a" * 600), ("b.jpg", b"b" * 600)]
    shard = write_tar(tmp_path / "a.tar", photos)
    places = extents(shard)
    for changed in (photos[::-1], [("c.jpg", b""), *photos], [("a.jpg", b"a" * 601)], []):
        write_tar(shard, changed)
        with pytest.raises(DataError, match=r"a\.tar/a\.jpg: not found in its shard at byte 512; if .* prepare-vocab"):
            open_photo(shard / "a.jpg", places["a.jpg"])
    write_tar(shard, photos)
    with open_photo(shard / "a.jpg", places["a.jpg"]) as photo:
        assert photo.read() == b"a" * 600
    with pytest.raises(DataError, match=r"a\.tar/c\.jpg: not found in its shard; if the shard was written again"):
        open_photo(shard / "c.jpg")
    shard.unlink()
    with pytest.raises(DataError, match=r"a\.jpg: cannot be read \(No such file or directory\)"):
        load_image(shard / "a.jpg", places["a.jpg"])


def test_only_files_are_photos(tmp_path: Path) -> None:
    link, folder = tarfile.TarInfo("link.jpg"), tarfile.TarInfo("folder.jpg")
    link.type, link.linkname, folder.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.DIRTYPE
    shard = write_tar(tmp_path / "a.tar", [link, folder])
    for name in ("link.jpg", "folder.jpg"):
        with pytest.raises(DataError, match="not found in its shard"):
            open_photo(shard / name)


@pytest.mark.parametrize(
    ("compress", "name"),
    [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz"), (b"\x28\xb5\x2f\xfd".__add__, "zstd")],
)
def test_a_compressed_tar_says_so(tmp_path: Path, compress: object, name: str) -> None:
    assert callable(compress)
    shard = write_tar(tmp_path / "a.tar", [("a.jpg", b"a")])
    shard.write_bytes(compress(shard.read_bytes()))
    with pytest.raises(DataError, match=rf"a\.tar: compressed with {name}; decompress it"):
        names(shard)


def test_a_tar_that_is_cut_off_anywhere_is_noticed(tmp_path: Path) -> None:
    """tarfile alone does not notice some of these."""
    shard = write_tar(tmp_path / "a.tar", [("a.jpg", b"a" * 700), ("b.jpg", b"b" * 700)])
    whole = shard.read_bytes()
    assert len(whole.rstrip(b"\0")) == 512 + 1024 + 512 + 700
    for length in (0, 1, 300, 512, 700, 1536, 1600, 2048, 2100, 2748, 3072, 3500):
        shard.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.tar: not a tar, damaged or cut off \(.+\); write or copy it again"):
            names(shard)
    shard.write_bytes(whole[:3584])
    assert names(shard) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("damage", [b"\xff" * 512, b"x", b"-" * 148, b"\0" * 124 + b"\xff" * 12])
def test_a_damaged_header_is_noticed(tmp_path: Path, damage: bytes) -> None:
    shard = write_tar(tmp_path / "a.tar", [("a.jpg", b"a"), ("b.jpg", b"b")])
    data = bytearray(shard.read_bytes())
    data[1024 : 1024 + len(damage)] = damage
    shard.write_bytes(data)
    with pytest.raises(DataError, match="damaged or cut off"):
        names(shard)


def test_a_negative_size_ends_in_an_error(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("a.jpg", b"a"), ("b.jpg", b"b")])
    header = bytearray(shard.read_bytes()[1024:1536])
    header[124:136] = (-512).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    shard.write_bytes(shard.read_bytes()[:1024] + header + bytes(1024))
    with pytest.raises(DataError, match="a negative size"):
        names(shard)


def test_an_empty_tar_has_no_members(tmp_path: Path) -> None:
    assert names(write_tar(tmp_path / "a.tar", [])) == []


def test_a_picture_in_a_shard_is_decoded_like_a_file(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    shard = write_tar(tmp_path / "a.tar", [("a.png", data), ("cut.png", data[:40])])
    places = extents(shard)
    for place in (places["a.png"], None):
        image = load_image(shard / "a.png", place)
        assert (image.size, image.getpixel((7, 5))) == ((8, 6), (255, 0, 0))
    with pytest.raises(DataError, match=r"a\.tar/cut\.png: .*; replace or remove the file"):
        load_image(shard / "cut.png", places["cut.png"])
