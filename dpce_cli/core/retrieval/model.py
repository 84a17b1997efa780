"""A trained model for new photos and sentences: both encoders, without the classifier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dpce_cli.core.config import Config
from dpce_cli.core.data.images import load_image
from dpce_cli.core.data.views import views_in_testing
from dpce_cli.core.errors import QueryError
from dpce_cli.core.models.image_encoder import ImageEncoder
from dpce_cli.core.models.text_encoder import TextEncoder, build_text_encoder
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.encoding import encode_images, encode_text
from dpce_cli.core.text.tokenizer import tokenize
from dpce_cli.core.text.vocabulary import Vocabulary, pack_token_ids
from dpce_cli.core.workspace.checkpoint import Checkpoint

E = TypeVar("E", bound=nn.Module)
Array = np.ndarray[tuple[int, int], np.dtype[np.float32]]

_PHOTOS, _SENTENCES = 16, 256


@dataclass(frozen=True, kw_only=True)
class Model:
    """Embeds sentences and photos into one space, by the test protocol (Zheng et al. 2020, section 5.1).

    `load_model` makes one from an exported folder; `of_checkpoint` from a checkpoint of a workspace.

    The encoders are built when they are first needed, so that a text search never builds the image CNN.
    """

    name: str
    """Where it comes from, for people."""
    config: Config
    vocabulary: Vocabulary
    word_dim: int
    weights: Mapping[str, Tensor] = field(repr=False)
    """State dict of a `DualEncoder`, of which the encoders' part is used."""
    fingerprint: str
    """SHA-256 of the weights: embeddings of two models can be compared only where it is the same."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    reporter: Reporter = field(default_factory=Reporter, repr=False)
    """Is told of words that are ignored."""

    @classmethod
    def of_checkpoint(
        cls, checkpoint: Checkpoint, *, device: torch.device | None = None, reporter: Reporter | None = None
    ) -> Model:
        """The encoders of a checkpoint."""
        return cls(
            name=f"{checkpoint.dataset}, Stage {checkpoint.stage}",
            config=checkpoint.config,
            vocabulary=checkpoint.vocabulary,
            word_dim=checkpoint.word_dim,
            weights=checkpoint.model,
            fingerprint=checkpoint.fingerprint,
            device=device or torch.device("cpu"),
            reporter=reporter or Reporter(),
        )

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.config.model.embedding_dim

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """In eval mode, on the device."""
        with torch.device("meta"):
            encoder = build_text_encoder(
                self.config.model, vocabulary_size=len(self.vocabulary), word_dim=self.word_dim
            )
        return self._restored(encoder, "text_encoder.")

    @cached_property
    def image_encoder(self) -> ImageEncoder:
        """In eval mode, on the device."""
        image, model = self.config.image, self.config.model
        with torch.device("meta"):
            encoder = ImageEncoder(backbone=image.backbone, embedding_dim=model.embedding_dim, crop=image.crop)
        return self._restored(encoder, "image_encoder.")

    def _restored(self, encoder: E, prefix: str) -> E:
        own = {key.removeprefix(prefix): value for key, value in self.weights.items() if key.startswith(prefix)}
        encoder.load_state_dict(own, assign=True)
        return encoder.eval().to(self.device)

    def encode_text(self, sentences: Sequence[str]) -> Array:
        """Embed sentences, summed over their placements: `(sentences, dim)` float32, L2-normalised.

        Words that the model does not know are dropped, as in training, and named in a warning.

        Raises:
            QueryError: the model knows no word of a sentence.
        """
        ids = [self._token_ids(sentence) for sentence in sentences]
        packed = torch.from_numpy(pack_token_ids(ids, self.config.text.max_words)[0])
        placements = None if self.config.model.position_shift else 1
        rows = [encode_text(self.text_encoder, part, placements=placements) for part in packed.split(_SENTENCES)]
        return _as_array(rows, self.dim)

    def _token_ids(self, sentence: str) -> list[int]:
        vocabulary, words = self.vocabulary, self.config.text.max_words
        tokens = tokenize(sentence, lowercase=vocabulary.lowercase)
        ids = vocabulary.token_ids(tokens)
        unknown = [token for token in tokens if not vocabulary.token_ids([token])]
        if not ids:
            named = f" ({', '.join(unknown)})" if unknown else ""
            raise QueryError(
                f"query {sentence!r}: the model knows none of its words{named}; use words of the training captions"
            )
        if unknown:
            self.reporter.warn(f"unknown words are ignored: {', '.join(unknown)}")
        if len(ids) > words:
            self.reporter.warn(f"only the first {words} of {len(ids)} known words are read")
        return ids

    def encode_images(self, photos: Iterable[Path | str | Image.Image]) -> Array:
        """Embed photos, summed over their views: `(photos, dim)` float32, L2-normalised.

        Args:
            photos: paths, or RGB images that are open already.

        Raises:
            DataError: a file cannot be read as an image.
        """
        view = views_in_testing(self.config.image)
        views = (view(photo if isinstance(photo, Image.Image) else load_image(Path(photo)), 0) for photo in photos)
        rows, batch = list[Tensor](), list[Tensor]()
        for shown in views:
            if batch and (len(batch) == _PHOTOS or batch[0].shape != shown.shape):  # whole photos differ in size
                rows.append(self.encode_views(torch.stack(batch)))
                batch = []
            batch.append(shown)
        if batch:
            rows.append(self.encode_views(torch.stack(batch)))
        return _as_array(rows, self.dim)

    def encode_views(self, views: Tensor) -> Tensor:
        """Embed photos that `views_in_testing` has cut: uint8 `(photos, views, 3, h, w)` to `(photos, dim)`."""
        return encode_images(self.image_encoder, views.to(self.device))


def _as_array(rows: list[Tensor], dim: int) -> Array:
    return torch.cat([torch.empty(0, dim), *rows]).numpy()
