"""The embeddings of one split on disk, as extract-features leaves them for evaluation and search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpce_cli.core.data.records import CaptionedImage
from dpce_cli.core.errors import WorkspaceError
from dpce_cli.core.storage.rows import Store, StoreWriter, open_or_resume, read_store

# Rows that are looked at together: bounds memory for any number of rows.
_BLOCK = 2**14
_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class FeatureStore:
    """The embeddings of one split and what they are embeddings of."""

    image_embeddings: Tensor
    """(images, dim) float32, L2-normalised; likewise the texts."""
    text_embeddings: Tensor
    """(texts, dim)"""
    image_hubness: Tensor
    """(images,) float32: how much of a hub each image is; see `retrieval.hubness`. All zeros where it is not known."""
    text_hubness: Tensor
    """(texts,)"""
    image_of_text: Tensor
    """(texts,) int64: the image that owns each text."""
    image_ids: tuple[str, ...]
    image_paths: tuple[str, ...]
    """POSIX paths relative to the data set's root."""
    identities: tuple[str, ...]
    """Who or what each image shows, where several may show the same; "" for an image that is its own."""
    captions: tuple[str, ...]
    meta: dict[str, Any]


def open_feature_store(
    path: Path, *, images: Sequence[CaptionedImage], dim: int, meta: Mapping[str, Any]
) -> AbstractContextManager[StoreWriter]:
    """Begin or resume the feature store of `images`, to fill the embeddings and hubness of images and texts.

    Texts are the captions of the first image, then of the second, and so on.
    """
    owners = [index for index, image in enumerate(images) for _ in image.captions]
    return open_or_resume(
        path,
        arrays={
            "image_embeddings": ((len(images), dim), "float32"),
            "text_embeddings": ((len(owners), dim), "float32"),
            "image_hubness": ((len(images),), "float32"),
            "text_hubness": ((len(owners),), "float32"),
        },
        constants={
            "image_ids": [image.image_id for image in images],
            "image_paths": [image.path for image in images],
            "identities": [image.identity or "" for image in images],
            "captions": [caption for image in images for caption in image.captions],
            "image_of_text": np.array(owners, dtype=np.int64),
        },
        meta=meta,
    )


def load_feature_store(path: Path, remedy: str | None = None) -> FeatureStore:
    """Read a feature store.

    An image that could not be read has a row of zeros in the file; it is left out with its captions.

    Raises:
        WorkspaceError: it is missing, damaged or incomplete, or its parts do not fit together.
    """
    remedy = remedy or f"dpce extract-features --split {path.stem}"
    store = read_store(path, remedy=remedy)
    try:
        features = FeatureStore(
            image_embeddings=torch.from_numpy(store.arrays["image_embeddings"]),
            text_embeddings=torch.from_numpy(store.arrays["text_embeddings"]),
            image_hubness=_hubness(store, "image"),
            text_hubness=_hubness(store, "text"),
            image_of_text=torch.from_numpy(store.arrays["image_of_text"]),
            image_ids=store.texts["image_ids"],
            image_paths=store.texts["image_paths"],
            identities=store.texts["identities"],
            captions=store.texts["captions"],
            meta=store.meta,
        )
    except KeyError as error:
        raise WorkspaceError(f"{path}: holds no {error}; delete it and run `{remedy}` again") from error
    if fault := _fault(features):
        raise WorkspaceError(f"{path}: {fault}; delete it and run `{remedy}` again")
    return _readable(features)


def _hubness(store: Store, kind: str) -> Tensor:
    """The stored hubness; zeros for embeddings that were made before it was stored."""
    if "bank" not in store.meta and f"{kind}_hubness" not in store.arrays:
        return torch.zeros(len(store.arrays[f"{kind}_embeddings"]))
    return torch.from_numpy(store.arrays[f"{kind}_hubness"])


def _readable(store: FeatureStore) -> FeatureStore:
    """The store without images whose row is all zeros, which no embedding is, and without their captions."""
    image = store.image_embeddings.any(dim=1)
    if bool(image.all()):
        return store
    text = image[store.image_of_text]
    images, texts = image.nonzero().squeeze(1).tolist(), text.nonzero().squeeze(1).tolist()
    return FeatureStore(
        image_embeddings=store.image_embeddings[image],
        text_embeddings=store.text_embeddings[text],
        image_hubness=store.image_hubness[image],
        text_hubness=store.text_hubness[text],
        image_of_text=(image.cumsum(0) - 1)[store.image_of_text[text]],
        image_ids=tuple(store.image_ids[i] for i in images),
        image_paths=tuple(store.image_paths[i] for i in images),
        identities=tuple(store.identities[i] for i in images),
        captions=tuple(store.captions[j] for j in texts),
        meta=store.meta,
    )


def _fault(store: FeatureStore) -> str | None:
    """What does not fit together, if anything."""
    images, texts, owners = store.image_embeddings, store.text_embeddings, store.image_of_text
    if (images.dtype, texts.dtype, owners.dtype) != (torch.float32, torch.float32, torch.int64):
        return "embeddings are not float32 or image_of_text is not int64"
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        return f"embeddings of shapes {tuple(images.shape)} and {tuple(texts.shape)} do not fit together"
    counts = len(store.image_ids), len(store.image_paths), len(store.identities)
    if set(counts) != {len(images)}:
        return f"{len(images)} images, {counts[0]} ids, {counts[1]} paths, {counts[2]} identities"
    if not (len(store.captions),) == (len(texts),) == tuple(owners.shape):
        return f"{len(texts)} texts, {len(store.captions)} captions, image_of_text {tuple(owners.shape)}"
    for name, values, rows in (("image", store.image_hubness, images), ("text", store.text_hubness, texts)):
        if values.dtype != torch.float32 or values.shape != rows.shape[:1] or not bool((values.abs() <= 1).all()):
            return f"its {name} hubness is not one number from -1 to 1 per {name}"
    if len(owners) and not 0 <= int(owners.min()) <= int(owners.max()) < len(images):
        return "image_of_text names an image that is not there"
    for name, rows in (("image", images), ("text", texts)):
        for number, block in enumerate(rows.split(_BLOCK)):
            length = block.norm(dim=1)
            wrong = ~((length - 1).abs() < _TOLERANCE) & (length != 0)  # a photo that cannot be read is all zeros
            if bool(wrong.any()):
                return f"row {number * _BLOCK + int(wrong.nonzero()[0])} of its {name} embeddings is no unit vector"
    return None
