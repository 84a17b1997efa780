"""Captions with one detail swapped: negatives that differ from a true caption in one word.

Such captions are the contrastive adversarial samples of VSE-C (Shi et al., COLING 2018).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpce_cli.core.text.details import Kinds
from dpce_cli.core.text.vocabulary import Vocabulary


class DetailSwaps:
    """Swaps one word of training captions for another word of its group.

    Args:
        kinds: groups of words that replace each other. A word in several groups is replaced by words of all of them.
        token_ids: `(captions, words)` training captions, 0 = blank.
        instance_of_text: `(captions,)`
        instances: number of instances.
        swap_in_named: replace words also by those that a caption of the same instance has.
    """

    def __init__(
        self,
        kinds: Kinds,
        vocabulary: Vocabulary,
        token_ids: Tensor,
        instance_of_text: Tensor,
        instances: int,
        *,
        swap_in_named: bool = False,
    ) -> None:
        groups = [vocabulary.token_ids(group) for groups in kinds.values() for group in groups]
        details = sorted({word for group in groups for word in group})
        # Column 0 stands for every word that names no detail.
        self._column = torch.zeros(len(vocabulary) + 1, dtype=torch.long)
        self._column[details] = torch.arange(1, len(details) + 1)
        self._word = torch.tensor([0, *details])
        self._replaces = torch.zeros(len(details) + 1, len(details) + 1, dtype=torch.bool)
        for group in groups:
            columns = self._column[group]
            self._replaces[columns[:, None], columns] = True
        self._replaces.fill_diagonal_(False)
        self._is_named = torch.zeros(instances, len(self._word), dtype=torch.bool)
        if not swap_in_named:
            self._is_named[instance_of_text[:, None], self._column[token_ids]] = True

    def draw(self, token_ids: Tensor, instance_ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Swap one random detail of each caption that has one.

        Args:
            token_ids: `(captions, words)`, at any place, 0 = blank.
            instance_ids: `(captions,)`

        Returns:
            Token ids `(swaps, words)`, and the caption of each, `(swaps,)`.
        """
        # (captions, words, details + 1): whether a detail may replace a word
        others = self._replaces[self._column[token_ids]] & ~self._is_named[instance_ids, None]
        can_swap = others.any(2)
        caption = can_swap.any(1).nonzero().squeeze(1)
        place = ((1 - torch.rand(token_ids.shape, generator=generator)) * can_swap).argmax(1)[caption]
        if not len(caption):
            return token_ids[caption], caption
        chosen = torch.multinomial(others[caption, place].float(), 1, generator=generator)
        return token_ids[caption].scatter(1, place[:, None], self._word[chosen]), caption
