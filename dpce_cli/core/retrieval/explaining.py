"""Why a photo fits a sentence: what each word, and each part of the photo, adds to their similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dpce_cli.core.data.views import seen_part, views_in_testing
from dpce_cli.core.models.occlusion import encode_without_windows, find_map, mean_of_windows
from dpce_cli.core.retrieval.encoding import encode_images
from dpce_cli.core.retrieval.model import Array, Model
from dpce_cli.core.text.tokenizer import tokenize

Part = tuple[float, float, float, float]
"""Left, top, right and bottom, as fractions of the photo's width and height."""


@dataclass(frozen=True, kw_only=True)
class Word:
    text: str
    share: float | None
    """How much lower the similarity is without the word; None: the model does not read it."""
    is_known: bool
    """A known word that is not read comes after `text.max_words` others."""


@dataclass(frozen=True, kw_only=True)
class Heat:
    """How much each block of a grid over the photo speaks for the sentence."""

    values: Array
    """(rows, columns)"""
    part: Part
    """What the grid covers."""

    @property
    def strongest(self) -> tuple[int, int]:
        """Row and column of the block that matters most, from 0."""
        row, column = divmod(int(self.values.argmax()), self.values.shape[1])
        return row, column

    def middle(self, row: int, column: int) -> tuple[float, float]:
        """The middle of a block: fractions of the photo's width and height."""
        left, top, right, bottom = self.part
        rows, columns = self.values.shape
        return left + (right - left) * (column + 0.5) / columns, top + (bottom - top) * (row + 0.5) / rows

    @property
    def where(self) -> str:
        """Where in the photo the strongest block is, such as "upper left"; "none" speaks for the sentence."""
        if self.values.max() <= 0:
            return "none"
        across, down = (min(2, int(3 * share)) for share in self.middle(*self.strongest))
        if across == down == 1:
            return "middle"
        return " ".join(part for part in (("upper", "", "lower")[down], ("left", "", "right")[across]) if part)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    sentence: str
    similarity: float
    """Cosine of the photo's and the sentence's embeddings."""
    words: tuple[Word, ...]
    heat: Heat | None
    """None: the image CNN has no map that is fine enough."""

    def strength(self, word: Word) -> float:
        """A word's share relative to the largest one, from -1 to 1; 0 if it is not read."""
        most = max(abs(other.share or 0.0) for other in self.words)
        return (word.share or 0.0) / most if most else 0.0


def explain(model: Model, photo: Image.Image, sentence: str) -> Explanation:
    """Leave out each word of the sentence, and each part of the photo, and compare the similarities.

    Args:
        photo: RGB.

    Raises:
        QueryError: the model knows no word of the sentence.
    """
    views = views_in_testing(model.config.image)(photo, 0).to(model.device or "cpu")
    embedding = encode_images(model.image_encoder, views[None])[0].numpy()
    words, text = explain_words(model, embedding, sentence)
    return Explanation(
        sentence=sentence,
        similarity=float(text @ embedding),
        words=words,
        heat=_heat(model, views, embedding, text, photo.size),
    )


def explain_words(model: Model, embedding: Array, sentence: str) -> tuple[tuple[Word, ...], Array]:
    """The words of a sentence with their shares, and the embedding of the sentence `(dim,)`.

    Args:
        embedding: (dim,), the photo's.

    Raises:
        QueryError: the model knows no word of the sentence.
    """
    tokens = tokenize(sentence, lowercase=model.vocabulary.lowercase)
    known = [index for index, token in enumerate(tokens) if token in model.vocabulary]
    read = known[: model.config.text.max_words]
    texts = _without_each(model, [tokens[index] for index in read] or [sentence])
    similarities = texts @ embedding
    shares = dict(zip(read, (similarities[0] - similarities[1:]).tolist(), strict=True))
    words = (Word(text=token, share=shares.get(index), is_known=index in known) for index, token in enumerate(tokens))
    return tuple(words), texts[0]


def _without_each(model: Model, words: Sequence[str]) -> Array:
    """Embeddings of a sentence, and of it without each of its words; no word at all is the zero vector."""
    if len(words) == 1:
        return np.concatenate([model.encode_text(words), np.zeros((1, model.dim), np.float32)])
    shorter = ([*words[:index], *words[index + 1 :]] for index in range(len(words)))
    return model.encode_text([" ".join(variant) for variant in (words, *shorter)])


def _heat(model: Model, views: Tensor, embedding: Array, text: Array, size: tuple[int, int]) -> Heat | None:
    """The heat by the part of the sentence's embedding that it does not share with every sentence.

    Without the projection, the heat of any sentence is where the photo shows most.

    Args:
        views: uint8 (views, 3, height, width); the second one is the mirror image.
        embedding: (dim,), the photo's.
        text: (dim,), the sentence's.
        size: width and height of the photo.
    """
    encoder = model.image_encoder
    found = find_map(encoder, views[0])
    if found is None:
        return None
    windows = [encode_without_windows(encoder, one, found, mirrored=index == 1) for index, one in enumerate(views)]
    without = F.normalize(torch.stack(windows).float().sum(0), dim=2).cpu().numpy()
    own = text - (text @ model.common_text) * model.common_text
    drops = torch.from_numpy((embedding - without) @ own)
    return Heat(values=mean_of_windows(drops).numpy(), part=seen_part(model.config.image, size))
