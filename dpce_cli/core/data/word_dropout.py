"""Word dropout: training captions lose words at random, so that the same caption differs from step to step."""

from __future__ import annotations

import torch
from torch import Tensor


def drop_words(token_ids: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Remove each word with probability `share`; the words after it move left. Zheng et al. 2020 do not have this.

    Args:
        token_ids: `(captions, words)`, left-aligned, 0 = blank; on the generator's device.
        share: 0 draws no random numbers and changes nothing.
    """
    if not share:
        return token_ids
    dropped = torch.rand(token_ids.shape, generator=generator, device=token_ids.device) < share
    kept = token_ids.masked_fill(dropped, 0)
    return kept.gather(1, (kept == 0).int().argsort(dim=1, stable=True))
