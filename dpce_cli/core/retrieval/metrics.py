"""The retrieval measures, made of the ranks of matches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from dpce_cli.core.retrieval.ranks import position_in_group, rank_by_identity, rank_embeddings


def recall_at_k(ranks: Tensor, k: int) -> float:
    """Fraction of the queries whose match is among the first `k`.

    >>> recall_at_k(torch.tensor([1, 3, 5, 11]), 5)
    0.75
    """
    return int((ranks <= k).sum()) / len(ranks)


def median_rank(ranks: Tensor) -> float:
    """Median of the ranks; between two middle ranks, their mean rounded down (the convention of VSE++).

    >>> median_rank(torch.tensor([9, 1, 2])), median_rank(torch.tensor([1, 2, 5, 9]))
    (2.0, 3.0)
    """
    ordered = ranks.sort().values
    return float((ordered[(len(ranks) - 1) // 2] + ordered[len(ranks) // 2]) // 2)


def mean_rank(ranks: Tensor) -> float:
    """Arithmetic mean of the ranks.

    >>> mean_rank(torch.tensor([1, 2, 5, 9]))
    4.25
    """
    return float(ranks.double().mean())


def mean_average_precision(ranks: Tensor, query: Tensor) -> float:
    """Mean over the queries of the mean precision at the ranks of their matches.

    `ranks` (matches,) holds the rank of every match, `query` (matches,) the index of the query it belongs to;
    indices that do not occur are no queries. With one match per query it is the mean reciprocal rank.

    >>> mean_average_precision(torch.tensor([1, 4, 2]), torch.tensor([0, 0, 1]))  # 1/1, 2/4 and 1/2
    0.625
    """
    precision = position_in_group(ranks, query).double() / ranks
    matches = torch.bincount(query)
    average = torch.bincount(query, weights=precision)[matches > 0] / matches[matches > 0]
    return float(average.mean())


@dataclass(frozen=True, kw_only=True)
class DirectionMetrics:
    """The measures of one direction of retrieval."""

    r1: float
    """Recall at 1 as a fraction; `r5` and `r10` are recall at 5 and at 10."""
    r5: float
    r10: float
    median_rank: float
    mean_rank: float
    map: float
    """Mean average precision over all matches of each query."""
    queries: int
    gallery: int


@dataclass(frozen=True, kw_only=True)
class RetrievalMetrics:
    """What is reported of a model: image-to-text and text-to-image."""

    image_to_text: DirectionMetrics
    text_to_image: DirectionMetrics

    @property
    def rsum(self) -> float:
        """Sum of the six recalls in percent; 600 is perfect.

        >>> evaluate(torch.eye(3), torch.eye(3), torch.arange(3)).rsum
        600.0
        """
        directions = (self.image_to_text, self.text_to_image)
        return 100 * sum(d.r1 + d.r5 + d.r10 for d in directions)


def evaluate(
    image_embeddings: Tensor, text_embeddings: Tensor, image_of_text: Tensor, *, chunk: int = 128
) -> RetrievalMetrics:
    """Measure retrieval in both directions with L2-normalised embeddings (images, dim) and (texts, dim).

    An image without a caption is no query and stays in the gallery. Zheng et al. 2020, section 5.

    Raises:
        DataError: an embedding is not finite, or there is no text.

    >>> images, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]])
    >>> metrics = evaluate(images, texts, torch.tensor([0, 0, 1]))
    >>> metrics.image_to_text.r1, round(metrics.text_to_image.r1, 3), round(metrics.image_to_text.map, 4)
    (0.5, 0.333, 0.6667)
    """
    ranks = rank_embeddings(image_embeddings, text_embeddings, image_of_text, chunk=chunk)
    images, texts = len(image_embeddings), len(text_embeddings)
    return RetrievalMetrics(
        image_to_text=_direction(
            ranks.image_to_text,
            mean_average_precision(ranks.own_captions, image_of_text.cpu()),
            gallery=texts,
        ),
        text_to_image=_direction(
            ranks.text_to_image,
            mean_average_precision(ranks.text_to_image, torch.arange(texts)),
            gallery=images,
        ),
    )


def evaluate_by_identity(
    image_embeddings: Tensor, text_embeddings: Tensor, image_of_text: Tensor, identities: Tensor, *, chunk: int = 128
) -> DirectionMetrics:
    """Measure text-to-image retrieval where any image with the identity of a text's image (images,) is a hit.

    The protocol of CUHK-PEDES (Zheng et al. 2020, section 5.1): a recall counts the best ranked image of the person,
    mean average precision all of them.

    Raises:
        DataError: an embedding is not finite, or there is no text.

    >>> images, texts = torch.eye(3), torch.tensor([[0.0, 1.0, 0.0], [0.6, 0.0, 0.8]])
    >>> found = evaluate_by_identity(images, texts, torch.tensor([0, 0]), torch.tensor([7, 7, 8]))
    >>> found.r1, found.median_rank, round(found.map, 4)  # 1/1 and 2/3; 1/2 and 2/3
    (0.5, 1.0, 0.7083)
    """
    ranks, query = rank_by_identity(image_embeddings, text_embeddings, image_of_text, identities, chunk=chunk)
    best = torch.full((len(text_embeddings),), len(image_embeddings)).scatter_reduce(0, query, ranks, "amin")
    return _direction(best, mean_average_precision(ranks, query), gallery=len(image_embeddings))


def mean_metrics(folds: Sequence[DirectionMetrics]) -> DirectionMetrics:
    """The mean of each measure over the folds of a gallery; `queries` and `gallery` are rounded to whole numbers."""
    mean: dict[str, Any] = {name: fmean(getattr(fold, name) for fold in folds) for name in asdict(folds[0])}
    return DirectionMetrics(**{**mean, "queries": round(mean["queries"]), "gallery": round(mean["gallery"])})


def _direction(ranks: Tensor, average_precision: float, *, gallery: int) -> DirectionMetrics:
    return DirectionMetrics(
        r1=recall_at_k(ranks, 1),
        r5=recall_at_k(ranks, 5),
        r10=recall_at_k(ranks, 10),
        median_rank=median_rank(ranks),
        mean_rank=mean_rank(ranks),
        map=average_precision,
        queries=len(ranks),
        gallery=gallery,
    )
