"""The losses of Zheng et al. 2020, section 4, and the search for hard negatives, one number at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence


def instance_loss(logits: Sequence[Sequence[float]], instance_ids: Sequence[int], label_smoothing: float) -> float:
    """Mean over the rows of minus the expected log-probability under the (smoothed) target."""
    total = 0.0
    for row, own in zip(logits, instance_ids, strict=True):
        partition = sum(math.exp(logit) for logit in row)
        for instance, logit in enumerate(row):
            target = label_smoothing / len(row) + (1 - label_smoothing) * (instance == own)
            total -= target * math.log(math.exp(logit) / partition)
    return total / len(logits)


def ranking_loss(
    positive: Sequence[float], negative_text: Sequence[float], negative_image: Sequence[float], margin: float
) -> float:
    """The sum of both hinges over all triplets, divided by the number of photos, which is twice theirs."""
    total = 0.0
    for own, text, image in zip(positive, negative_text, negative_image, strict=True):
        total += max(0.0, margin - (own - text))
        total += max(0.0, margin - (own - image))
    return total / (2 * len(positive))


def detail_loss(true: Sequence[float], swapped: Sequence[float], captions: int, margin: float) -> float:
    """The sum of the hinges over all swapped captions, divided by the number of captions."""
    total = 0.0
    for right, wrong in zip(true, swapped, strict=True):
        total += max(0.0, margin - (right - wrong))
    return total / captions


def accuracy(logits: Sequence[Sequence[float]], instance_ids: Sequence[int]) -> float:
    """Share of the rows whose own instance scores higher than all others."""
    right = 0
    for row, own in zip(logits, instance_ids, strict=True):
        right += all(row[own] > logit for instance, logit in enumerate(row) if instance != own)
    return right / len(logits)


def hardest_negatives(scores: Sequence[float], own: Sequence[bool]) -> int:
    """Index of the highest score that is not an own one."""
    best = -1
    for index, score in enumerate(scores):
        if not own[index] and (best < 0 or score > scores[best]):
            best = index
    return best
