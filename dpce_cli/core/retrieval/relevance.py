"""How well a result fits the query, in percent: a cosine similarity means nothing to a person.

The relevance of a result says how much the words of its own captions agree with the query. 100 % is the agreement of
the captions that other people wrote for the same photo. `core.retrieval.calibration` fits it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Relevance:
    """A logistic curve from a score, corrected for hubs, to the expected agreement."""

    slope: float
    intercept: float

    def of(self, score: float) -> float:
        """The relevance of a result as a fraction.

        >>> Relevance(slope=4.0, intercept=-1.0).of(0.25)
        0.5
        """
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, self.slope * score + self.intercept))))


@dataclass(frozen=True, kw_only=True)
class Relevances:
    """The curves of both directions."""

    text_to_image: Relevance
    image_to_text: Relevance

    def of_answers(self, kind: Literal["photos", "sentences"]) -> Relevance:
        """The curve for answers of a kind to queries of the other kind."""
        return self.text_to_image if kind == "photos" else self.image_to_text

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Any) -> Relevances:
        """Curves from JSON.

        Raises:
            ValueError: they are not two curves of two finite numbers.
        """
        try:
            curves = {
                direction: Relevance(slope=stored[direction]["slope"], intercept=stored[direction]["intercept"])
                for direction in ("text_to_image", "image_to_text")
            }
            if all(math.isfinite(number) for curve in curves.values() for number in vars(curve).values()):
                return cls(**curves)
        except (KeyError, TypeError, OverflowError):
            pass
        raise ValueError("the relevance is not two curves of two numbers")


def load_relevances(path: Path, fingerprint: str) -> Relevances | None:
    """The curves that extract-features fitted for the checkpoint with this fingerprint; None: there are none."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Relevances.from_dict(stored) if stored["checkpoint"] == fingerprint else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
