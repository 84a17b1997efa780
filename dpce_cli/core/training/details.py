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

    A word replaces no other where a caption of the same instance has it: then it may be true. Words replace others in
    proportion to their number in the training captions, so that a common word is as often wrong as it is right, and the
    text alone tells little.

    Args:
        kinds: groups of words that replace each other. A word in several groups is replaced by words of all of them.
        token_ids: `(captions, words)` training captions, 0 = blank.
        instance_of_text: `(captions,)`
        instances: number of instances.
    """

    def __init__(
        self, kinds: Kinds, vocabulary: Vocabulary, token_ids: Tensor, instance_of_text: Tensor, instances: int
    ) -> None:
        groups = [set(vocabulary.token_ids(group)) for groups in kinds.values() for group in groups]
        details = sorted(set().union(*groups))
        others = [sorted(set().union(*(group for group in groups if word in group)) - {word}) for word in details]
        # Column 0 stands for every word that names no detail.
        self._column = torch.zeros(len(vocabulary) + 1, dtype=torch.long)
        self._column[details] = torch.arange(1, len(details) + 1)
        self._word = torch.tensor([0, *details])
        self._replaces = torch.zeros(len(details) + 1, len(details) + 1)
        for row, words in enumerate(others, start=1):
            self._replaces[row, self._column[words]] = 1
        columns = self._column[token_ids]  # (captions, words)
        self._replaces *= torch.bincount(columns.flatten(), minlength=len(self._word)).float()
        self._is_named = torch.zeros(instances, len(self._word), dtype=torch.bool)
        self._is_named[instance_of_text[:, None], columns] = True

    def draw(self, token_ids: Tensor, instance_ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Swap one random detail of each caption that has one.

        Args:
            token_ids: `(captions, words)`, at any place, 0 = blank.
            instance_ids: `(captions,)`

        Returns:
            Token ids `(swaps, words)`, and the caption of each, `(swaps,)`.
        """
        columns = self._column[token_ids]
        weights = self._replaces[columns] * ~self._is_named[instance_ids, None]  # (captions, words, details + 1)
        can_swap = weights.any(2)
        caption = can_swap.any(1).nonzero().squeeze(1)
        place = ((1 - torch.rand(token_ids.shape, generator=generator)) * can_swap).argmax(1)[caption]
        if not len(caption):
            return token_ids[caption], caption
        chosen = torch.multinomial(weights[caption, place], 1, generator=generator)
        return token_ids[caption].scatter(1, place[:, None], self._word[chosen]), caption
