"""Ranks and the retrieval measures made of them, for any number of captions per image.

`image_of_text[j]` owns text j. Ranks are 1-based, and ties count against us: the rank of a match is one more
than the number of non-matching gallery items that are at least as similar to the query, so that embeddings
which are all alike rank last and not first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dpce_cli.core.errors import DataError

SAME_SIMILARITY = 1e-6
"""Cosines of float32 embeddings that differ by no more are a tie: rounding would decide their order."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Ranks of the matches in both directions; LongTensors on the CPU."""

    image_to_text: Tensor
    """(images with captions,) best-ranked own caption of each image that has one, in image order."""
    text_to_image: Tensor
    """(texts,) own image of each text."""
    own_captions: Tensor
    """(texts,) each text in the ranking of all texts by its own image; own captions ahead of it count too."""


def rank_similarity(similarity: Tensor, image_of_text: Tensor) -> Ranks:
    """Ranks of the matches in a similarity matrix (images, texts), where only equal values tie.

    Raises:
        DataError: a similarity is not finite, or there is no text.

    >>> similarity = torch.tensor([[0.9, 0.2, 0.5], [0.9, 0.1, 0.3]])
    >>> ranks = rank_similarity(similarity, torch.tensor([0, 0, 1]))
    >>> ranks.image_to_text.tolist(), ranks.text_to_image.tolist(), ranks.own_captions.tolist()
    ([1, 2], [2, 1, 2], [1, 3, 2])
    """
    _check(similarity, image_of_text, "similarity")
    own = similarity[image_of_text, torch.arange(len(image_of_text), device=similarity.device)]
    return _rank((similarity.clone(),), own, image_of_text, chunk=len(similarity))


def rank_embeddings(
    image_embeddings: Tensor, text_embeddings: Tensor, image_of_text: Tensor, *, chunk: int = 128
) -> Ranks:
    """Ranks of the matches between L2-normalised embeddings (images, dim) and (texts, dim).

    Holds the similarities of `chunk` images at a time, never all. Cosines within `SAME_SIMILARITY` tie.

    Raises:
        DataError: an embedding is not finite, or there is no text.
    """
    images, texts = image_embeddings.float(), text_embeddings.float()
    _check(images, image_of_text, "image embeddings")
    _check(texts, image_of_text, "text embeddings")
    own = torch.cat(
        [
            (some_texts * images[their_images]).sum(dim=1)
            for some_texts, their_images in zip(
                torch.split(texts, chunk), torch.split(image_of_text, chunk), strict=True
            )
        ]
    )
    blocks = (rows @ texts.T for rows in torch.split(images, chunk))
    return _rank(blocks, own - SAME_SIMILARITY, image_of_text, chunk=chunk)


def _check(values: Tensor, image_of_text: Tensor, name: str) -> None:
    if not len(image_of_text):
        raise DataError("there is no caption to rank; evaluate a split that has captions")
    if not bool(torch.isfinite(values).all()):
        raise DataError(f"{name}: NaN or infinite values cannot be ranked; train or choose another checkpoint")


def _rank(blocks: Iterable[Tensor], threshold: Tensor, image_of_text: Tensor, *, chunk: int) -> Ranks:
    """Count, for each match, the non-matching items at or above its `threshold` (texts,) in one pass.

    `blocks` are successive rows (images, texts) of the similarity; they are overwritten.
    """
    texts_ahead = torch.zeros_like(image_of_text)
    images_ahead = torch.zeros_like(image_of_text)
    start = 0
    for block in blocks:
        of_block = ((image_of_text >= start) & (image_of_text < start + len(block))).nonzero().squeeze(1)
        row = image_of_text[of_block] - start
        block[row, of_block] = -torch.inf  # matches never count against each other
        images_ahead += (block >= threshold).sum(dim=0)
        for some, rows in zip(torch.split(of_block, chunk), torch.split(row, chunk), strict=True):
            texts_ahead[some] = (block[rows] >= threshold[some, None]).sum(dim=1)
        start += len(block)
    texts_ahead, images_ahead, owner = texts_ahead.cpu(), images_ahead.cpu(), image_of_text.cpu()
    own_captions = texts_ahead + _position_in_group(texts_ahead, owner)
    best = torch.full((start,), torch.iinfo(torch.long).max).scatter_reduce(0, owner, own_captions, "amin")
    return Ranks(
        image_to_text=best[torch.bincount(owner, minlength=start) > 0],
        text_to_image=images_ahead + 1,
        own_captions=own_captions,
    )


def _position_in_group(values: Tensor, groups: Tensor) -> Tensor:
    """1-based place of each value when the values of its group are put in ascending order."""
    order = values.argsort(stable=True)
    order = order[groups[order].argsort(stable=True)]
    sizes = torch.bincount(groups)
    first = sizes.cumsum(0) - sizes
    position = torch.empty_like(values)
    position[order] = torch.arange(len(values)) - first[groups[order]] + 1
    return position


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
    precision = _position_in_group(ranks, query).double() / ranks
    matches = torch.bincount(query)
    average = torch.bincount(query, weights=precision)[matches > 0] / matches[matches > 0]
    return float(average.mean())


@dataclass(frozen=True, kw_only=True)
class DirectionMetrics:
    """The measures of one direction of retrieval."""

    r1: float
    """Recall at 1 as a fraction; likewise below."""
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

    def to_dict(self) -> dict[str, Any]:
        """For JSON: each direction by name, and `rsum`."""
        return {**asdict(self), "rsum": self.rsum}


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
