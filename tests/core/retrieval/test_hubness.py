from __future__ import annotations

import torch
from torch.nn import functional as F

from dpce_cli.core.retrieval.evaluation import evaluate_split
from dpce_cli.core.retrieval.hubness import Bank, corrected_for_hubs
from dpce_cli.core.retrieval.ranks import rank_embeddings, rank_similarity
from dpce_cli.core.workspace.features import FeatureStore


def _random(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


def _store(images: torch.Tensor, texts: torch.Tensor, bank: Bank) -> FeatureStore:
    return FeatureStore(
        image_embeddings=images,
        text_embeddings=texts,
        image_hubness=bank.hubness_of_images(images),
        text_hubness=bank.hubness_of_texts(texts),
        image_of_text=torch.arange(len(texts)) % len(images),
        image_ids=tuple(map(str, range(len(images)))),
        image_paths=("a.jpg",) * len(images),
        identities=("",) * len(images),
        captions=("a",) * len(texts),
        meta={"bank": [10, 40, 60]},
    )


def test_ranks_of_a_corrected_store_are_those_of_cosines_less_the_hubness_of_the_gallery() -> None:
    images, texts = _random(20, 1), _random(60, 2)
    store = _store(images, texts, Bank(image_embeddings=_random(40, 3), text_embeddings=_random(60, 4)))
    corrected = corrected_for_hubs(store)
    ranks = rank_embeddings(corrected.image_embeddings, corrected.text_embeddings, store.image_of_text)

    cosines = images @ texts.T
    of_images = rank_similarity(cosines - store.image_hubness[:, None], store.image_of_text)
    of_texts = rank_similarity(cosines - store.text_hubness, store.image_of_text)
    assert ranks.text_to_image.equal(of_images.text_to_image)
    assert ranks.image_to_text.equal(of_texts.image_to_text)


def test_a_photo_near_to_every_caption_no_longer_answers_every_query() -> None:
    """Each photo has a caption near to it, but one photo is the mean of all captions."""
    captions = F.normalize(torch.eye(8) + 0.45, dim=1)
    photos = torch.eye(8)
    photos[0] = F.normalize(torch.ones(8), dim=0)
    store = _store(photos, captions, Bank(image_embeddings=photos, text_embeddings=captions))

    assert evaluate_split(store, "full").directions["text_to_image"].r1 == 1 / 8
    assert evaluate_split(corrected_for_hubs(store), "full").directions["text_to_image"].r1 == 1


def test_a_bank_smaller_than_the_number_of_neighbours_is_used_whole() -> None:
    bank = Bank(image_embeddings=_random(1, 5), text_embeddings=_random(2, 6))
    rows = _random(3, 7)
    assert torch.allclose(bank.hubness_of_texts(rows), rows @ bank.image_embeddings[0] / 2)
    assert torch.allclose(bank.hubness_of_images(rows), (rows @ bank.text_embeddings.T).mean(1) / 2)
