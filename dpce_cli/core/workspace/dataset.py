"""A prepared data set, and the files that hold it.

dataset.json names the other files, which have a hash of their content in their names. It is replaced last, so that a
process that is killed before leaves the old data set as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpce_cli.core.config import Config
from dpce_cli.core.data.records import SPLITS, CaptionedImage, check_encodable, instance_ids
from dpce_cli.core.errors import DataError, DpceError, WorkspaceError
from dpce_cli.core.storage.files import replacing, write_json
from dpce_cli.core.text.vocabulary import Vocabulary

FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage(CaptionedImage):
    """One image of a prepared data set."""

    token_ids: tuple[tuple[int, ...], ...]
    """Known words of each caption as ids of the prepared vocabulary, not yet cut to `max_words`."""


@dataclass(frozen=True, kw_only=True)
class PreparedDataset:
    """What prepare-vocab left for the other commands."""

    name: str
    root: Path
    config: Config
    vocabulary: Vocabulary
    images: tuple[PreparedImage, ...]
    training_fingerprint: str
    """Of the train split's ids, captions, identities and token ids: what a model depends on."""
    split_fingerprints: dict[str, str]
    """Of all that is known of each split's images: what their embeddings depend on, besides the model."""

    @property
    def instances(self) -> int:
        """Classes of the instance loss: identities and images without one, of the train split."""
        return len(set(instance_ids(self.split("train"))))

    def split(self, name: str) -> list[PreparedImage]:
        """The images of split `name`.

        Raises:
            WorkspaceError: there is none.
        """
        images = [image for image in self.images if image.split == name]
        if not images:
            splits = ", ".join(sorted({image.split for image in self.images}))
            raise WorkspaceError(
                f"data set '{self.name}' has no '{name}' split; it has: {splits}. Choose one with --split, "
                "or add the missing split to the data set and run prepare-vocab again"
            )
        return images

    def check_root(self) -> None:
        """Make sure that the folder of the photos is there, before work that reads them.

        Raises:
            DataError: it is not.
        """
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: the folder of the photos is not there; put it back, or if it has moved, run 'dpce "
                f"prepare-vocab' again with its new place and --name {self.name}: trained models stay valid"
            )


def write_dataset(
    folder: Path,
    *,
    root: Path,
    source: Path,
    config: Config,
    vocabulary: Vocabulary,
    images: Iterable[PreparedImage],
    with_split_ids: bool,
) -> PreparedDataset:
    """Replace the data set in `folder`, whose name is the data set's, in one step.

    Args:
        root: the folder that the images' paths are relative to.
        source: where the photos came from; `root`, if that does not hold copies of them.
        with_split_ids: write the ids of each split to a file for `--splits`, too.

    Raises:
        WorkspaceError: the folder cannot be written; the old data set stays.
    """
    kept = tuple(images)
    lines = [_line(image) for image in kept]
    fingerprints = {
        split: _digest(line for line, image in zip(lines, kept, strict=True) if image.split == split)
        for split in sorted({image.split for image in kept})
    }
    contents = {
        "images": ("images", "jsonl", b"".join(lines)),
        "words": ("vocabulary", "json", _json(vocabulary.to_json())),
    }
    if with_split_ids:
        from dpce_cli.core.data.splits import split_ids  # imports torch, and a search may need none

        contents["split_ids"] = ("splits", "json", _json(split_ids(kept)))
    names = {key: f"{stem}-{_digest([content])[:12]}.{suffix}" for key, (stem, suffix, content) in contents.items()}
    about = {
        "format": FORMAT,
        "name": folder.name,
        "root": str(root),
        "source": str(source),
        **names,
        "fingerprint": _digest(lines),
        "training": _digest(_line(image, with_path=False) for image in kept if image.split == "train"),
        "splits": fingerprints,
        "vocabulary": vocabulary.fingerprint,
        "config": config.to_dict(),
    }
    for key, (_, _, content) in contents.items():
        with replacing(folder / names[key]) as temporary:
            temporary.write_bytes(content)
    write_json(folder / "dataset.json", {**about, "checksum": _checksum(about)})
    return PreparedDataset(
        name=folder.name,
        root=root,
        config=config,
        vocabulary=vocabulary,
        images=kept,
        training_fingerprint=str(about["training"]),
        split_fingerprints=fingerprints,
    )


def read_about(folder: Path) -> dict[str, Any]:
    """What dataset.json says of the data set in `folder`; quick to read for a data set of any size.

    Raises:
        WorkspaceError: it is missing, damaged, or of another version.
    """
    path, again = folder / "dataset.json", f"run 'dpce prepare-vocab' for data set '{folder.name}' again"
    try:
        about = json.loads(path.read_bytes())
        if not isinstance(about, dict):
            raise ValueError("not a JSON object")
        if about.get("format", 1) == FORMAT:
            _check_about(about)
            return about
    except (OSError, ValueError, RecursionError) as error:
        raise WorkspaceError(f"{path}: the prepared data set is incomplete or damaged ({error}); {again}") from error
    raise WorkspaceError(f"{path}: the data set was prepared by another version of dpce; {again}")


