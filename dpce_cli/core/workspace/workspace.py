"""Where artefacts live, and which belongs to which.

    workspace/
      current                     name of the current data set
      flickr8k/                   one folder a data set
        dataset.json              root, configuration, fingerprints
        splits.json               ids of each split, where the splits were drawn
        images.jsonl              one image a line: id, path, split, captions, identity, token ids, place in its shard
        vocabulary.json
        images/                   the photos of prepare-vocab --resize-images
        word_vectors.h5
        cache/                    pooled CNN features, one file a split and setting
        stage1/  stage2/          last.pt, best.pt, epoch-N.pt, lock, metrics.jsonl, curves.png, tensorboard/
        features/                 one HDF5 store a split

Nothing in it is an absolute path but the photos' root, so a workspace can be copied to try something else on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpce_cli.core.config import Config
from dpce_cli.core.data.records import CaptionedImage, instance_ids
from dpce_cli.core.errors import WorkspaceError
from dpce_cli.core.storage.files import replacing, write_json
from dpce_cli.core.text.vocabulary import Vocabulary


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
    """Of image ids, splits, captions and token ids."""

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
    ) -> PreparedDataset:
        """Write a prepared data set and make it current.

        Raises:
            WorkspaceError: the workspace cannot be written.
        """
        folder = self.root / name
        digest = hashlib.sha256()
        kept = tuple(images)
        with replacing(folder / "images.jsonl") as temporary, open(temporary, "wb") as file:
            for image in kept:
                record: dict[str, Any] = {
                    "image_id": image.image_id,
                    "path": image.path,
                    "split": image.split,
                    "captions": image.captions,
                    "identity": image.identity,
                    "token_ids": image.token_ids,
                }
                if image.extent is not None:
                    record["extent"] = image.extent
                line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
                digest.update(line)
                file.write(line)
        write_json(folder / "vocabulary.json", vocabulary.to_json())
        write_json(
            folder / "dataset.json",
            {
                "name": name,
                "root": str(root),
                "fingerprint": digest.hexdigest(),
                "vocabulary": vocabulary.fingerprint,
                "config": config.to_dict(),
            },
        )
        with replacing(self.root / "current") as temporary:
            temporary.write_text(name + "\n", encoding="utf-8")
        return PreparedDataset(
            name=name,
            root=root,
            config=config,
            vocabulary=vocabulary,
            images=kept,
            fingerprint=digest.hexdigest(),
        )

    def load_dataset(self) -> PreparedDataset:
        """Read the current data set.

        Raises:
            WorkspaceError: it is missing or damaged, or its parts do not belong together.
        """
        folder, name = self.folder, self.dataset_name
        again = f"run 'dpce prepare-vocab {name}' again"
        try:
            about = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
            words = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
            lines = (folder / "images.jsonl").read_bytes()
            images = tuple(_image(json.loads(line)) for line in lines.splitlines())
            fingerprint, root = about["fingerprint"], Path(about["root"])
            tree, vocabulary_fingerprint = about["config"], about["vocabulary"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WorkspaceError(
                f"{folder}: the prepared data set is incomplete or damaged ({error}); {again}"
            ) from error
        vocabulary = Vocabulary.from_json(words, str(folder / "vocabulary.json"))
        if hashlib.sha256(lines).hexdigest() != fingerprint or vocabulary.fingerprint != vocabulary_fingerprint:
            raise WorkspaceError(
                f"{folder}: dataset.json, vocabulary.json and images.jsonl do not belong together; {again}"
            )
        return PreparedDataset(
            name=name,
            root=root,
            config=Config.from_dict(tree, str(folder / "dataset.json")),
            vocabulary=vocabulary,
            images=images,
            fingerprint=fingerprint,
        )


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
