"""Pooled features of a frozen image CNN, computed once per view and kept in HDF5."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dpce_cli.core.config import ImageConfig
from dpce_cli.core.data.contents import is_stored, meta_to_fill, photo_contents
from dpce_cli.core.data.loading import read_views, stop_without_launcher, warn_of_others
from dpce_cli.core.data.records import CaptionedImage
from dpce_cli.core.data.views import FixedViews
from dpce_cli.core.errors import DataError
from dpce_cli.core.models.image_encoder import ImageEncoder
from dpce_cli.core.processes.collectives import share
from dpce_cli.core.progress import Reporter
from dpce_cli.core.storage.rows import open_or_resume, read_store
from dpce_cli.core.workspace.checkpoint import fingerprint
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.workspace import Workspace

_BATCH = 16


def cached_features(
    workspace: Workspace,
    dataset: PreparedDataset,
    encoder: ImageEncoder,
    config: ImageConfig,
    *,
    split: str,
    workers: int,
    reporter: Reporter,
) -> Tensor:
    """The pooled features of every view of a split's photos: float16 `(images, views, feature_dim)`.

    Features in the cache are read; missing ones are computed and added. An interrupted computation continues where it
    stopped. A photo that cannot be read has a row of zeros. float16 keeps three digits, and halves the file: 24 KiB per
    photo at six views of ResNet-50.

    Args:
        split: "train" adds `config.cached_crops` random crops to the test views.

    Raises:
        DataError: no photo can be read.
        WorkspaceError: the cache cannot be written or is damaged.
    """
    root, images = dataset.root, dataset.split(split)
    paths = [image.path for image in images]
    crops = config.cached_crops if split == "train" else 0
    meta = _meta(dataset, encoder, config, crops)
    path, views = _path(workspace, split, meta, images), meta["views"]
    contents = photo_contents(root, images)
    if not is_stored(path, meta, contents):
        whole_meta = meta_to_fill(path, meta, contents)
        reporter.note(f"caching the image CNN's features of the {split} photos in {path}")
        device, problems = next(encoder.parameters()).device, list[str]()
        encoder.eval()
        shape = (len(paths), views, encoder.feature_dim)
        with (
            open_or_resume(
                path, arrays={"features": (shape, "float16")}, constants={"paths": paths}, meta=whole_meta
            ) as store,
            torch.inference_mode(),
        ):
            own = share(len(paths))
            done, end = own.start + store.done("features"), own.stop
            with reporter.track(f"features of {split} photos", end - own.start, done - own.start) as advance:
                batches = read_views(
                    root,
                    images[done:end],
                    _Offset(FixedViews(config, crops), done),
                    batch_size=_BATCH,
                    workers=workers,
                )
                for positions, batch, unread in batches:
                    rows = torch.zeros(len(positions) + len(unread), views, encoder.feature_dim, dtype=torch.float16)
                    if positions:
                        features = encoder.pooled_features(batch.to(device).flatten(0, 1))
                        first = _BATCH * (positions[0] // _BATCH)
                        rows[torch.tensor(positions) - first] = features.half().cpu().unflatten(0, (-1, views))
                    for problem in unread:
                        reporter.warn(f"{problem}: skipped")
                    problems += unread
                    store.append(features=rows)
                    stop_without_launcher()
                    advance(len(rows))
            store.finish()
        warn_of_others(problems, reporter)
    features = _read(path)
    unreadable = int((~features.flatten(1).any(1)).sum())
    if unreadable == len(paths):
        path.unlink(missing_ok=True)
        raise DataError(f"{root}: none of the {unreadable} {split} photos can be read; put them there and run again")
    if unreadable:
        reporter.warn(
            f"{unreadable} of {len(paths)} {split} photos could not be read and are left out; "
            f"to try them again, delete {path}"
        )
    return features


def cached_test_features(
    workspace: Workspace, dataset: PreparedDataset, encoder: ImageEncoder, config: ImageConfig, *, split: str
) -> Tensor | None:
    """The test views' pooled features of a split's photos, float16 `(images, views, feature_dim)`, if they are cached.

    None also if a photo could not be read when the cache was made.
    """
    crops = config.cached_crops if split == "train" else 0
    meta = _meta(dataset, encoder, config, crops)
    images = dataset.split(split)
    path = _path(workspace, split, meta, images)
    if not is_stored(path, meta, photo_contents(dataset.root, images)):
        return None
    features = _read(path)[:, : 1 + config.mirror]
    return features if bool(features.flatten(1).any(1).all()) else None


def _meta(dataset: PreparedDataset, encoder: ImageEncoder, config: ImageConfig, crops: int) -> dict[str, Any]:
    """What a cache depends on, besides the photos' paths, contents and positions in shards."""
    return {
        "cnn": fingerprint(encoder.backbone.state_dict()),
        "image": asdict(replace(config, test_view="crop")),  # the only test view in the cache
        "views": 1 + config.mirror + crops,
    }


def _path(workspace: Workspace, split: str, meta: dict[str, Any], images: Sequence[CaptionedImage]) -> Path:
    positions = [[image.path, *image.extent] if image.extent else image.path for image in images]
    key = hashlib.sha256(json.dumps([meta, positions], sort_keys=True).encode()).hexdigest()[:12]
    return workspace.feature_cache_path(split, key)


def _read(path: Path) -> Tensor:
    return torch.from_numpy(read_store(path, remedy="dpce train-stage1").arrays["features"])


@dataclass(frozen=True)
class _Offset:
    """Applies `view` to the photo number `start + position`."""

    view: FixedViews
    start: int

    def __call__(self, image: Image.Image, position: int) -> Tensor:
        return self.view(image, self.start + position)
