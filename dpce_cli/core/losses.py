"""The ranking loss (Zheng et al. 2020, section 4.2)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def ranking_loss(positive: Tensor, negative_text: Tensor, negative_image: Tensor, margin: float) -> Tensor:
    """Bidirectional triplet hinge on cosine similarities (eq. 8): half the mean over the triplets.

    max(0, margin - (S(i, t) - S(i, t-))) + max(0, margin - (S(i, t) - S(i-, t))). The half is the released code's,
    which sums over the 16 triplets of a batch of 32 photos and divides by 32; the paper's loss weights go with it.

    Args:
        positive: `(triplets,)`, S(i, t) of each image and its own caption.
        negative_text: `(triplets,)`, S(i, t-).
        negative_image: `(triplets,)`, S(i-, t).
        margin: the similarity gap that is asked for; 1 in the paper.
    """
    return (F.relu(margin - positive + negative_text) + F.relu(margin - positive + negative_image)).mean() / 2
