from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from dpce_cli.core.retrieval.calibration import _fit, fit_relevance, labelled_results
from dpce_cli.core.workspace.features import FeatureStore

CAPTIONS = ("a dog runs", "the dog runs", "a dog jumps", "a dog sits", "one red car", "a car")
OWNERS = (0, 0, 1, 1, 2, 2)


def _store(captions: tuple[str, ...] = CAPTIONS, owners: tuple[int, ...] = OWNERS) -> FeatureStore:
    generator = torch.Generator().manual_seed(0)
    images = max(owners) + 1
    return FeatureStore(
        image_embeddings=F.normalize(torch.randn(images, 6, generator=generator), dim=1),
        text_embeddings=F.normalize(torch.randn(len(captions), 6, generator=generator), dim=1),
        image_hubness=torch.linspace(0, 0.2, images),
        text_hubness=torch.linspace(0, 0.3, len(captions)),
        image_of_text=torch.tensor(owners),
        image_ids=tuple(map(str, range(images))),
        image_paths=("",) * images,
        identities=("",) * images,
        captions=captions,
        meta={},
    )


def _similarity(left: str, right: str, captions: tuple[str, ...]) -> float:
    """Cosine of tf-idf vectors, word by word."""

    def weights(text: str) -> dict[str, float]:
        counted = {word: text.split().count(word) for word in text.split()}
        return {
            word: count * math.log(len(captions) / sum(word in other.split() for other in captions))
            for word, count in counted.items()
        }

    one, other = weights(left), weights(right)
    dot = sum(one[word] * other.get(word, 0) for word in one)
    return dot / math.sqrt(sum(v * v for v in one.values()) * sum(v * v for v in other.values()))


def test_labels_are_agreement_as_a_fraction_of_that_of_the_own_captions() -> None:
    store = _store()
    labelled = labelled_results(store)
    assert labelled
    (scores, labels), _ = labelled
    scores, labels = scores.unflatten(0, (len(CAPTIONS), -1)), labels.unflatten(0, (len(CAPTIONS), -1))
    corrected = store.image_embeddings @ store.text_embeddings.T - store.image_hubness[:, None]
    for text, caption in enumerate(CAPTIONS):
        order = sorted(range(3), key=lambda image, text=text: -float(corrected[image, text]))  # type: ignore[misc]
        assert scores[text].tolist() == pytest.approx([float(corrected[image, text]) for image in order])
        (mate,) = [other for other in range(6) if OWNERS[other] == OWNERS[text] and other != text]
        own = _similarity(caption, CAPTIONS[mate], CAPTIONS)
        for image, label in zip(order, labels[text].tolist(), strict=True):
            others = [CAPTIONS[j] for j in range(6) if OWNERS[j] == image]
            agreement = sum(_similarity(caption, other, CAPTIONS) for other in others) / len(others)
            assert label == pytest.approx(1 if image == OWNERS[text] else min(1, agreement / own), abs=1e-5)


def test_photos_are_labelled_likewise() -> None:
    labelled = labelled_results(_store())
    assert labelled
    _, (scores, labels) = labelled
    assert len(scores) == len(labels) == 3 * 5
    assert bool(((labels >= 0) & (labels <= 1)).all())
    # Every photo finds at least one of its two captions among the first five of six.
    assert bool((labels.unflatten(0, (3, 5)) == 1).any(1).all())


def test_images_with_one_caption_say_nothing_of_agreement() -> None:
    assert fit_relevance(_store(("a dog", "a car"), (0, 1))) is None
    with_single = labelled_results(_store((*CAPTIONS, "a bird"), (*OWNERS, 3)))
    without = labelled_results(_store())
    assert with_single
    assert without
    assert len(with_single[0][0]) == len(without[0][0])


def test_the_fitted_curve_gives_back_the_curve_that_made_the_labels() -> None:
    scores = torch.linspace(-0.5, 1, 2000)
    curve = _fit(scores, torch.sigmoid(9 * scores - 2))
    assert curve.slope == pytest.approx(9, rel=0.01)
    assert curve.intercept == pytest.approx(-2, rel=0.01)


def test_labels_that_a_threshold_parts_do_not_let_the_curve_grow_forever() -> None:
    scores = torch.linspace(-0.5, 1, 200)
    curve = _fit(scores, (scores > 0.3).float())
    assert math.isfinite(curve.slope)
    assert curve.of(0.9) > 0.99
    assert curve.of(-0.4) < 0.01
