"""One sentence or one photo as an embedding."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dpce_cli.core.data.images import load_image
from dpce_cli.core.data.views import views_in_testing
from dpce_cli.core.errors import QueryError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.encoding import encode_images, encode_text
from dpce_cli.core.text.tokenizer import tokenize
from dpce_cli.core.text.vocabulary import pack_token_ids
from dpce_cli.core.workspace.checkpoint import Checkpoint, restore_image_encoder, restore_text_encoder


def embed_sentence(checkpoint: Checkpoint, sentence: str, reporter: Reporter) -> Tensor:
    """Embed a sentence, averaged over its placements: `(dim,)`, L2-normalised.

    Words the model does not know are dropped, as in training, and named in a warning.

    Raises:
        QueryError: it knows none of the words.
    """
    vocabulary, config = checkpoint.vocabulary, checkpoint.config
    tokens = tokenize(sentence, lowercase=vocabulary.lowercase)
    ids = vocabulary.token_ids(tokens)
    unknown = [token for token in tokens if not vocabulary.token_ids([token])]
    if not ids:
        raise QueryError(
            f"query {sentence!r}: the model knows none of its words"
            f"{' (' + ', '.join(unknown) + ')' if unknown else ''}; use words of the training captions"
        )
    if unknown:
        reporter.warn(f"unknown words are ignored: {', '.join(unknown)}")
    if len(ids) > config.text.max_words:
        reporter.warn(f"only the first {config.text.max_words} of {len(ids)} known words are read")
    token_ids = torch.from_numpy(pack_token_ids([ids], config.text.max_words)[0])
    placements = None if config.model.position_shift else 1
    return encode_text(restore_text_encoder(checkpoint), token_ids, placements=placements)[0]


def embed_photo(checkpoint: Checkpoint, path: Path) -> Tensor:
    """Embed a photo, averaged with its mirror image where the model was trained so: `(dim,)`, L2-normalised.

    Raises:
        DataError: the file cannot be read as an image.
    """
    views = views_in_testing(checkpoint.config.image)(load_image(path), 0)
    return encode_images(restore_image_encoder(checkpoint), views[None])[0]
