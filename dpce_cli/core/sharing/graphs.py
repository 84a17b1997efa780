"""The encoders with their test protocol around them, as modules that can be exported: without loops."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpce_cli.core.models.image_encoder import ImageEncoder
from dpce_cli.core.models.text_encoder import TextEncoder


class TextGraph(nn.Module):
    """Token ids `(sentences, words)` to embeddings, as `core.retrieval.encoding.encode_text` makes them."""

    def __init__(self, encoder: TextEncoder, *, shifted: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.shifted = shifted

    def forward(self, token_ids: Tensor) -> Tensor:
        if not self.shifted:
            return F.normalize(self.encoder(token_ids), dim=1)
        positions = torch.arange(token_ids.shape[1])
        lengths = (token_ids != 0).sum(1, keepdim=True)
        placements = (positions + lengths <= len(positions)).nonzero()  # (placements, 2): sentence, start
        sentence = placements[:, 0]
        source = positions - placements[:, 1:]  # (placements, words)
        placed = token_ids[sentence].gather(1, source.clamp(min=0)).masked_fill(source < 0, 0)
        owned = (torch.arange(token_ids.shape[0])[:, None] == sentence).float()  # (sentences, placements)
        return F.normalize(owned @ self.encoder(placed), dim=1)


class ImageGraph(nn.Module):
    """Photos `(photos, 3, height, width)` to embeddings, as `core.retrieval.encoding.encode_images` makes them."""

    def __init__(self, encoder: ImageEncoder, *, mirror: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.mirror = mirror

    def forward(self, photos: Tensor) -> Tensor:
        embeddings: Tensor = self.encoder(photos)
        if self.mirror:
            embeddings = embeddings + self.encoder(photos.flip(-1))
        return F.normalize(embeddings, dim=1)
