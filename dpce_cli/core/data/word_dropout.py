"""Captions that lose words at random, so that training does not see the same sentence again and again."""

from __future__ import annotations

import torch
from torch import Tensor


def drop_words(token_ids: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Leave out each word with probability `share`; what follows moves up. Not in Zheng et al. 2020.

    Args:
        token_ids: `(captions, words)`, left-aligned, 0 = blank; on the generator's device.
        share: 0 draws nothing and leaves the captions as they are.
    """
    if not share:
        return token_ids
    dropped = torch.rand(token_ids.shape, generator=generator, device=token_ids.device) < share
    kept = token_ids.masked_fill(dropped, 0)
    return kept.gather(1, (kept == 0).int().argsort(dim=1, stable=True))
