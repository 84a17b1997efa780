from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dpce_cli.core.errors import DataError
from dpce_cli.core.retrieval.evaluation import PROTOCOLS, evaluate_split
from dpce_cli.core.retrieval.metrics import evaluate, evaluate_by_identity
from dpce_cli.core.workspace.features import FeatureStore


def gallery(images: int, *, captions: int = 1, identities: Sequence[str] | None = None) -> FeatureStore:
    """Embeddings that retrieve well but not perfectly."""
    generator = torch.Generator().manual_seed(0)
    image_embeddings = F.normalize(torch.randn(images, 16, generator=generator), dim=1)
    owners = torch.arange(images * captions) // captions
    noise = 0.3 * torch.randn(len(owners), 16, generator=generator)
    return FeatureStore(
        image_embeddings=image_embeddings,
        text_embeddings=F.normalize(image_embeddings[owners] + noise, dim=1),
        image_hubness=torch.zeros(images),
        text_hubness=torch.zeros(len(owners)),
        image_of_text=owners,
        image_ids=tuple(map(str, range(images))),
        image_paths=tuple(f"{index}.jpg" for index in range(images)),
        identities=tuple(identities or [""] * images),
        captions=("a caption",) * len(owners),
        meta={},
    )


@pytest.fixture(scope="module")
def coco() -> FeatureStore:
    """5,001 images, one more than the folds take, with two captions each."""
    return gallery(5001, captions=2)


def test_full_is_the_whole_gallery_in_both_directions() -> None:
    store = gallery(30, captions=5)
    measured = evaluate_split(store, None)
    expected = evaluate(store.image_embeddings, store.text_embeddings, store.image_of_text)
    assert (measured.protocol, measured.images, measured.captions) == ("full", 30, 150)
    assert measured.directions == {
        "image_to_text": expected.image_to_text,
        "text_to_image": expected.text_to_image,
    }
    assert measured.rsum == expected.rsum


def test_1k_is_the_mean_of_five_folds_in_the_order_of_the_gallery(coco: FeatureStore) -> None:
    measured = evaluate_split(coco, "1k")
    folds = [
        evaluate(
            coco.image_embeddings[start : start + 1000],
            coco.text_embeddings[2 * start : 2 * start + 2000],
            torch.arange(2000) // 2,
        )
        for start in range(0, 5000, 1000)
    ]
    assert len({fold.text_to_image.r1 for fold in folds}) == 5
    for name in ("image_to_text", "text_to_image"):
        direction = measured.directions[name]
        for key in ("r1", "r5", "r10", "median_rank", "mean_rank", "map"):
            mean = sum(getattr(getattr(fold, name), key) for fold in folds) / 5
            assert getattr(direction, key) == pytest.approx(mean)
    assert (measured.images, measured.captions) == (5000, 10_000)
    assert measured.directions["text_to_image"].gallery == 1000
    assert measured.rsum == pytest.approx(sum(fold.rsum for fold in folds) / 5)


def test_captions_in_any_order_belong_to_the_fold_of_their_image(coco: FeatureStore) -> None:
    order = torch.randperm(len(coco.captions), generator=torch.Generator().manual_seed(1))
    shuffled = replace(coco, text_embeddings=coco.text_embeddings[order], image_of_text=coco.image_of_text[order])
    assert evaluate_split(shuffled, "1k") == evaluate_split(coco, "1k")


def test_first_1k_is_one_fold_and_says_so(coco: FeatureStore) -> None:
    measured = evaluate_split(coco, "first-1k")
    expected = evaluate(coco.image_embeddings[:1000], coco.text_embeddings[:2000], torch.arange(2000) // 2)
    assert (measured.protocol, measured.images, measured.captions) == ("first-1k", 1000, 2000)
    assert measured.directions["image_to_text"] == expected.image_to_text


@pytest.mark.parametrize(("protocol", "needed"), [("1k", "5,000"), ("first-1k", "1,000")])
def test_too_small_a_split_is_refused(protocol: str, needed: str) -> None:
    with pytest.raises(DataError, match=f"--protocol {protocol} needs {needed} images and the split has 999"):
        evaluate_split(gallery(999), protocol)


def test_identities_are_the_default_where_there_are_some() -> None:
    store = gallery(6, captions=2, identities=["1", "1", "", "2", "", "2"])
    measured = evaluate_split(store, None)
    expected = evaluate_by_identity(
        store.image_embeddings, store.text_embeddings, store.image_of_text, torch.tensor([0, 0, 1, 2, 3, 2])
    )
    assert measured == evaluate_split(store, "identity")
    assert (measured.protocol, measured.directions, measured.rsum) == ("identity", {"text_to_image": expected}, None)
    assert evaluate_split(store, "full").directions.keys() == {"image_to_text", "text_to_image"}


def test_without_identities_their_protocol_is_refused() -> None:
    with pytest.raises(DataError, match="the split's images carry no identities; choose --protocol full"):
        evaluate_split(gallery(3), "identity")


def test_the_result_is_plain_numbers_by_direction() -> None:
    store = replace(gallery(2), text_embeddings=torch.eye(2, 16), image_embeddings=torch.eye(2, 16))
    values = evaluate_split(store, "full").to_dict()
    assert list(values) == ["protocol", "images", "captions", "image_to_text", "text_to_image", "rsum"]
    assert (values["protocol"], values["images"], values["captions"], values["rsum"]) == ("full", 2, 2, 600)
    assert values["image_to_text"] == {
        "r1": 1.0,
        "r5": 1.0,
        "r10": 1.0,
        "median_rank": 1.0,
        "mean_rank": 1.0,
        "map": 1.0,
        "queries": 2,
        "gallery": 2,
    }


def test_every_protocol_is_explained() -> None:
    from dpce_cli.commands.eval import Protocol

    assert [protocol.value for protocol in Protocol] == list(PROTOCOLS)
