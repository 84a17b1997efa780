"""Results of a search."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Literal, Protocol

from dpce_cli.core.errors import QueryError
from dpce_cli.core.retrieval.combining import Term
from dpce_cli.core.retrieval.relevance import Relevance

Kind = Literal["photos", "sentences"]


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One ranked answer: an image and its caption that is nearest to the query, or a caption and its image."""

    rank: int
    """From 1."""
    score: float
    """Cosine similarity to the query; between photos and sentences, minus the answer's hubness."""
    relevance: float | None = None
    """How well it fits the query, as a fraction (see `core.retrieval.relevance`); None: not known."""
    image_id: str
    """In a gallery, the path."""
    path: str
    """Of the image: relative to the data set's root, or absolute. In a gallery of sentences, of their file."""
    caption: str
    """The caption or sentence; empty for an image without captions."""
    date: str | None = None
    """When a gallery's photo was taken, `2024-05-01T10:30:01`, if its EXIF data says so."""

    @property
    def percent(self) -> str:
        """The relevance for people; empty if it is not known."""
        return "" if self.relevance is None else f"{100 * self.relevance:.0f} %"


def with_relevance(hits: Iterable[Hit], curve: Relevance | None) -> list[Hit]:
    """The hits with their relevance by `curve`, if there is one."""
    return [replace(hit, relevance=curve.of(hit.score) if curve else None) for hit in hits]


def at_least(hits: Sequence[Hit], relevance: float) -> list[Hit]:
    """The hits of at least this relevance.

    Raises:
        QueryError: their relevance is not known.
    """
    if any(hit.relevance is None for hit in hits):
        raise QueryError(
            "--min-relevance: the relevance of these results is not known. It is known between sentences and photos, "
            "without --plus and --minus, if 'dpce extract-features --split val' was run with the model before it was "
            "exported and the gallery made"
        )
    return [hit for hit in hits if hit.relevance is not None and hit.relevance >= relevance]


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which items of a gallery may be answers."""

    under: Path | None = None
    """Only photos below this folder."""
    since: date | None = None
    """Only photos taken on this day or later; a photo without a date is left out."""
    until: date | None = None
    """Only photos taken on this day or earlier; a photo without a date is left out."""
    unique: bool = False
    """Leave out items that are nearly the same as a better one."""


class Searchable(Protocol):
    """What can be searched: an extracted split, or a gallery."""

    @property
    def title(self) -> str:
        """What it is, for people."""

    @property
    def root(self) -> Path:
        """The folder that relative paths of answers start from."""

    def answers(self, query: str | Path) -> Kind:
        """What the answers to a sentence, or to the photo at a path, are."""

    def search(self, query: str | Path, top_k: int, terms: Sequence[Term] = ()) -> list[Hit]:
        """The items nearest to a sentence, or to the photo at a path, and to further terms, best first.

        Raises:
            QueryError: the model knows no word of the sentence, or `top_k` is below 1.
            DataError: the photo cannot be read.
        """


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A query and what a search found for it, best first."""

    title: str
    """What was searched."""
    query: str | Path
    """A sentence, or the path of a photo."""
    kind: Kind
    """What the hits are."""
    hits: Sequence[Hit]
    root: Path
    """The folder that relative paths of hits start from."""

    def photo(self, hit: Hit) -> Path | None:
        """Where the photo of a hit is; a sentence of a gallery has none."""
        if self.kind == "sentences" and Path(hit.path).is_absolute():
            return None
        return self.root / hit.path
