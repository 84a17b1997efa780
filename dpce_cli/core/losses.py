"""The paper's two losses: instance loss and ranking loss (Zheng et al. 2020, sections 4.1 and 4.2)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def instance_loss(logits: Tensor, instance_ids: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy over all instances (eq. 4 to 7): each training image with its captions is one class.

    -log(exp(logits[i, y_i]) / sum over all instances c of exp(logits[i, c])), averaged over the batch. The logits of
    images and of captions come from one shared classifier, W_share^T f, which maps both into one space.

    Training uses `models.partial_fc` instead: the same loss, without the logits of all instances in memory at once.

    Args:
        logits: `(batch, instances)`
        instance_ids: `(batch,)`, y.
        label_smoothing: share of the target that is spread over all instances; the paper uses none.

    >>> import torch
    >>> round(float(instance_loss(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))), 4)
    0.4076
    """
    log_probabilities = logits - logits.logsumexp(1, keepdim=True)
    own = log_probabilities.gather(1, instance_ids[:, None])[:, 0]
    return -((1 - label_smoothing) * own + label_smoothing * log_probabilities.mean(1)).mean()


def ranking_loss(positive: Tensor, negative_text: Tensor, negative_image: Tensor, margin: float) -> Tensor:
    """Bidirectional triplet hinge on cosine similarities (eq. 8): half the mean over the triplets.

    max(0, margin - (S(i, t) - S(i, t-))) + max(0, margin - (S(i, t) - S(i-, t))). The factor 1/2 is from the released
    code, which sums over the 16 triplets of a batch of 32 photos and divides by 32; the paper's loss weights assume it.

    Args:
        positive: `(triplets,)`, S(i, t) of each image and its own caption.
        negative_text: `(triplets,)`, S(i, t-).
        negative_image: `(triplets,)`, S(i-, t).
        margin: the required gap between similarities; 1 in the paper.
    """
    return (F.relu(margin - positive + negative_text) + F.relu(margin - positive + negative_image)).mean() / 2


def detail_loss(true: Tensor, swapped: Tensor, captions: int, margin: float) -> Tensor:
    """Hinge against captions with one detail swapped (VSE-C, Shi et al., COLING 2018): the mean over all captions.

    max(0, margin - (S(i, t) - S(i, t'))), where t' is the caption t with another word. Captions without a detail add 0.

    Args:
        true: `(swaps,)`, S(i, t) of each image and its own caption.
        swapped: `(swaps,)`, S(i, t').
        captions: number of captions, with and without a detail.
        margin: the required gap between similarities.
    """
    return F.relu(margin - true + swapped).sum() / captions
