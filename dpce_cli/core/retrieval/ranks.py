"""Ranks of the matches in both directions of retrieval, for any number of captions per image.

`image_of_text[j]` owns text j. Ranks are 1-based, and ties count against us: the rank of a match is one more
than the number of non-matching gallery items that are at least as similar to the query, so that a model
whose embeddings are all equal ranks each match last, not first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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


def rank_by_identity(
    image_embeddings: Tensor, text_embeddings: Tensor, image_of_text: Tensor, identities: Tensor, *, chunk: int = 128
) -> tuple[Tensor, Tensor]:
    """Ranks of every match of each text, where a match is any image with the identity of the text's own image.

    Embeddings are L2-normalised, (images, dim) and (texts, dim); cosines within `SAME_SIMILARITY` tie.

    Args:
        identities: (images,) integers.

    Returns:
        The ranks among all images (matches,), and the text that each belongs to (matches,), ascending.

    Raises:
        DataError: an embedding is not finite, or there is no text.
    """
    images, texts = image_embeddings.float(), text_embeddings.float()
    _check(images, image_of_text, "image embeddings")
    _check(texts, image_of_text, "text embeddings")
    ranks, queries = [], []
    for start in range(0, len(texts), chunk):
        similarity = texts[start : start + chunk] @ images.T
        wanted = identities[image_of_text[start : start + chunk]]
        query, match = (wanted[:, None] == identities).nonzero(as_tuple=True)
        threshold = similarity[query, match] - SAME_SIMILARITY
        similarity[query, match] = -torch.inf  # matches never count against each other
        ahead = torch.cat(
            [
                (similarity[rows] >= limits[:, None]).sum(dim=1)
                for rows, limits in zip(torch.split(query, chunk), torch.split(threshold, chunk), strict=True)
            ]
        ).cpu()
        ranks.append(ahead + position_in_group(ahead, query.cpu()))
        queries.append(query.cpu() + start)
    return torch.cat(ranks), torch.cat(queries)


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
    own_captions = texts_ahead + position_in_group(texts_ahead, owner)
    best = torch.full((start,), torch.iinfo(torch.long).max).scatter_reduce(0, owner, own_captions, "amin")
    return Ranks(
        image_to_text=best[torch.bincount(owner, minlength=start) > 0],
        text_to_image=images_ahead + 1,
        own_captions=own_captions,
    )


def position_in_group(values: Tensor, groups: Tensor) -> Tensor:
    """1-based place of each value when the values of its group are put in ascending order."""
    order = values.argsort(stable=True)
    order = order[groups[order].argsort(stable=True)]
    sizes = torch.bincount(groups)
    first = sizes.cumsum(0) - sizes
    position = torch.empty_like(values)
    position[order] = torch.arange(len(values)) - first[groups[order]] + 1
    return position
