"""The test protocols that papers report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dpce_cli.core.errors import DataError
from dpce_cli.core.retrieval.metrics import (
    DirectionMetrics,
    RetrievalMetrics,
    evaluate,
    evaluate_by_identity,
    mean_metrics,
)
from dpce_cli.core.workspace.features import FeatureStore

PROTOCOLS = {
    "full": "all images and captions",
    "1k": "mean of five folds of 1,000 images",
    "first-1k": "the first 1,000 images only",
    "identity": "any image of the caption's identity is a hit",
}
_FOLD = 1000


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one protocol measured."""

    protocol: str
    """One of `PROTOCOLS`."""
    images: int
    captions: int
    directions: dict[str, DirectionMetrics]
    """"image_to_text" and "text_to_image"; only the latter by identity."""
    rsum: float | None
    """Sum of the six recalls in percent; None by identity."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON: each direction by name, and the rest."""
        about = {"protocol": self.protocol, "images": self.images, "captions": self.captions}
        return {**about, **{name: asdict(measured) for name, measured in self.directions.items()}, "rsum": self.rsum}


def evaluate_split(store: FeatureStore, protocol: str | None) -> Evaluation:
    """Measure retrieval on a split by one of `PROTOCOLS`, or None: by identity where images carry one, else full.

    "full" is Flickr30k's protocol and MSCOCO's 5K, "1k" MSCOCO's 1K over its 5,000 test images in the order of the
    gallery, "identity" that of CUHK-PEDES (Zheng et al. 2020, section 5.1). "first-1k" is what some papers call 1K:
    one fold, and not comparable with the mean of five.

    Raises:
        DataError: the split has too few images for the protocol, or no identities, or no caption.
    """
    if protocol is None:
        protocol = "identity" if any(store.identities) else "full"
    if protocol == "identity":
        return _by_identity(store)
    size, folds = {"full": (len(store.image_ids), 1), "1k": (_FOLD, 5), "first-1k": (_FOLD, 1)}[protocol]
    if len(store.image_ids) < size * folds:
        raise DataError(
            f"--protocol {protocol} needs {size * folds:,} images and the split has {len(store.image_ids):,}; "
            "choose --protocol full"
        )
    measured = [_fold(store, start, size) for start in range(0, size * folds, size)]
    metrics = RetrievalMetrics(
        image_to_text=mean_metrics([fold.image_to_text for fold in measured]),
        text_to_image=mean_metrics([fold.text_to_image for fold in measured]),
    )
    return Evaluation(
        protocol=protocol,
        images=size * folds,
        captions=int((store.image_of_text < size * folds).sum()),
        directions={"image_to_text": metrics.image_to_text, "text_to_image": metrics.text_to_image},
        rsum=metrics.rsum,
    )


def _fold(store: FeatureStore, start: int, size: int) -> RetrievalMetrics:
    texts = (store.image_of_text >= start) & (store.image_of_text < start + size)
    return evaluate(
        store.image_embeddings[start : start + size], store.text_embeddings[texts], store.image_of_text[texts] - start
    )


def _by_identity(store: FeatureStore) -> Evaluation:
    if not any(store.identities):
        raise DataError("--protocol identity: the split's images carry no identities; choose --protocol full")
    return Evaluation(
        protocol="identity",
        images=len(store.image_ids),
        captions=len(store.captions),
        directions={
            "text_to_image": evaluate_by_identity(
                store.image_embeddings, store.text_embeddings, store.image_of_text, _numbered(store.identities)
            )
        },
        rsum=None,
    )


def _numbered(identities: Sequence[str]) -> torch.Tensor:
    """Each image's identity as a number; an image without an identity ("") gets a number of its own."""
    numbers: dict[str | int, int] = {}
    return torch.tensor(
        [numbers.setdefault(identity or image, len(numbers)) for image, identity in enumerate(identities)]
    )
