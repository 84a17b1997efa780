"""The measures as VSE++'s evaluation defines them (Faghri et al. 2018), one query at a time.

Five captions per image, those of image i at 5i to 5i + 4; 0-based ranks in a gallery sorted by falling similarity; an
image's rank is that of the first ranked of its five captions; median rank = floor(median) + 1. It says nothing of
ties: a sort decides them by position, where ours count against the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median


def measures(ranks: Sequence[int]) -> tuple[float, float, float, int, float]:
    """R@1, R@5 and R@10 in percent, median and mean rank, of 0-based ranks."""
    recalls = (100.0 * sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5, 10))
    r1, r5, r10 = recalls
    return r1, r5, r10, math.floor(median(ranks)) + 1, sum(ranks) / len(ranks) + 1


def image_to_text(similarity: Sequence[Sequence[float]]) -> tuple[float, float, float, int, float]:
    """Of a similarity matrix (images, 5 * images)."""
    ranks = []
    for image, scores in enumerate(similarity):
        order = sorted(range(len(scores)), key=lambda text: -scores[text])
        ranks.append(min(order.index(text) for text in range(5 * image, 5 * image + 5)))
    return measures(ranks)


def text_to_image(similarity: Sequence[Sequence[float]]) -> tuple[float, float, float, int, float]:
    """Of a similarity matrix (images, 5 * images)."""
    ranks = []
    for image in range(len(similarity)):
        for text in range(5 * image, 5 * image + 5):
            order = sorted(range(len(similarity)), key=lambda other: -similarity[other][text])
            ranks.append(order.index(image))
    return measures(ranks)
