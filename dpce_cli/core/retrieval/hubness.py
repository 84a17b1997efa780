"""Correction for hubs: photos that are near to every sentence, and sentences that are near to every photo.

The hubness of an item is half its mean cosine to the `NEAREST` training embeddings of the other kind: captions for a
photo, photos for a caption. Search subtracts it from the cosine. This is cross-domain similarity local scaling (Conneau
et al. 2018, Word Translation Without Parallel Data, section 2.3) with training embeddings in place of the other
queries, so an answer does not depend on other queries. The paper (Zheng et al. 2020) does not correct for hubs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpce_cli.core.storage.rows import read_meta
from dpce_cli.core.workspace.checkpoint import Checkpoint
from dpce_cli.core.workspace.features import FeatureStore, load_feature_store

NEAREST = 10
"""Chosen on training photos; the gain is the same within noise from 5 to 50."""
BANK_PHOTOS = 3000
"""Training photos whose embeddings are kept, with their captions'."""

_BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Embeddings of training photos and captions, from which the hubness of other photos and captions follows."""

    image_embeddings: Tensor
    """(images, dim) float32, L2-normalised."""
    text_embeddings: Tensor
    """(texts, dim) float32, L2-normalised."""

    def hubness_of_images(self, embeddings: Tensor) -> Tensor:
        """(images, dim) L2-normalised embeddings to (images,) hubness."""
        return _half_of_nearest(embeddings, self.text_embeddings)

    def hubness_of_texts(self, embeddings: Tensor) -> Tensor:
        """(texts, dim) L2-normalised embeddings to (texts,) hubness."""
        return _half_of_nearest(embeddings, self.image_embeddings)


def bank_loader(path: Path, checkpoint: Checkpoint) -> Callable[[], Bank] | None:
    """A function that reads the bank at `path`; None: there is no bank, or it belongs to another model."""
    meta = read_meta(path)
    return partial(load_bank, path) if meta and meta.get("checkpoint") == checkpoint.fingerprint else None


def load_bank(path: Path) -> Bank:
    """The bank of a model of the workspace, as extract-features leaves it.

    Raises:
        WorkspaceError: it is missing or damaged.
    """
    store = load_feature_store(path, remedy="dpce extract-features")
    return Bank(image_embeddings=store.image_embeddings, text_embeddings=store.text_embeddings)


def _half_of_nearest(items: Tensor, bank: Tensor) -> Tensor:
    nearest = min(NEAREST, len(bank))
    means = [(rows @ bank.T).topk(nearest, dim=1).values.mean(1) for rows in items.split(_BLOCK)]
    return torch.cat([torch.empty(0), *means]) / 2


def has_hubness(store: FeatureStore) -> bool:
    """Whether the hubness of the store's photos and captions is known."""
    return store.meta.get("bank") is not None


def corrected_for_hubs(store: FeatureStore) -> FeatureStore:
    """The store with two more dimensions, whose part of a dot product is minus the hubness of both sides.

    The hubness of the query is the same for all items of a gallery, so that it changes no ranking.

    >>> images, texts = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    >>> store = FeatureStore(
    ...     image_embeddings=images,
    ...     text_embeddings=texts,
    ...     image_hubness=torch.tensor([0.2]),
    ...     text_hubness=torch.tensor([0.1]),
    ...     image_of_text=torch.tensor([0]),
    ...     image_ids=("a",),
    ...     image_paths=("a.jpg",),
    ...     identities=("",),
    ...     captions=("a dog",),
    ...     meta={},
    ... )
    >>> corrected = corrected_for_hubs(store)
    >>> round(float(corrected.image_embeddings[0] @ corrected.text_embeddings[0]), 3)
    0.3
    """
    return replace(
        store,
        image_embeddings=torch.cat(
            [store.image_embeddings, -store.image_hubness[:, None], _ones(store.image_hubness)], 1
        ),
        text_embeddings=torch.cat([store.text_embeddings, _ones(store.text_hubness), -store.text_hubness[:, None]], 1),
    )


def with_hubness(embeddings: Tensor, hubness: Tensor | None) -> NDArray[np.float32]:
    """Rows of a gallery: (items, dim) embeddings, each with minus its hubness (items,), or with 0 if that is None.

    The dot product with a query of the other kind and a 1 is the corrected score, and with a query of the same kind and
    a 0 the cosine: two photos, or two sentences, are compared without a correction.
    """
    last = torch.zeros(len(embeddings)) if hubness is None else -hubness
    return np.asarray(torch.cat([embeddings, last[:, None]], 1).numpy())


def _ones(hubness: Tensor) -> Tensor:
    return torch.ones(len(hubness), 1)
