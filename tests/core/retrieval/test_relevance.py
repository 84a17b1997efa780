from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpce_cli.core.retrieval.relevance import Relevance, Relevances, load_relevances

CURVES = Relevances(
    text_to_image=Relevance(slope=10.0, intercept=-2.0), image_to_text=Relevance(slope=8.0, intercept=-1.0)
)


def test_a_higher_score_is_more_relevant_and_no_score_is_out_of_range() -> None:
    values = [CURVES.text_to_image.of(score) for score in (-1e9, -1.0, 0.0, 0.2, 1.0, 1e9)]
    assert values == sorted(values)
    assert values[0] >= 0
    assert values[3] == pytest.approx(0.5)
    assert values[-1] <= 1


def test_curves_are_kept_for_the_checkpoint_that_they_were_fitted_for(tmp_path: Path) -> None:
    path = tmp_path / "relevance.json"
    assert load_relevances(path, "abc") is None
    path.write_text(json.dumps({"checkpoint": "abc", **CURVES.to_dict()}))
    assert load_relevances(path, "abc") == CURVES
    assert load_relevances(path, "other") is None


@pytest.mark.parametrize(
    "stored",
    [
        None,
        [],
        {},
        {**CURVES.to_dict(), "image_to_text": 3},
        {**CURVES.to_dict(), "image_to_text": {"slope": 1.0}},
        {**CURVES.to_dict(), "image_to_text": {"slope": "1", "intercept": 0.0}},
        {**CURVES.to_dict(), "image_to_text": {"slope": float("nan"), "intercept": 0.0}},
        {**CURVES.to_dict(), "image_to_text": {"slope": 10**400, "intercept": 0.0}},
    ],
)
def test_what_is_no_two_curves_is_refused(tmp_path: Path, stored: Any) -> None:
    with pytest.raises(ValueError, match="not two curves of two numbers"):
        Relevances.from_dict(stored)
    path = tmp_path / "relevance.json"
    path.write_text(json.dumps({"checkpoint": "abc", **stored} if isinstance(stored, dict) else stored))
    assert load_relevances(path, "abc") is None
