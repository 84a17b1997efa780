"""What a search answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One ranked answer: an image with that of its captions nearest to the query, or a caption with its image."""

    rank: int
    """From 1."""
    score: float
    """Cosine similarity to the query; in an extracted split less the answer's hubness."""
    image_id: str
    """In a gallery, the path."""
    path: str
    """Of the image: relative to the data set's root, or absolute. In a gallery of sentences, of their file."""
    caption: str
    """The caption or sentence; empty for an image without captions."""
    is_own: bool | None = None
    """Whether the answer belongs to the query's own image; None where the query is from outside the store."""
    date: str | None = None
    """When a gallery's photo was taken, `2024-05-01T10:30:01`, where its EXIF data says so."""
