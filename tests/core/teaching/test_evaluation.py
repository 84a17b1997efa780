from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dpce_cli.core.errors import DataError
from dpce_cli.core.retrieval.hubness import Bank
from dpce_cli.core.teaching.captions import CaptionsOfGallery, TaughtModel, find_photo
from dpce_cli.core.teaching.evaluation import GalleryEvaluation, evaluate_gallery, wilson_interval
from tests.core.galleries.conftest import ColourModel, Place

BANK = Bank(image_embeddings=torch.eye(3)[:1], text_embeddings=torch.eye(3)[:1])
SHADES = [(255, 0, 0), (255, 60, 20), (240, 200, 0), (0, 255, 0), (10, 200, 120), (0, 0, 255), (60, 50, 70)]
WRITTEN = [
    (0, "red"),
    (0, "all red"),
    (1, "red green"),
    (2, "green and red"),
    (3, "green"),
    (4, "blue green"),
    (5, "blue"),
    (6, "red"),
    (6, "red green blue"),
]
"""Photo and caption; equal captions of two photos, and a photo with another photo's caption."""


@pytest.fixture
def measure(place: Place, captions: CaptionsOfGallery) -> Callable[[ColourModel], GalleryEvaluation]:
    for number, shade in enumerate(SHADES):
        place.add(f"{number}.png", shade)

    def measured(model: ColourModel) -> GalleryEvaluation:
        place.index(model=model)
        for number, text in WRITTEN:
            captions.add(find_photo(place.gallery, Path(f"{number}.png")), text, model.fingerprint)
        return evaluate_gallery(place.gallery, model.as_model(), captions, place.notes)

    return measured


def ranks_of_loop(bank: Bank | None) -> tuple[list[int], list[int]]:
    """Ranks text to image and image to text by the definitions, one comparison after another."""
    photos = np.array(SHADES, np.float32) / np.linalg.norm(np.array(SHADES, np.float32), axis=1, keepdims=True)
    texts = ColourModel().encode_text([text for _, text in WRITTEN])

    def score(text: int, photo: int, of: str) -> float:
        cosine = float(texts[text] @ photos[photo])
        if bank is None:
            return cosine
        item = photos[photo] if of == "photo" else texts[text]
        return cosine - float(item[0]) / 2  # BANK is red

    to_image, to_text = [], []
    for text, (own, caption) in enumerate(WRITTEN):
        others = {p for p in range(len(SHADES)) if (p, caption) not in WRITTEN}
        to_image.append(1 + sum(score(text, p, "photo") >= score(text, own, "photo") - 1e-6 for p in others))
    for photo in range(len(SHADES)):
        mine = [t for t, (owner, _) in enumerate(WRITTEN) if owner == photo]
        wordings = {WRITTEN[t][1] for t in mine}
        best = max(score(t, photo, "text") for t in mine)
        others = {t for t, (_, caption) in enumerate(WRITTEN) if caption not in wordings}
        to_text.append(1 + sum(score(t, photo, "text") >= best - 1e-6 for t in others))
    return to_image, to_text


def test_recalls_are_those_of_a_slow_loop(measure: Callable[[ColourModel], GalleryEvaluation]) -> None:
    measured = measure(ColourModel(bank=BANK))
    assert (measured.photos, measured.captions) == (7, 9)
    assert measured.hubs_corrected is not None
    for bank, directions in ((None, measured.plain), (BANK, measured.hubs_corrected)):
        to_image, to_text = ranks_of_loop(bank)
        for ranks, found in ((to_image, directions["text_to_image"]), (to_text, directions["image_to_text"])):
            for cutoff, recall in ((1, found.r1), (5, found.r5), (10, found.r10)):
                assert recall.value == pytest.approx(np.mean(np.array(ranks) <= cutoff))
                assert (recall.low, recall.high) == wilson_interval(recall.value, 7)
            assert found.queries == len(ranks)
        assert directions["text_to_image"].gallery == 7
        assert directions["image_to_text"].gallery == 8  # captions that differ
    assert ranks_of_loop(BANK) != ranks_of_loop(None)
    assert measured.to_dict()["hubs_corrected"]["text_to_image"]["r1"]["value"] > 0


def trained_on(captions: CaptionsOfGallery, place: Place, numbers: list[int]) -> None:
    photos = frozenset(find_photo(place.gallery, Path(f"{number}.png")).content for number in numbers)
    captions.remember_model("colours", TaughtModel(base="", base_fingerprint="", photos=photos))


def test_photos_that_the_model_was_trained_on_are_in_the_gallery_but_are_no_queries(
    place: Place, captions: CaptionsOfGallery, measure: Callable[[ColourModel], GalleryEvaluation]
) -> None:
    whole = measure(ColourModel())
    assert whole.hubs_corrected is None
    trained_on(captions, place, [6])
    part = evaluate_gallery(place.gallery, place.model.as_model(), captions, place.notes)
    assert (part.photos, part.captions) == (6, 7)
    assert part.plain["text_to_image"].gallery == 7
    assert part.plain["image_to_text"].gallery == whole.plain["image_to_text"].gallery

    trained_on(captions, place, [0, 1, 2])
    with pytest.raises(DataError, match="'photos': 4 photos have captions that the model was not trained on, and 5 "):
        evaluate_gallery(place.gallery, place.model.as_model(), captions, place.notes)


def test_captions_of_unknown_words_and_of_photos_that_are_gone_are_left_out(
    place: Place, captions: CaptionsOfGallery, measure: Callable[[ColourModel], GalleryEvaluation]
) -> None:
    measure(ColourModel())
    captions.add(find_photo(place.gallery, Path("0.png")), "frisbee", "colours")
    (place.photos / "6.png").unlink()
    place.index()
    measured = evaluate_gallery(place.gallery, place.model.as_model(), captions, place.notes)
    assert (measured.photos, measured.captions) == (6, 7)
    assert place.notes.warnings == ["1 of 8 captions are left out: the model knows none of their words"]


def test_the_interval_holds_the_true_share_in_95_of_100_cases() -> None:
    shares = np.random.default_rng(0).binomial(20, 0.7, size=20_000) / 20
    held = [low <= 0.7 <= high for low, high in (wilson_interval(float(share), 20) for share in shares)]
    assert 0.93 < np.mean(held) < 0.98
    assert wilson_interval(1.0, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)
