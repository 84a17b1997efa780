"""Captions as token ids, and test-time embeddings: averaged over mirror images and placements, L2-normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from dpce_cli.core.data.position_shift import placement_starts, shift
from dpce_cli.core.models.text_encoder import TextEncoder
from dpce_cli.core.text.tokenizer import tokenize
from dpce_cli.core.text.vocabulary import Vocabulary, pack_token_ids
from dpce_cli.core.workspace.dataset import PreparedImage

if TYPE_CHECKING:
    from dpce_cli.core.models.image_encoder import ImageEncoder

# Rows that pass through the text CNN at once: bounds memory for any number of captions.
_ROWS = 1024


@dataclass(frozen=True)
class Captions:
    """The captions of a sequence of images as token ids."""

    token_ids: Tensor
    """`(texts, words)` int32, left-aligned, 0 = blank."""
    image_of_text: Tensor
    """`(texts,)`, ascending."""


def pack_captions(
    images: Sequence[PreparedImage], prepared: Vocabulary, vocabulary: Vocabulary, max_words: int
) -> Captions:
    """Captions in the ids of `vocabulary`; words outside of it are dropped.

    `vocabulary` is `prepared` or a part of it, or was imported with a model: then the captions are tokenized for it.
    """
    owners = [index for index, image in enumerate(images) for _ in image.captions]
    if vocabulary.lowercase == prepared.lowercase and set(vocabulary.words) <= set(prepared.words):
        new_id = {prepared.token_ids([word])[0]: new for new, word in enumerate(vocabulary.words, start=1)}
        ids = [[new_id[old] for old in caption if old in new_id] for image in images for caption in image.token_ids]
    else:
        lowercase = vocabulary.lowercase
        ids = [vocabulary.token_ids(tokenize(text, lowercase=lowercase)) for image in images for text in image.captions]
    packed, _ = pack_token_ids(ids, max_words)
    return Captions(torch.from_numpy(packed), torch.tensor(owners, dtype=torch.long))


@torch.inference_mode()
def encode_images(encoder: ImageEncoder, views: Tensor) -> Tensor:
    """Embed photos, summed over their views: f_img before its ReLU (Zheng et al. 2020, section 5.1).

    Args:
        encoder: in eval mode.
        views: uint8 `(photos, views, 3, height, width)`, crops or whole photos of one size, or cached features
            `(photos, views, ...)`; on the encoder's device.

    Returns:
        `(photos, dim)`, L2-normalised, on the CPU.
    """
    embeddings: Tensor = encoder(views.flatten(0, 1))
    return F.normalize(embeddings.float().unflatten(0, views.shape[:2]).sum(1), dim=1).cpu()


@torch.inference_mode()
def encode_text(encoder: TextEncoder, token_ids: Tensor, *, placements: int | None) -> Tensor:
    """Embed captions, summed over their placements: f_txt before its ReLU (Zheng et al. 2020, section 3.2).

    Placements of many captions share a pass through the network.

    Args:
        encoder: in eval mode.
        token_ids: `(captions, words)`, left-aligned, 0 = blank.
        placements: None sums over all of a caption's placements, the test protocol of an encoder that was trained
            with position shift; 1 takes the left-aligned one, that of an encoder trained without.

    Returns:
        `(captions, dim)`, L2-normalised, on the CPU.
    """
    device = encoder.word_bias.device
    captions, starts = placement_starts(token_ids, placements)
    sums = torch.zeros(len(token_ids), encoder.linear.out_features, device=device)
    for caption, start in zip(captions.split(_ROWS), starts.split(_ROWS), strict=True):
        rows = shift(token_ids[caption], start).to(device)
        sums.index_add_(0, caption.to(device), encoder(rows).float())
    return F.normalize(sums, dim=1).cpu()
