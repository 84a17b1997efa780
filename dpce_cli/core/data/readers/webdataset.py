"""Captioned images in tar shards of the WebDataset format, which `core.data.shards` reads photos from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from tarfile import TarInfo
from typing import BinaryIO

from dpce_cli.core.data.readers.reading import (
    IMAGE_SUFFIXES,
    SPLIT_NAMES,
    UNREAD_SUFFIXES,
    CaptionRow,
    Skips,
    captioned_images,
    check_fractions,
    decode,
    drawn_splits,
    group_captions,
    json_object,
    layout_error,
    numbered_lines,
    of_unread_format,
    relative_path,
    scan_files,
    stated_captions,
)
from dpce_cli.core.data.records import CaptionedImage, CaptionedImages, check_encodable
from dpce_cli.core.data.shards import Extent, extent, members
from dpce_cli.core.errors import DataError
from dpce_cli.core.progress import Reporter

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_SAMPLE = re.compile(r"((?:.*/)?[^./]+)(\.[^/]*)", re.DOTALL)
"""Path of a member: the key of its sample up to the first dot, and what it is of it."""


def read_webdataset(
    root: Path, *, val_fraction: float, test_fraction: float, seed: int, reporter: Reporter
) -> CaptionedImages:
    """The images with captions in the tars in `root` and below, in their order; `image_id` is the path through the tar.

    Members of a tar that follow each other and have the same path up to the first dot of the file name are a sample (up
    to the last dot, where no image ends at the first one). It is an image, and its captions in a `.json` object
    (caption, or a list captions) or, where that states none, in a `.txt`, one per line. Other members are passed over.
    Each tar is read once, and nothing is unpacked.

    A word of the tars' paths states their splits: `train-0001.tar`, `val/0001.tar` (dev, valid and validation mean
    val). If none states one, `val_fraction` and `test_fraction` of the images (rounded down) are drawn with `seed`.

    Raises:
        ConfigError: the fractions are negative or leave nothing to train on.
        DataError: there is no tar; one is compressed, damaged or cut off, or lies outside `root`; two splits of one
            tar, or none though others have one; malformed captions, an unsafe name, or nothing left to read.
    """
    check_fractions(val_fraction, test_fraction)
    shards = scan_files(root, suffixes=(".tar", *_COMPRESSED))
    if not shards:
        raise layout_error(
            root,
            "WebDataset",
            "shards *.tar of images with their captions, here or in folders such as train",
            "write them with 'tar --sort=name -cf train-0000.tar ...'",
        )
    stated, skips = _stated_splits(root, shards), Skips()
    found = dict[str, tuple[Extent, tuple[str, ...], str | None]]()
    with reporter.track("reading shards", len(shards)) as advance:
        for shard in shards:
            for path, place, captions in _read_shard(root, shard, skips):
                found[path] = place, captions, stated.get(shard)
            advance()
    drawn = {} if stated else drawn_splits(sorted(found), val_fraction, test_fraction, seed)
    images = (
        CaptionedImage(image_id=path, path=path, split=split or drawn[path], captions=captions, extent=place)
        for path, (place, captions, split) in found.items()
    )
    return captioned_images("webdataset", root, images, skips)


def _stated_splits(root: Path, shards: list[str]) -> dict[str, str]:
    """The split of each tar; empty if none states any."""
    splits = dict[str, str]()
    for shard in shards:
        named = {SPLIT_NAMES[word] for word in re.findall("[a-z]+", shard.lower()) if word in SPLIT_NAMES}
        if len(named) > 1:
            raise DataError(f"{root / shard}: its path names the splits {' and '.join(sorted(named))}; rename it")
        splits.update((shard, split) for split in named)
    without = [shard for shard in shards if shard not in splits]
    if splits and without:
        raise DataError(
            f"{root / without[0]}: its path names no split, but those of other tars do; "
            f"put one of {', '.join(SPLIT_NAMES)} into every path or into none"
        )
    return splits


def _read_shard(root: Path, shard: str, skips: Skips) -> Iterator[tuple[str, Extent, tuple[str, ...]]]:
    """Path, place and captions of the images of a tar."""
    extents, rows, keys = dict[str, Extent](), list[CaptionRow](), set[str]()
    try:
        with open(root / shard, "rb") as file:
            for key, parts in _samples(_files(file, root, shard, skips), skips):
                photos = [parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in parts]
                if key in keys:
                    for end, member in parts.items():
                        kind = "images" if end in IMAGE_SUFFIXES else "files"
                        name = f"{shard}/{PurePosixPath(member.name)}"
                        skips.add(f"{kind} apart from the others of their sample", name)
                elif not photos and (unread := [suffix for suffix in UNREAD_SUFFIXES if suffix in parts]):
                    skips.add(f"samples with a photo {of_unread_format(key + unread[0])}", f"{shard}/{key}{unread[0]}")
                elif not photos:
                    skips.add("samples without an image", f"{shard}/{key}")
                elif len(photos) > 1:
                    for photo in photos:
                        skips.add("images of samples with several", f"{shard}/{PurePosixPath(photo.name)}")
                else:
                    path = f"{shard}/{PurePosixPath(photos[0].name)}"
                    extents[path] = extent(file, photos[0])
                    captions = _captions(file, parts, root / shard, skips)
                    rows += [CaptionRow(image=path, caption=caption, where=where) for where, caption in captions]
                keys.add(key)
    except OSError as error:
        raise DataError(f"{root / shard}: cannot be read ({error.strerror}); check its permissions") from error
    grouped = group_captions(rows, images=extents.keys(), place=shard, skips=skips)
    for path, place in extents.items():
        if path in grouped:
            yield path, place, tuple(grouped[path])


def _files(file: BinaryIO, root: Path, shard: str, skips: Skips) -> Iterator[tuple[str, str, TarInfo]]:
    """The files in a tar that belong to a sample: its key, the end of their name, and where they are."""
    for member in members(file):
        if not member.isreg() or member.issparse():
            if not member.isdir():
                skips.add("links, devices and sparse files in tars", f"{shard}/{member.name}")
        elif match := _SAMPLE.fullmatch(relative_path(member.name, str(root / shard))):
            check_encodable(match[0], str(root / shard))
            yield match[1], match[2].lower(), member


def _samples(files: Iterator[tuple[str, str, TarInfo]], skips: Skips) -> Iterator[tuple[str, dict[str, TarInfo]]]:
    """Keys, and what has them, by the end of the name."""
    for key, group in groupby(files, key=lambda file: file[0]):
        members = [(end, member) for _, end, member in group]
        further = [end for end, _ in members if end.endswith(IMAGE_SUFFIXES) and end not in IMAGE_SUFFIXES]
        if further and len(further) == sum(end.endswith(IMAGE_SUFFIXES) for end, _ in members):
            # No photo ends at the first dot: these are names such as "Screenshot at 10.30.1.jpg".
            members.sort(key=lambda item: item[0].rpartition(".")[0])
            by_name = groupby(members, key=lambda item: item[0].rpartition(".")[0])
            for rest, parts in by_name:
                named = ((f".{end.rpartition('.')[2]}", member) for end, member in parts)
                yield f"{key}{rest}", _parts(named, skips)
        else:
            for end in further:
                skips.add("images whose name to the first dot is another image's", f"{key}{end}")
            yield key, _parts(iter(members), skips)


def _parts(members: Iterator[tuple[str, TarInfo]], skips: Skips) -> dict[str, TarInfo]:
    parts = dict[str, TarInfo]()
    for end, member in members:
        if parts.setdefault(end, member) is not member:
            skips.add("files that came before in their sample", member.name)
    return parts


def _captions(file: BinaryIO, parts: dict[str, TarInfo], shard: Path, skips: Skips) -> Iterator[tuple[str, str]]:
    """The captions of a sample, each after where it stands."""

    def text(member: TarInfo) -> tuple[str, str]:
        file.seek(member.offset_data)
        where = f"{shard}/{member.name}"
        return decode(file.read(member.size), where), where

    if member := parts.get(".json"):
        content, where = text(member)
        record = json_object(content, where)
        stated = {key: record[key] for key in ("caption", "captions") if record.get(key) is not None}
        if stated:
            return ((where, caption) for caption in stated_captions(stated, where, skips))
    return numbered_lines(*text(parts[".txt"])) if ".txt" in parts else iter(())