def stated_folder(folder: Path, *keys: str) -> str | None:
    """The first of `keys`, "source" or "root", that dataset.json in `folder` has, whatever version of dpce wrote it.

    None if there is no such file, or it cannot be read.
    """
    try:
        about = json.loads((folder / "dataset.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    stated = [about.get(key) for key in keys] if isinstance(about, dict) else []
    return next((value for value in stated if isinstance(value, str) and "\0" not in value), None)


def read_dataset(folder: Path) -> PreparedDataset:
    """The data set in `folder`.

    Raises:
        WorkspaceError: it is missing or damaged, or its files do not belong together.
    """
    about, again = read_about(folder), f"run 'dpce prepare-vocab' for data set '{folder.name}' again"
    try:
        content = (folder / about["images"]).read_bytes()
        words = json.loads((folder / about["words"]).read_bytes())
        vocabulary = Vocabulary.from_json(words, about["words"])
        if _digest([content]) != about["fingerprint"] or vocabulary.fingerprint != about["vocabulary"]:
            raise ValueError("its files do not belong together")
        images = tuple(
            _image(json.loads(line), f"{about['images']}:{number}", len(vocabulary))
            for number, line in enumerate(content.splitlines(), start=1)
        )
        config = Config.from_dict(about["config"], str(folder / "dataset.json"))
    except (OSError, ValueError, RecursionError, DpceError) as error:
        raise WorkspaceError(f"{folder}: the prepared data set is incomplete or damaged ({error}); {again}") from error
    return PreparedDataset(
        name=folder.name,
        root=Path(about["root"]),
        config=config,
        vocabulary=vocabulary,
        images=images,
        training_fingerprint=about["training"],
        split_fingerprints=about["splits"],
    )


def _check_about(about: Mapping[str, Any]) -> None:
    """Raise `ValueError` where dataset.json does not say what `write_dataset` writes."""
    for key in ("root", "source", "images", "words", "fingerprint", "training", "vocabulary"):
        if not isinstance(about.get(key), str) or "\0" in about[key]:
            raise ValueError(f"{key} is not text")
    if about.get("checksum") not in (None, _checksum(about)):
        raise ValueError("its checksum is another one")
    if not isinstance(about.get("splits"), dict) or not isinstance(about.get("config"), dict):
        raise ValueError("splits or config is not an object")
    for key in ("images", "words"):
        if Path(about[key]).name != about[key]:
            raise ValueError(f"{key} is not the name of a file beside it")


def _checksum(about: Mapping[str, Any]) -> str:
    """Tells dataset.json from a damaged one; files of earlier versions have none."""
    content = {key: value for key, value in about.items() if key != "checksum"}
    return _digest([json.dumps(content, sort_keys=True).encode()])


def _line(image: PreparedImage, *, with_path: bool = True) -> bytes:
    record: dict[str, Any] = {
        "image_id": image.image_id,
        "path": image.path if with_path else "",
        "split": image.split,
        "captions": image.captions,
        "identity": image.identity,
        "token_ids": image.token_ids,
    }
    if image.extent is not None and with_path:
        record["extent"] = image.extent
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _image(record: Any, where: str, words: int) -> PreparedImage:
    """The image that `_line` described.

    Raises:
        ValueError: not such a description.
        DataError: a path leads out of the root, or a text is not Unicode.
    """

    def check(name: str, sound: bool) -> None:
        if not sound:
            raise ValueError(f"{where}: {name} is not what prepare-vocab writes")

    check("the line", isinstance(record, dict))
    image_id, path, split, identity = (record.get(key) for key in ("image_id", "path", "split", "identity"))
    captions, token_ids, extent = record.get("captions"), record.get("token_ids"), record.get("extent")
    check("captions", isinstance(captions, list) and bool(captions))
    for name, text in (
        ("image_id", image_id),
        ("path", path),
        ("identity", identity or ""),
        *(("captions", text) for text in captions),
    ):
        check(name, isinstance(text, str))
        check_encodable(text, where)
    check("path", path[:1] not in ("", "/") and ".." not in path.split("/") and "\0" not in path)
    check("split", split in SPLITS)
    check("identity", identity is None or isinstance(identity, str))
    check("token_ids", isinstance(token_ids, list) and len(token_ids) == len(captions))
    for ids in token_ids:
        check(
            "token_ids",
            isinstance(ids, list) and {*map(type, ids)} <= {int} and (not ids or 1 <= min(ids) <= max(ids) <= words),
        )
    check(
        "extent",
        extent is None
        or (isinstance(extent, list) and len(extent) == 3 and all(type(n) is int and 0 <= n < 2**63 for n in extent)),
    )
    return PreparedImage(
        image_id=image_id,
        path=path,
        split=split,
        captions=tuple(captions),
        identity=identity,
        token_ids=tuple(map(tuple, token_ids)),
        extent=tuple(extent) if extent else None,
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
