"""How well a gallery's model does on the captions that a person wrote and that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpce_cli.core.errors import DataError
from dpce_cli.core.galleries.gallery import about_gallery, open_gallery
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.metrics import median_rank
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.retrieval.ranks import SAME_SIMILARITY
from dpce_cli.core.teaching.captions import CaptionsOfGallery

FEWEST = 5
"""Fewer captioned photos measure too little."""
_LEVEL = 1.959964
"""Standard deviations of a confidence of 95 %."""
_CUTOFFS = (1, 5, 10)
_CHUNK = 2**14


@dataclass(frozen=True, kw_only=True)
class Recall:
    """A recall as a fraction, with its confidence interval of 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class MeasuredDirection:
    """The recalls of one direction of retrieval."""

    r1: Recall
    r5: Recall
    r10: Recall
    median_rank: float
    queries: int
    gallery: int
    """Photos or captions among which the right one is looked for."""


@dataclass(frozen=True, kw_only=True)
class GalleryEvaluation:
    """What was measured on a person's photos."""

    gallery: str
    model: str
    photos: int
    """Photos with captions that the model was not trained on."""
    captions: int
    """Of these photos."""
    plain: dict[str, MeasuredDirection]
    """"image_to_text" and "text_to_image" by plain cosines."""
    hubs_corrected: dict[str, MeasuredDirection] | None
    """The same with hubs corrected, as in search; None if the gallery does not correct them."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON, in the form of a split's evaluation."""
        about = {"gallery": self.gallery, "model": self.model, "images": self.photos, "captions": self.captions}
        directions = {name: asdict(measured) for name, measured in self.plain.items()}
        corrected = {name: asdict(measured) for name, measured in (self.hubs_corrected or {}).items()}
        return {**about, **directions, **({"hubs_corrected": corrected} if corrected else {})}


def evaluate_gallery(folder: Path, model: Model, captions: CaptionsOfGallery, reporter: Reporter) -> GalleryEvaluation:
    """Measure retrieval in both directions with the captions of photos that a model was not trained on.

    A caption ranks all photos of the gallery, and a photo all captions that the person wrote. If several photos have
    the same caption, each of them is right for it, and counts neither for nor against the others.

    The photos are those that a person chose to caption, not a random sample of the gallery.

    Args:
        folder: of the gallery.
        model: embeds photos as the gallery's does.

    Raises:
        DataError: there are too few captions.
        WorkspaceError: the captions or the gallery cannot be read.
    """
    row_of_content, rows = rows_of_photos(folder)
    present = [one for one in captions.read() if one.content in row_of_content]
    written = [one for one in present if model.knows(one.caption)]
    if unknown := len(present) - len(written):
        reporter.warn(f"{unknown} of {len(present)} captions are left out: the model knows none of their words")
    unseen = {one.content for one in captions.unseen_by(model.fingerprint)}
    queries = [index for index, one in enumerate(written) if one.content in unseen]
    photos = len({written[index].content for index in queries})
    if photos < FEWEST:
        raise DataError(
            f"gallery '{folder.name}': {photos} photos have captions that the model was not trained on, and {FEWEST} "
            "are needed to measure; write captions for more photos"
        )
    texts = torch.from_numpy(model.encode_text([one.caption for one in written]))
    photo_of_text = torch.tensor([row_of_content[one.content] for one in written])
    caption_of_text = _numbered([one.caption.casefold() for one in written])
    bank = model.bank if about_gallery(folder).corrects_hubs else None
    measured = []
    for hubness in [None, *([bank.hubness_of_texts(texts)] if bank else [])]:
        measured.append(
            _measure(rows, texts, photo_of_text, caption_of_text, torch.tensor(queries), text_hubness=hubness)
        )
    return GalleryEvaluation(
        gallery=folder.name,
        model=model.name,
        photos=photos,
        captions=len(queries),
        plain=measured[0],
        hubs_corrected=measured[1] if bank else None,
    )


