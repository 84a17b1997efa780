"""What the frozen part of an image CNN gives, computed once per view and kept in HDF5.

That is the pooled features if the whole CNN is frozen, and else the maps of its lower part.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from dpce_cli.core.config import ImageConfig
from dpce_cli.core.data.contents import is_stored, meta_to_fill, photo_contents
from dpce_cli.core.data.images import View
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
_CHUNK_BYTES = 2**26

Kind = Literal["pooled", "maps"]
"""The output of the whole image CNN, or of its lower part (`ImageConfig.frozen_until`)."""


@dataclass(frozen=True)
class FeatureCache:
    """Where the cached features are, and how missing ones are computed."""

    workspace: Workspace
    kind: Kind = "pooled"
    computed_in: torch.dtype = torch.float32
    """Precision of the CNN for missing features. Features that were computed in float32 are used for any precision."""


def features_shape(encoder: ImageEncoder, kind: Kind) -> tuple[int, ...]:
    """The shape of a view's cached features.

    Raises:
        ConfigError: the lower part of the CNN gives a vector.
    """
    if kind == "pooled":
        return (encoder.feature_dim,)
    device = next(encoder.parameters()).device
    encoder.eval()
    with torch.inference_mode():
        photo = torch.zeros(1, 3, encoder.crop, encoder.crop, dtype=torch.uint8, device=device)
        return tuple(encoder.frozen_maps(photo).shape[1:])


def cached_features(
    cache: FeatureCache,
    dataset: PreparedDataset,
    encoder: ImageEncoder,
    config: ImageConfig,
    *,
    split: str,
    workers: int,
    reporter: Reporter,
) -> Tensor:
    """The features of every view of a split's photos: float16 `(images, views, ...)`, mapped from the file.

    Features in the cache are read; missing ones are computed and added. An interrupted computation continues where it
    stopped. A photo that cannot be read has a row of zeros. float16 keeps three digits, and halves the file: per photo,
    24 KiB at six views of ResNet-50 as a whole, and 784 KiB at two views of ResNet-50 cut after layer3.

    The pooled features of a CNN that is cut are computed from its maps, which are cached, too: Stage II needs them.

    Args:
        split: "train" adds `config.cached_crops` random crops to the test views.

    Raises:
        ConfigError: the lower part of the CNN gives a vector.
        DataError: no photo can be read.
        WorkspaceError: the cache cannot be written or is damaged.
    """
    if cache.computed_in != torch.float32:
        in_float32 = replace(cache, computed_in=torch.float32)
        if _is_stored(in_float32, dataset, encoder, config, split):
            cache = in_float32
    root, images = dataset.root, dataset.split(split)
    paths = [image.path for image in images]
    crops = config.cached_crops if split == "train" else 0
    meta = _meta(cache, encoder, config, crops)
    path, views = _path(cache.workspace, split, meta, images), meta["views"]
    contents = photo_contents(root, images)
    if not is_stored(path, meta, contents):
        dataset.check_root()
        maps = None
        if cache.kind == "pooled" and encoder.frozen_until:
            maps = cached_features(
                replace(cache, kind="maps"), dataset, encoder, config, split=split, workers=workers, reporter=reporter
            )
        whole_meta = meta_to_fill(path, meta, contents)
        of = f"maps after {encoder.frozen_until}" if cache.kind == "maps" else "features"
        shape = (len(paths), views, *features_shape(encoder, cache.kind))
        reporter.note(
            f"caching the image CNN's {of} of the {split} photos in {path} ({2 * math.prod(shape) / 1e9:.2f} GB)"
        )
        device, problems = next(encoder.parameters()).device, list[str]()
        compute = encoder.frozen_maps if cache.kind == "maps" else encoder.pooled_features
        lower = torch.autocast(device.type, cache.computed_in, enabled=cache.computed_in != torch.float32)
        encoder.eval()
        with (
            open_or_resume(
                path, arrays={"features": (shape, "float16")}, constants={"paths": paths}, meta=whole_meta
            ) as store,
            torch.inference_mode(),
            lower,
        ):
            own = share(len(paths))
            done, end = own.start + store.done("features"), own.stop
            with reporter.track(f"{of} of {split} photos", end - own.start, done - own.start) as advance:
                inputs = (
                    _photos(root, images[done:end], _Offset(FixedViews(config, crops), done), workers)
                    if maps is None
                    else _readable_maps(maps[done:end])
                )
                for readable, views_of_readable, unread in inputs:
                    rows = torch.zeros(len(readable), *shape[1:], dtype=torch.float16)
                    if readable.any():
                        features = compute(views_of_readable.flatten(0, 1).to(device))
                        rows[readable] = features.half().cpu().unflatten(0, (-1, views))
                    for problem in unread:
                        reporter.warn(f"{problem}: skipped")
                    problems += unread
                    store.append(features=rows)
                    stop_without_launcher()
                    advance(len(rows))
            store.finish()
        warn_of_others(problems, reporter)
    features = _read(path)
    unreadable = int((~readable_photos(features)).sum())
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
    workspace: Workspace,
    dataset: PreparedDataset,
    encoder: ImageEncoder,
    config: ImageConfig,
    *,
    split: str,
    computed_in: torch.dtype,
) -> Tensor | None:
    """The test views' features of a split's photos, float16 `(images, views, ...)`, if they are cached.

    None also if a photo could not be read when the cache was made.

    Args:
        computed_in: precision of the CNN; features that were computed in float32 are used for any.
    """
    kinds: tuple[Kind, ...] = ("pooled", "maps") if config.frozen_until else ("pooled",)
    for kind, precision in product(kinds, dict.fromkeys((torch.float32, computed_in))):
        cache = FeatureCache(workspace, kind, precision)
        if _is_stored(cache, dataset, encoder, config, split):
            crops = config.cached_crops if split == "train" else 0
            path = _path(workspace, split, _meta(cache, encoder, config, crops), dataset.split(split))
            features = _read(path)[:, : 1 + config.mirror]
            return features if bool(readable_photos(features).all()) else None
    return None


def readable_photos(features: Tensor) -> Tensor:
    """Which photos could be read when their features `(images, views, ...)` were cached: `(images,)`."""
    return torch.cat([part[:, 0].flatten(1).any(1) for part in in_chunks(features)])


def in_chunks(features: Tensor) -> Iterator[Tensor]:
    """Consecutive photos of `features`, at most 64 MiB at a time."""
    yield from features.split(max(1, _CHUNK_BYTES // max(1, features[:1].nbytes)))


def _photos(
    root: Path, images: Sequence[CaptionedImage], view: View, workers: int
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Some photos at a time: which of them can be read, the views of those, and what is wrong with the others."""
    for positions, views, problems in read_views(root, images, view, batch_size=_BATCH, workers=workers):
        readable = torch.zeros(len(positions) + len(problems), dtype=torch.bool)
        readable[torch.tensor(positions, dtype=torch.long) % _BATCH] = True
        yield readable, views, problems


