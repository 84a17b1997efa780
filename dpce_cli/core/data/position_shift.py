"""Position shift: where a caption starts among its N positions (Zheng et al. 2020, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def shift(token_ids: Tensor, starts: Tensor) -> Tensor:
    """Move left-aligned captions to the right by `starts` positions; other positions are blank.

    Args:
        token_ids: `(captions, words)`, left-aligned, 0 = blank.
        starts: `(captions,)`, each at most words - length.
    """
    words = token_ids.shape[1]
    source = torch.arange(words, device=token_ids.device) - starts[:, None]  # (captions, words)
    return token_ids.gather(1, source.clamp(min=0)).masked_fill(source < 0, 0)


def shift_randomly(token_ids: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each caption to a uniformly random start; it has words - length + 1 possible ones.

    Args:
        token_ids: `(captions, words)`, left-aligned, 0 = blank; on the generator's device.
    """
    starts = (torch.rand(len(token_ids), generator=generator, device=token_ids.device) * _possible(token_ids)).long()
    return shift(token_ids, starts)


def placement_starts(token_ids: Tensor, most: int | None = None) -> tuple[Tensor, Tensor]:
    """The possible starts of each caption: all, or at most `most`, evenly spread from the first to the last.

    Args:
        token_ids: `(captions, words)`, left-aligned, 0 = blank.

    Returns:
        The caption of each placement and its start, both `(placements,)`.
    """
    possible = _possible(token_ids)
    counts = possible if most is None else possible.clamp(max=most)
    caption = torch.repeat_interleave(torch.arange(len(token_ids), device=token_ids.device), counts)
    index = torch.arange(len(caption), device=token_ids.device) - (counts.cumsum(0) - counts)[caption]
    starts = index * (possible - 1)[caption] // (counts - 1).clamp(min=1)[caption]
    return caption, starts


def _possible(token_ids: Tensor) -> Tensor:
    """The number of possible starts of each caption."""
    return token_ids.shape[1] + 1 - (token_ids != 0).sum(1)