def rows_of_photos(folder: Path) -> tuple[dict[str, int], Tensor]:
    """The embeddings of the gallery's photos, each with minus its hubness, and the row of each content."""
    with closing(open_gallery(folder)) as catalogue, catalogue.snapshot() as database:
        if catalogue.about.kind != "photos":
            raise DataError(f"gallery '{folder.name}' holds sentences; choose a gallery of photos")
        found = database.execute(
            "SELECT DISTINCT row, hash FROM contents JOIN items ON content = contents.id "
            "WHERE row IS NOT NULL ORDER BY row"
        ).fetchall()
        embeddings = catalogue.embeddings(catalogue.row_count())
        kept = embeddings[np.array([row for row, _ in found], dtype=np.int64)]
    return {content.hex(): index for index, (_, content) in enumerate(found)}, torch.from_numpy(kept)


def _numbered(texts: Sequence[str]) -> Tensor:
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts])


def _measure(
    rows: Tensor,
    texts: Tensor,
    photo_of_text: Tensor,
    caption_of_text: Tensor,
    queries: Tensor,
    *,
    text_hubness: Tensor | None,
) -> dict[str, MeasuredDirection]:
    """Both directions.

    Args:
        rows: (photos, dim + 1) embeddings of all photos, each with minus its hubness.
        texts: (texts, dim) of all captions.
        photo_of_text: (texts,) the row of each caption's photo.
        caption_of_text: (texts,) a number that equal captions share.
        queries: the texts that are measured, and whose photos are.
        text_hubness: (texts,), or None for plain cosines.
    """
    images = rows[:, :-1]
    image_hubness = -rows[:, -1] if text_hubness is not None else torch.zeros(len(rows))
    text_hubness = torch.zeros(len(texts)) if text_hubness is None else text_hubness
    text_ranks = []
    for text in queries.tolist():
        scores = torch.cat([block @ texts[text] for block in images.split(_CHUNK)]) - image_hubness
        own = float(scores[photo_of_text[text]])
        scores[photo_of_text[caption_of_text == caption_of_text[text]]] = -torch.inf
        text_ranks.append(1 + int((scores >= own - SAME_SIMILARITY).sum()))
    photo_ranks = []
    measured_photos = photo_of_text[queries].unique().tolist()
    for photo in measured_photos:
        scores = texts @ images[photo] - text_hubness
        is_own = torch.isin(caption_of_text, caption_of_text[photo_of_text == photo])
        own = float(scores[photo_of_text == photo].max())
        photo_ranks.append(1 + int((scores[~is_own] >= own - SAME_SIMILARITY).sum()))
    photos = len(measured_photos)
    captions = len(caption_of_text.unique())
    return {
        "image_to_text": _direction(photo_ranks, photos=photos, gallery=captions),
        "text_to_image": _direction(text_ranks, photos=photos, gallery=len(rows)),
    }


def _direction(ranks: Sequence[int], *, photos: int, gallery: int) -> MeasuredDirection:
    r1, r5, r10 = (_recall(sum(rank <= cutoff for rank in ranks) / len(ranks), photos) for cutoff in _CUTOFFS)
    return MeasuredDirection(
        r1=r1, r5=r5, r10=r10, median_rank=median_rank(torch.tensor(ranks)), queries=len(ranks), gallery=gallery
    )


def _recall(value: float, photos: int) -> Recall:
    low, high = wilson_interval(value, photos)
    return Recall(value=value, low=low, high=high)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share of `count` independent trials (Wilson 1927).

    The captions of one photo are not independent. Counting photos instead of captions treats them as fully dependent,
    which makes the interval too wide rather than too narrow.

    >>> low, high = wilson_interval(0.5, 10)
    >>> round(low, 3), round(high, 3)
    (0.237, 0.763)
    """
    square = _LEVEL**2 / count
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)
