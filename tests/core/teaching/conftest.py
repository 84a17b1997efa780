from __future__ import annotations

from pathlib import Path

import pytest

from dpce_cli.core.teaching.captions import CaptionsOfGallery
from tests.core.galleries.conftest import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def captions(place: Place) -> CaptionsOfGallery:
    return CaptionsOfGallery(place.gallery.parents[1] / "teaching" / "photos")
