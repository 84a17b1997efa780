"""Where the files of a workspace are, and its current data set.

    workspace/
      current                     name of the current data set
      flickr8k/                   one folder per data set
        dataset.json              root, configuration, fingerprints, and the names of the next three files
        images-HASH.jsonl         one image per line: id, path, split, captions, identity, token ids, place in its shard
        vocabulary-HASH.json
        splits-HASH.json          ids of each split, where the splits were drawn
        photos-HASH/              drawn scenes, or the photos of prepare-vocab --resize-images
        word_vectors.h5
        cache/                    the frozen CNN's features, one file per split and setting
        stage1/  stage2/          last.pt, best.pt, epoch-N.pt, lock, metrics.jsonl, curves.png, tensorboard/, bank.h5,
                                  relevance.json
        features/                 one HDF5 store per split
      galleries/                  one folder per gallery, of any data set's model; see core.galleries
      teaching/                   one folder per gallery whose photos a person has captioned; see core.teaching

prepare-vocab writes new files beside the old ones, then replaces dataset.json, then deletes the old files. If it is
killed before, the old data set stays as it was. Features, models and embeddings stay; each names what it was made from.

Only the photos' root is an absolute path, so a workspace can be copied for an experiment.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dpce_cli.core.config import Config
from dpce_cli.core.errors import ConfigError, WorkspaceError
from dpce_cli.core.storage.files import replacing
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.workspace.dataset import (
    PreparedDataset,
    PreparedImage,
    read_about,
    read_dataset,
    stated_folder,
    write_dataset,
)
from dpce_cli.core.workspace.leftovers import remove_leftovers

PUBLISHED = ("scenes", "flickr8k", "flickr30k", "coco", "cuhk-pedes", "icfg-pedes", "rstp-reid")
"""Published data sets: each name means the same photos and captions, wherever they are."""


def check_name(name: str) -> str:
    """Return `name` if a data set or a gallery can have it as the name of its folder in the workspace.

    Raises:
        ConfigError: it cannot.
    """
    if name != Path(name).name or name.startswith((".", "-")) or not name.isprintable() or len(os.fsencode(name)) > 100:
        raise ConfigError(f"--name {name!r}: choose up to 100 letters, digits, blanks or hyphens, without a /")
    if name in ("current", "galleries", "teaching", ""):
        raise ConfigError(f"--name {name!r}: is used for something else in a workspace; choose another name")
    return name


def check_own_name(name: str) -> None:
    """Refuse the name of a published data set for a person's own photos.

    Raises:
        ConfigError: it is one.
    """
    if name in PUBLISHED:
        raise ConfigError(f"{name!r} is the name of a published data set; choose another one with --name")


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

    def gallery_folder(self, name: str) -> Path:
        return self.root / "galleries" / name

    def teaching_folder(self, gallery: str) -> Path:
        return self.root / "teaching" / gallery

    def features_path(self, split: str) -> Path:
        return self.folder / "features" / f"{split}.h5"

    def bank_path(self, stage: int) -> Path:
        return self.stage_folder(stage) / "bank.h5"

    def relevance_path(self, stage: int) -> Path:
        return self.stage_folder(stage) / "relevance.json"

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
        with_split_ids: bool = False,
    ) -> PreparedDataset:
        """Write a prepared data set, make it current, and delete what the one before it left.

        Args: see `write_dataset`.

        Raises:
            WorkspaceError: the workspace cannot be written.
        """
        dataset = write_dataset(
            self.root / name,
            root=root,
            source=source or root,
            config=config,
            vocabulary=vocabulary,
            images=images,
            with_split_ids=with_split_ids,
        )
        with replacing(self.root / "current") as temporary:
            temporary.write_text(name + "\n", encoding="utf-8")
        remove_leftovers(self.root, name)
        return dataset

    def note_of_replacement(self, name: str, source: Path, *, is_named: bool) -> str:
        """What to tell a person about the data set that a new one from `source` replaces; empty if there is nothing.

        Args:
            is_named: whether the person chose the name, and so what is replaced.

        Raises:
            WorkspaceError: data set `name` was made from another folder, and the person did not choose the name.
        """
        if not (self.root / name / "dataset.json").exists():
            return ""
        older = stated_folder(self.root / name, "source", "root")
        if older == str(source):
            return ""
        was = f"data set '{name}' in {self.root} was prepared from {older or 'a folder that its files do not name'}"
        if not is_named and name not in PUBLISHED:
            raise WorkspaceError(f"{was}, not from {source}; choose another --name, or replace it with --name {name}")
        return f"{was}; it is now replaced by one from {source}"

    def about(self) -> dict[str, Any]:
        """What dataset.json says of the current data set; quick to read for a data set of any size.

        Raises:
            WorkspaceError: it is missing, damaged, or of another version.
        """
        return read_about(self.folder)

    def load_dataset(self) -> PreparedDataset:
        """Read the current data set.

        Raises:
            WorkspaceError: it is missing or damaged, or its files do not belong together.
        """
        return read_dataset(self.folder)
