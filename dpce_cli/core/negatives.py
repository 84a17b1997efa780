"""Choose the negative captions and images of the ranking loss."""

from __future__ import annotations

import torch
from torch import Tensor


def hardest_in_batch(similarity: Tensor, image_instances: Tensor, text_instances: Tensor) -> tuple[Tensor, Tensor]:
    """The most similar wrong caption of each image and the most similar wrong image of each caption (VSE++).

    Args:
        similarity: `(images, texts)`.
        image_instances: `(images,)` instance ids of the rows.
        text_instances: `(texts,)` instance ids of the columns.

    Returns:
        Caption indices `(images,)` and image indices `(texts,)`.
    """
    own = image_instances[:, None] == text_instances[None, :]
    masked = similarity.detach().masked_fill(own, -torch.inf)
    return masked.argmax(1), masked.argmax(0)


def random_in_batch(image_instances: Tensor, text_instances: Tensor) -> tuple[Tensor, Tensor]:
    """A random wrong caption for each image and a random wrong image for each caption.

    Uses PyTorch's global generator. For arguments and result, see `hardest_in_batch` (Zheng et al. 2020, section 5.1,
    on CUHK-PEDES).
    """
    draw = torch.rand(len(image_instances), len(text_instances), device=image_instances.device)
    return hardest_in_batch(draw, image_instances, text_instances)


def hardest_in_pool(image_embeddings: Tensor, pool_embeddings: Tensor) -> Tensor:
    """The most similar caption of a pool for each image (Zheng et al. 2020, section 4.3: a pool of 256 captions).

    Args:
        image_embeddings: `(images, dim)`, L2-normalised.
        pool_embeddings: `(pool, dim)`, L2-normalised, of captions of other images.

    Returns:
        Positions in the pool `(images,)`.
    """
    return (image_embeddings @ pool_embeddings.T).argmax(1)