def _readable_maps(maps: Tensor) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """The same of cached maps; what is wrong with the others was told when they were cached."""
    for part in maps.split(_BATCH):
        readable = readable_photos(part)
        yield readable, part[readable], []


def _is_stored(
    cache: FeatureCache, dataset: PreparedDataset, encoder: ImageEncoder, config: ImageConfig, split: str
) -> bool:
    images = dataset.split(split)
    meta = _meta(cache, encoder, config, config.cached_crops if split == "train" else 0)
    return is_stored(_path(cache.workspace, split, meta, images), meta, photo_contents(dataset.root, images))


def _meta(cache: FeatureCache, encoder: ImageEncoder, config: ImageConfig, crops: int) -> dict[str, Any]:
    """What a cache depends on, besides the photos' paths, contents and positions in shards."""
    state, image = encoder.backbone.state_dict(), asdict(replace(config, test_view="crop"))  # the only cached test view
    del image["frozen_until"]
    if config.pooling == (1, 1):
        del image["pooling"]  # caches made before there was this setting stay valid
    else:
        image["pooling"] = list(config.pooling)  # as JSON gives it back
    meta = {"cnn": fingerprint(state), "image": image, "views": 1 + config.mirror + crops}
    if cache.kind == "maps":
        lower = {name: value for name, value in state.items() if name in encoder.frozen_tensors}
        meta |= {"cnn": fingerprint(lower), "until": encoder.frozen_until}
    if cache.computed_in != torch.float32:
        meta["computed_in"] = str(cache.computed_in)
    return meta


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
