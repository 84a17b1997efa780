"""A trained model for new photos and sentences: both encoders, without the classifier."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dpce_cli.core.config import Config
from dpce_cli.core.errors import QueryError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.relevance import Relevances
from dpce_cli.core.text.tokenizer import tokenize
from dpce_cli.core.text.vocabulary import Vocabulary, pack_token_ids

if TYPE_CHECKING:  # a sentence that ONNX Runtime embeds needs no torch, which takes seconds to import
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from dpce_cli.core.models.image_encoder import ImageEncoder
    from dpce_cli.core.models.text_encoder import TextEncoder
    from dpce_cli.core.retrieval.hubness import Bank
    from dpce_cli.core.workspace.checkpoint import Checkpoint

    E = TypeVar("E", bound=nn.Module)

Array = np.ndarray[tuple[int, int], np.dtype[np.float32]]
TextEngine = Callable[[np.ndarray[tuple[int, int], np.dtype[np.int32]]], Array]

_ENCODERS = ("image_encoder.", "text_encoder.")
WORDS = "text_encoder.words.weight"
"""Key of the words' rows in the state dict; row 0 is the blank position."""
_PHOTOS, _SENTENCES = 16, 256
_COMMON_WORDS = 200


@dataclass(frozen=True, kw_only=True)
class Model:
    """Embeds sentences and photos into one space, by the test protocol (Zheng et al. 2020, section 5.1).

    `dpce_cli.load_model` makes one from an exported folder; `of_checkpoint` from a checkpoint of a workspace. Weights
    are read and encoders are built when they are first needed, so that a text search never builds the image CNN.
    """

    name: str
    """Where it comes from, for people."""
    config: Config
    vocabulary: Vocabulary
    word_dim: int
    weights_id: str
    """Identifies the weights: the fingerprint of the checkpoint that they are from."""
    load_weights: Callable[[], Mapping[str, Tensor]] = field(repr=False)
    """Reads the state dict of both encoders."""
    extends: tuple[str, ...] = ()
    """Fingerprints of the models to which this one only adds words: it embeds photos and known words as they do."""
    text_engine: TextEngine | None = field(default=None, repr=False)
    """What embeds token ids `(sentences, max_words)` in the place of the text encoder, without torch."""
    load_bank: Callable[[], Bank] | None = field(default=None, repr=False)
    """Reads the bank, by which hubs are corrected; None: the model has no bank."""
    relevances: Relevances | None = None
    """Curves from score to relevance; None: the model has none."""
    device: torch.device | None = None
    """None is the CPU."""
    reporter: Reporter = field(default_factory=Reporter, repr=False)
    """Receives warnings about words that are ignored."""

    @classmethod
    def of_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        load_bank: Callable[[], Bank] | None = None,
        relevances: Relevances | None = None,
        device: torch.device | None = None,
        reporter: Reporter | None = None,
    ) -> Model:
        """The encoders of a checkpoint."""
        weights = {name: value for name, value in checkpoint.model.items() if name.startswith(_ENCODERS)}
        return cls(
            name=f"{checkpoint.dataset}, Stage {checkpoint.stage}",
            config=checkpoint.config,
            vocabulary=checkpoint.vocabulary,
            word_dim=checkpoint.word_dim,
            weights_id=checkpoint.fingerprint,
            load_weights=lambda: weights,
            load_bank=load_bank,
            relevances=relevances,
            device=device,
            reporter=reporter or Reporter(),
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all that decides an embedding. Embeddings of two fingerprints cannot be compared."""
        image, model = self.config.image, self.config.model
        views = (image.backbone, image.resize, image.squash, image.crop, image.mirror, image.test_view)
        words = (self.vocabulary.fingerprint, self.config.text.max_words, model.position_shift)
        return hashlib.sha256(json.dumps([self.weights_id, views, words]).encode()).hexdigest()

    def with_words(self, words: Sequence[str], rows: Tensor) -> Model:
        """The model with more words; it embeds photos, and sentences without these words, exactly as before.

        Args:
            rows: `(words, word_dim)`, their rows in the text encoder's table.
        """
        import torch

        weights = {**self.weights, WORDS: torch.cat([self.weights[WORDS], rows])}
        made_of = self.weights_id.encode() + "\n".join(words).encode() + rows.numpy().tobytes()
        return replace(
            self,
            vocabulary=Vocabulary((*self.vocabulary.words, *words), self.vocabulary.lowercase),
            weights_id=hashlib.sha256(made_of).hexdigest(),
            extends=(*self.extends, self.fingerprint),
            load_weights=lambda: weights,
            text_engine=None,
        )

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.config.model.embedding_dim

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        """State dict of both encoders."""
        return self.load_weights()

    @cached_property
    def bank(self) -> Bank | None:
        """The bank that gives the hubness of photos and sentences; None: the model has none."""
        return self.load_bank() if self.load_bank else None

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """In eval mode, on the device."""
        return self._restored(_build_text_encoder(self.config, len(self.vocabulary), self.word_dim), "text_encoder.")

    @cached_property
    def image_encoder(self) -> ImageEncoder:
        """In eval mode, on the device."""
        return self._restored(_build_image_encoder(self.config), "image_encoder.")

    def _restored(self, encoder: E, prefix: str) -> E:
        own = {key.removeprefix(prefix): value for key, value in self.weights.items() if key.startswith(prefix)}
        encoder.load_state_dict(own, assign=True)
        return encoder.eval().to(self.device or "cpu")

    def encode_text(self, sentences: Sequence[str]) -> Array:
        """Embed sentences, summed over their placements: `(sentences, dim)` float32, L2-normalised.

        Words that the model does not know are dropped, as in training, and named in a warning; for a single sentence,
        with the known words nearest to them in spelling.

        Raises:
            QueryError: the model knows no word of a sentence.
        """
        token_ids, _ = pack_token_ids(
            [self._token_ids(text, suggest=len(sentences) == 1) for text in sentences], self.config.text.max_words
        )
        embed = self.text_engine or self._embed_token_ids
        parts = [embed(token_ids[start : start + _SENTENCES]) for start in range(0, len(token_ids), _SENTENCES)]
        return np.concatenate([np.empty((0, self.dim), np.float32), *parts])

    def _embed_token_ids(self, token_ids: np.ndarray[tuple[int, int], np.dtype[np.int32]]) -> Array:
        import torch

        from dpce_cli.core.retrieval.encoding import encode_text

        placements = None if self.config.model.position_shift else 1
        rows: Array = encode_text(self.text_encoder, torch.from_numpy(token_ids), placements=placements).numpy()
        return rows

    @cached_property
    def common_text(self) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """What sentences have in common: the mean embedding of the first known words, `(dim,)`, L2-normalised."""
        mean = self.encode_text(self.vocabulary.words[:_COMMON_WORDS]).mean(0)
        direction: np.ndarray[tuple[int], np.dtype[np.float32]] = mean / np.linalg.norm(mean)
        return direction

    def knows(self, sentence: str) -> bool:
        """Whether at least one word of the sentence is known."""
        return bool(self.vocabulary.token_ids(tokenize(sentence, lowercase=self.vocabulary.lowercase)))

    def _token_ids(self, sentence: str, *, suggest: bool) -> list[int]:
        vocabulary, words = self.vocabulary, self.config.text.max_words
        tokens = tokenize(sentence, lowercase=vocabulary.lowercase)
        ids = vocabulary.token_ids(tokens)
        unknown = [token for token in tokens if token not in vocabulary]
        if suggest:
            unknown = [
                f"{word} (known: {', '.join(near)})" if (near := vocabulary.near(word)) else word for word in unknown
            ]
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
        import torch
        from PIL import Image

        from dpce_cli.core.data.images import load_image
        from dpce_cli.core.data.views import views_in_testing

        view = views_in_testing(self.config.image)
        views = (view(photo if isinstance(photo, Image.Image) else load_image(Path(photo)), 0) for photo in photos)
        rows, batch = [torch.empty(0, self.dim)], list[torch.Tensor]()
        for shown in views:
            if batch and (len(batch) == _PHOTOS or batch[0].shape != shown.shape):  # whole photos differ in size
                rows.append(self.encode_views(torch.stack(batch)))
                batch = []
            batch.append(shown)
        if batch:
            rows.append(self.encode_views(torch.stack(batch)))
        embeddings: Array = torch.cat(rows).numpy()
        return embeddings

    def encode_views(self, views: Tensor) -> Tensor:
        """Embed photos that `views_in_testing` has cut: uint8 `(photos, views, 3, h, w)` to `(photos, dim)`."""
        from dpce_cli.core.retrieval.encoding import encode_images

        return encode_images(self.image_encoder, views.to(self.device or "cpu"))


def empty_weights(config: Config, vocabulary_size: int, word_dim: int) -> dict[str, Tensor]:
    """The state dict of both encoders without values (on torch's meta device)."""
    return {
        **_build_text_encoder(config, vocabulary_size, word_dim).state_dict(prefix="text_encoder."),
        **_build_image_encoder(config).state_dict(prefix="image_encoder."),
    }


def _build_text_encoder(config: Config, vocabulary_size: int, word_dim: int) -> TextEncoder:
    import torch

    from dpce_cli.core.models.text_encoder import build_text_encoder

    with torch.device("meta"):
        return build_text_encoder(config.model, vocabulary_size=vocabulary_size, word_dim=word_dim)


def _build_image_encoder(config: Config) -> ImageEncoder:
    import torch

    from dpce_cli.core.models.image_encoder import ImageEncoder

    with torch.device("meta"):
        image = config.image
        return ImageEncoder(
            backbone=image.backbone,
            embedding_dim=config.model.embedding_dim,
            crop=image.crop,
            frozen_until=image.frozen_until,
            pooling=image.pooling,
        )
