"""Ranks and average precision by sorting the gallery of one query at a time, from the definitions."""

from __future__ import annotations

from collections.abc import Sequence


def ranks_of_matches(scores: Sequence[float], matches: Sequence[bool]) -> list[int]:
    """1-based places of the matches in the sorted gallery; of tied items, the matches come last."""
    gallery = sorted(zip(scores, matches, strict=True), key=lambda item: (-item[0], item[1]))
    return [place for place, (_, matches_query) in enumerate(gallery, 1) if matches_query]


def average_precision(scores: Sequence[float], matches: Sequence[bool]) -> float:
    """Mean, over the matches, of the precision of the list that ends with the match."""
    precisions = [found / place for found, place in enumerate(ranks_of_matches(scores, matches), 1)]
    return sum(precisions) / len(precisions)


def image_to_text(similarity: Sequence[Sequence[float]], image_of_text: Sequence[int]) -> tuple[list[int], list[float]]:
    """Rank of the best own caption, and average precision, of each image that has a caption."""
    ranks, precisions = [], []
    for image, scores in enumerate(similarity):
        matches = [owner == image for owner in image_of_text]
        if any(matches):
            ranks.append(ranks_of_matches(scores, matches)[0])
            precisions.append(average_precision(scores, matches))
    return ranks, precisions


def text_to_image(similarity: Sequence[Sequence[float]], image_of_text: Sequence[int]) -> tuple[list[int], list[float]]:
    """Rank of the own image, and average precision, of each text."""
    ranks, precisions = [], []
    for text, owner in enumerate(image_of_text):
        scores = [row[text] for row in similarity]
        matches = [image == owner for image in range(len(similarity))]
        ranks.append(ranks_of_matches(scores, matches)[0])
        precisions.append(average_precision(scores, matches))
    return ranks, precisions


def text_to_identity(
    similarity: Sequence[Sequence[float]], image_of_text: Sequence[int], identities: Sequence[int]
) -> tuple[list[list[int]], list[float]]:
    """Ranks of all images of the own image's identity, and average precision, of each text."""
    ranks, precisions = [], []
    for text, owner in enumerate(image_of_text):
        scores = [row[text] for row in similarity]
        matches = [identity == identities[owner] for identity in identities]
        ranks.append(ranks_of_matches(scores, matches))
        precisions.append(average_precision(scores, matches))
    return ranks, precisions
