"""The instance loss and the ranking loss (Zheng et al. 2020, section 4)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def instance_loss(logits: Tensor, instance_ids: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the shared classifier: every image with its captions is a class (eq. 4 to 7).

    Args:
        logits: `(batch, instances)` from the shared classifier.
        instance_ids: `(batch,)`, the image each row belongs to.
        label_smoothing: share of the target spread over all instances; the paper uses none.
    """
    return F.cross_entropy(logits, instance_ids, label_smoothing=label_smoothing)


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


def accuracy(logits: Tensor, instance_ids: Tensor) -> Tensor:
    """Share of the rows of `logits` `(batch, instances)` whose largest value is their own instance's."""
    return (logits.argmax(1) == instance_ids).float().mean()
