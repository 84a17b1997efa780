"""Where artefacts live, and which belongs to which.

    workspace/
      current                     name of the current data set
      flickr8k/                   one folder per data set
        dataset.json              root, configuration, fingerprints, and the names of the next two files
        images-HASH.jsonl         one image per line: id, path, split, captions, identity, token ids, place in its shard
        vocabulary-HASH.json
        splits.json               ids of each split, where the splits were drawn
        photos-HASH/              the photos of prepare-vocab --resize-images
        word_vectors.h5
        cache/                    pooled CNN features, one file per split and setting
        stage1/  stage2/          last.pt, best.pt, epoch-N.pt, lock, metrics.jsonl, curves.png, tensorboard/, bank.h5
        features/                 one HDF5 store per split

Preparing a data set again writes new files beside the old ones, and then replaces dataset.json: a process that is
killed in between leaves the old data set as it was. What the new one does not change, such as cached features, stays.

Nothing in it is an absolute path but the photos' root, so a workspace can be copied to try something else on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpce_cli.core.config import Config
from dpce_cli.core.data.records import CaptionedImage, CaptionedImages, instance_ids
from dpce_cli.core.errors import ConfigError, WorkspaceError
from dpce_cli.core.storage.files import replacing, write_json
from dpce_cli.core.text.vocabulary import Vocabulary

FORMAT = 2
_PUBLISHED = ("scenes", "flickr8k", "flickr30k", "coco", "cuhk-pedes", "icfg-pedes", "rstp-reid")
"""Names that stand for one data set, wherever its files lie."""


def check_name(name: str) -> str:
    """`name`, if a data set or a gallery can have it: it becomes a folder of the workspace.

    Raises:
        ConfigError: it cannot.
    """
    if name != Path(name).name or name.startswith((".", "-")) or not name.isprintable() or len(os.fsencode(name)) > 100:
        raise ConfigError(f"--name {name!r}: choose up to 100 letters, digits, blanks or hyphens, without a /")
    if name in ("current", "galleries", ""):
        raise ConfigError(f"--name {name!r}: is used for something else in a workspace; choose another name")
    return name


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
    fingerprint: str
    """Of all that is known of all images."""
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


class Workspace:
    """A folder of artefacts, and the data set in it that commands work on."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def dataset_name(self) -> str:
        """Name of the current data set.

        Raises:
            WorkspaceError: no data set has been prepared here, or its name is not that of a folder in the workspace.
        """
        try:
            name = (self.root / "current").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise WorkspaceError(
                f"{self.root}: no data set is prepared here; run 'dpce prepare-vocab scenes' (or another data set), "
                "or name the right folder with --workspace"
            ) from None
        if name != Path(name).name or name in ("", ".."):
            raise WorkspaceError(
                f"{self.root / 'current'}: '{name}' is not a folder beside it; run 'dpce prepare-vocab' again"
            )
        return name

    @property
    def folder(self) -> Path:
        """The current data set's folder."""
        return self.root / self.dataset_name

    @property
    def word_vectors_path(self) -> Path:
        return self.folder / "word_vectors.h5"

    def stage_folder(self, stage: int) -> Path:
        return self.folder / f"stage{stage}"

    def features_path(self, split: str) -> Path:
        return self.folder / "features" / f"{split}.h5"

    def bank_path(self, stage: int) -> Path:
        return self.stage_folder(stage) / "bank.h5"

    def feature_cache_path(self, split: str, key: str) -> Path:
        return self.folder / "cache" / f"{split}-{key}.h5"

    def save_dataset(
        self,
        *,
        name: str,
        root: Path,
        config: Config,
        vocabulary: Vocabulary,
        images: Iterable[PreparedImage],
        source: Path | None = None,
    ) -> PreparedDataset:
        """Write a prepared data set and make it current, in one step.

        Args:
            source: where the photos came from, if `root` holds copies of them.

        Raises:
            WorkspaceError: the workspace cannot be written.
        """
        folder, kept = self.root / name, tuple(images)
        lines = [_line(image) for image in kept]
        content = b"".join(lines)
        words = json.dumps(vocabulary.to_json(), indent=2, ensure_ascii=False).encode() + b"\n"
        splits = {
            split: _digest(line for line, image in zip(lines, kept, strict=True) if image.split == split)
            for split in sorted({image.split for image in kept})
        }
        about = {
            "format": FORMAT,
            "name": name,
            "root": str(root),
            "source": str(source or root),
            "images": f"images-{_digest([content])[:12]}.jsonl",
            "words": f"vocabulary-{_digest([words])[:12]}.json",
            "fingerprint": _digest([content]),
            "training": _digest(_line(image, with_path=False) for image in kept if image.split == "train"),
            "splits": splits,
            "vocabulary": vocabulary.fingerprint,
            "config": config.to_dict(),
        }
        for file, written in ((about["images"], content), (about["words"], words)):
            with replacing(folder / str(file)) as temporary:
                temporary.write_bytes(written)
        write_json(folder / "dataset.json", about)
        with replacing(self.root / "current") as temporary:
            temporary.write_text(name + "\n", encoding="utf-8")
        _remove_others(folder, about, root)
        return PreparedDataset(
            name=name,
            root=root,
            config=config,
            vocabulary=vocabulary,
            images=kept,
            fingerprint=str(about["fingerprint"]),
            training_fingerprint=str(about["training"]),
            split_fingerprints=splits,
        )

    def note_of_replacement(self, captioned: CaptionedImages, *, is_named: bool) -> str:
        """What to tell a person of the data set that `captioned` replaces; empty where it is the same or none.

        Args:
            is_named: whether the person chose the name, and so what is replaced.

        Raises:
            WorkspaceError: another folder's data set has this name, and the person did not choose it.
        """
        try:
            older = self.about(captioned.name)
        except WorkspaceError:
            return ""
        if older["source"] == str(captioned.root.resolve()):
            return ""
        if not is_named and older["name"] not in _PUBLISHED:
            raise WorkspaceError(
                f"data set '{captioned.name}' of {older['source']} is prepared here already; choose another --name, or "
                f"replace it with --name {captioned.name}"
            )
        return f"data set '{captioned.name}' was prepared from {older['source']}, and is now from {captioned.root}"

    def about(self, name: str | None = None) -> dict[str, Any]:
        """What dataset.json says of a data set, or of the current one; cheap, whatever the data set's size.

        Raises:
            WorkspaceError: it is missing, damaged, or of another version.
        """
        name = name or self.dataset_name
        path = self.root / name / "dataset.json"
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            version = about.get("format", 1)
            strings = [about.get(key) for key in ("root", "source", "images", "words", "fingerprint", "training")]
            sound = all(isinstance(value, str) for value in strings) and isinstance(about.get("splits"), dict)
        except (OSError, ValueError, RecursionError, AttributeError) as error:
            raise WorkspaceError(
                f"{path}: the prepared data set is incomplete or damaged ({error}); run 'dpce prepare-vocab' again"
            ) from error
        if version != FORMAT or not sound or any(Path(about[key]).name != about[key] for key in ("images", "words")):
            raise WorkspaceError(
                f"{path}: the prepared data set is damaged, or of another version of dpce; run 'dpce prepare-vocab' "
                "again"
            )
        return dict(about)

    def load_dataset(self) -> PreparedDataset:
        """Read the current data set.

        Raises:
            WorkspaceError: it is missing or damaged, or its parts do not belong together.
        """
        folder, name, about = self.folder, self.dataset_name, self.about()
        again = f"run 'dpce prepare-vocab' for data set '{name}' again"
        try:
            content = (folder / about["images"]).read_bytes()
            words = json.loads((folder / about["words"]).read_bytes())
            images = tuple(_image(json.loads(line)) for line in content.splitlines())
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise WorkspaceError(
                f"{folder}: the prepared data set is incomplete or damaged ({error}); {again}"
            ) from error
        vocabulary = Vocabulary.from_json(words, str(folder / about["words"]))
        if _digest([content]) != about["fingerprint"] or vocabulary.fingerprint != about.get("vocabulary"):
            raise WorkspaceError(f"{folder}: the files of the data set do not belong together; {again}")
        return PreparedDataset(
            name=name,
            root=Path(about["root"]),
            config=Config.from_dict(about.get("config", {}), str(folder / "dataset.json")),
            vocabulary=vocabulary,
            images=images,
            fingerprint=about["fingerprint"],
            training_fingerprint=about["training"],
            split_fingerprints=about["splits"],
        )


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


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _remove_others(folder: Path, about: Mapping[str, Any], root: Path) -> None:
    """Delete what earlier preparations of the data set left."""
    for path in folder.glob("images-*.jsonl"):
        if path.name != about["images"]:
            path.unlink(missing_ok=True)
    for path in folder.glob("vocabulary-*.json"):
        if path.name != about["words"]:
            path.unlink(missing_ok=True)
    for path in folder.glob("photos-*"):
        if path.resolve() != root:
            shutil.rmtree(path, ignore_errors=True)


def _image(record: dict[str, Any]) -> PreparedImage:
    return PreparedImage(
        image_id=record["image_id"],
        path=record["path"],
        split=record["split"],
        captions=tuple(record["captions"]),
        identity=record["identity"],
        token_ids=tuple(tuple(ids) for ids in record["token_ids"]),
        extent=tuple(record["extent"]) if "extent" in record else None,
    )
