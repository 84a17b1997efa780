"""Learning new words, such as a dog's name, from a few captions of photos.

Only the vectors of the new words are learnt: everything else of the model stays as it is. So nothing is forgotten,
photos keep their embeddings, and a gallery need not be embedded again. The idea is that of Cohen et al. 2022, "This is
my unicorn, Fluffy": Personalizing frozen vision-language representations. The loss is the instance loss of Zheng et al.
2020 (section 4.1) on captions, with W_share fixed to the embeddings of photos: of those with captions, each of which is
a class, and of others, which are only wrong answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from dpce_cli.core.data.position_shift import shift_randomly
from dpce_cli.core.losses import instance_loss
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.model import WORDS, Model
from dpce_cli.core.seeding import generator_for
from dpce_cli.core.text.tokenizer import tokenize
from dpce_cli.core.text.vocabulary import Vocabulary, pack_token_ids

FEWEST_PHOTOS = 3
"""A word in the captions of fewer photos is not learnt: it would mean these photos only."""
_STEPS = 100
_BATCH = 64
_LEARNING_RATE = 0.05
_SCALE = 8.0
"""Of the cosines in the softmax; with 16, a name is bound too closely to its few photos."""
_DROPPED = 0.6
"""Share of the known words that each step leaves out, so that they do not explain a photo instead of the name."""


@dataclass(frozen=True, kw_only=True)
class NewWords:
    """The words of captions that a model does not know, each with the number of photos whose captions have it."""

    enough: dict[str, int]
    """At least `FEWEST_PHOTOS` photos."""
    too_few: dict[str, int]


def new_words(vocabulary: Vocabulary, captions: Sequence[str], photo_of_caption: Sequence[int]) -> NewWords:
    """The words of captions that are not in a vocabulary, the most frequent first.

    >>> known = Vocabulary(("a", "dog"), lowercase=True)
    >>> new_words(known, ["Rex, a dog", "rex", "rex swims", "rex again"], [0, 1, 2, 2])
    NewWords(enough={'rex': 3}, too_few={'again': 1, 'swims': 1})
    """
    photos = {
        (word, photo)
        for caption, photo in zip(captions, photo_of_caption, strict=True)
        for word in tokenize(caption, lowercase=vocabulary.lowercase)
        if word not in vocabulary
    }
    counts = Counter(word for word, _ in photos)
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return NewWords(
        enough={word: counts[word] for word in ordered if counts[word] >= FEWEST_PHOTOS},
        too_few={word: counts[word] for word in ordered if counts[word] < FEWEST_PHOTOS},
    )


def learn_words(
    model: Model,
    words: Sequence[str],
    captions: Sequence[str],
    photo_of_caption: Sequence[int],
    photos: Tensor,
    others: Tensor,
    *,
    reporter: Reporter,
) -> Model:
    """The model with new words; it embeds photos, and sentences without these words, exactly as before.

    Args:
        words: the new words; captions without any of them teach nothing.
        photo_of_caption: (captions,) the row of `photos` that each caption belongs to.
        photos: (photos, dim) embeddings, L2-normalised.
        others: (others, dim) embeddings of photos that are right for no caption.
    """
    vocabulary = Vocabulary((*model.vocabulary.words, *words), model.vocabulary.lowercase)
    tokens = [tokenize(caption, lowercase=vocabulary.lowercase) for caption in captions]
    used = [index for index, caption in enumerate(tokens) if {*caption} & {*words}]
    ids = [vocabulary.token_ids(tokens[index]) for index in used]
    token_ids = torch.from_numpy(pack_token_ids(ids, model.config.text.max_words)[0])
    classes, weights = torch.tensor([photo_of_caption[index] for index in used]), torch.cat([photos, others])
    encoder, known, generator = model.text_encoder, model.weights[WORDS], generator_for(0, "words", *words)
    rows = torch.zeros(len(words), model.word_dim, requires_grad=True)
    steps = _STEPS * -(-len(used) // _BATCH)
    optimizer = torch.optim.Adam([rows], lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    with reporter.track("learning words", steps) as advance:
        for _ in range(steps):
            batch = torch.randperm(len(used), generator=generator)[:_BATCH]
            shown = _without_some_words(token_ids[batch], len(model.vocabulary), generator)
            if model.config.model.position_shift:
                shown = shift_randomly(shown, generator)
            table = {"words.weight": torch.cat([known, rows])}
            text = F.normalize(functional_call(encoder, table, (shown,)), dim=1)
            loss = instance_loss(_SCALE * text @ weights.T, classes[batch])
            (rows.grad,) = torch.autograd.grad(loss, [rows])
            optimizer.step()
            schedule.step()
            advance()
    return model.with_words(words, rows.detach())


def _without_some_words(token_ids: Tensor, known: int, generator: torch.Generator) -> Tensor:
    """Captions without some of their known words, which have the ids 1 to `known`; the words after them move left."""
    dropped = (torch.rand(token_ids.shape, generator=generator) < _DROPPED) & (token_ids <= known)
    kept = token_ids.masked_fill(dropped, 0)
    return kept.gather(1, (kept == 0).int().argsort(dim=1, stable=True))
