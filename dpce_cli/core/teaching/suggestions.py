"""Captions that may fit a photo, for a person to accept."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path

from dpce_cli.core.errors import WorkspaceError
from dpce_cli.core.galleries.gallery import Gallery, about_gallery, can_search
from dpce_cli.core.retrieval.model import Model

_NEWEST = 256
"""Captions of the person's own that are considered."""


def suggest_captions(
    photo: Path, model: Model, sentences: Sequence[Gallery], written: Sequence[str], top_k: int = 3
) -> list[str]:
    """The captions nearest to a photo, best first: sentences of galleries, and what the person wrote for other photos.

    Args:
        sentences: galleries of sentences that `model` can search.
        written: captions that the person wrote, in order of time; the newest are considered.

    Raises:
        DataError: the photo cannot be read.
    """
    scored = dict[str, float]()
    own = [caption for caption in dict.fromkeys(reversed(written)) if model.knows(caption)][:_NEWEST]
    if own:
        import torch

        texts = torch.from_numpy(model.encode_text(own))
        scores = texts @ torch.from_numpy(model.encode_images([photo])[0])
        if model.bank:
            scores -= model.bank.hubness_of_texts(texts)
        scored.update(zip(own, scores.tolist(), strict=True))
    for gallery in sentences:
        for hit in gallery.search(photo, top_k):
            scored.setdefault(hit.caption, hit.score)
    return heapq.nlargest(top_k, scored, key=scored.__getitem__)


def sentence_galleries(folder: Path, model: Model) -> list[Gallery]:
    """The galleries of sentences below `folder` that a model can search."""
    found = []
    for path in sorted(folder.glob("*")):
        try:
            about = about_gallery(path)
        except WorkspaceError:  # no gallery, or a damaged one, of which `dpce galleries` tells
            continue
        if about.kind == "sentences" and can_search(about, model):
            found.append(Gallery(path, model))
    return found
