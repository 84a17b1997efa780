from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dpce_cli.core.errors import QueryError
from dpce_cli.core.retrieval.hits import Hit
from dpce_cli.core.retrieval.search import rank_gallery, search_captions, search_images
from dpce_cli.core.workspace.features import FeatureStore

STORE = FeatureStore(
    image_embeddings=torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]),
    text_embeddings=torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.8, 0.6]]),
    image_hubness=torch.zeros(3),
    text_hubness=torch.zeros(3),
    image_of_text=torch.tensor([1, 0, 1]),
    image_ids=("7", "8", "9"),
    image_paths=("dog.jpg", "cat.jpg", "bird.jpg"),
    identities=("", "", ""),
    captions=("a cat", "a dog", "a small cat"),
    meta={},
)


def test_the_gallery_is_ranked_by_similarity() -> None:
    gallery = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    ranked = rank_gallery(torch.tensor([1.0, 0.0]), gallery, 2)
    assert [index for index, _ in ranked] == [1, 2]
    assert [score for _, score in ranked] == pytest.approx([1, 0.6])


def test_hubness_is_taken_off_the_similarity_in_both_directions() -> None:
    store = replace(STORE, image_hubness=torch.tensor([0.0, 0.0, 0.5]), text_hubness=torch.tensor([0.3, 0.2, 0.0]))
    hits = search_images(store, torch.tensor([0.0, 1.0]), 3)
    assert [hit.image_id for hit in hits] == ["8", "9", "7"]
    assert [hit.score for hit in hits] == pytest.approx([0.8, 0.5, 0.0])
    found = search_captions(store, torch.tensor([0.6, 0.8]), 3)
    assert [hit.caption for hit in found] == ["a small cat", "a cat", "a dog"]
    assert [hit.score for hit in found] == pytest.approx([0.96, 0.5, 0.4])


@pytest.mark.parametrize("items", [5, 103, 1003])
def test_equal_items_keep_their_order(items: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, item = F.normalize(torch.randn(2, 512, generator=generator), dim=1)
    ranked = rank_gallery(query, item.repeat(items, 1), items)
    assert [index for index, _ in ranked] == list(range(items))


def test_more_than_the_gallery_is_the_whole_gallery() -> None:
    assert len(rank_gallery(torch.ones(2), torch.ones(3, 2), 100)) == 3


@pytest.mark.parametrize("top_k", [0, -1])
def test_less_than_one_result_is_refused(top_k: int) -> None:
    with pytest.raises(QueryError, match=f"--top-k {top_k}: ask for at least 1"):
        rank_gallery(torch.ones(2), torch.ones(3, 2), top_k)


def test_an_image_is_shown_with_its_caption_nearest_to_the_query_or_none() -> None:
    hits = search_images(STORE, torch.tensor([0.6, 0.8]), 3)
    assert [(hit.rank, hit.image_id, hit.path, hit.caption) for hit in hits] == [
        (1, "8", "cat.jpg", "a small cat"),
        (2, "9", "bird.jpg", ""),
        (3, "7", "dog.jpg", "a dog"),
    ]
    assert [hit.score for hit in hits] == pytest.approx([1, 0.8, 0.6])


def test_another_query_brings_out_another_caption_of_an_image() -> None:
    captions = [
        next(hit.caption for hit in search_images(STORE, torch.tensor(query), 3) if hit.image_id == "8")
        for query in ([0.0, 1.0], [1.0, 0.0], [0.3, 0.9])
    ]
    assert captions == ["a cat", "a small cat", "a cat"]


def test_of_equally_near_captions_the_first_is_shown() -> None:
    assert [hit.caption for hit in search_images(STORE, torch.zeros(2), 3)] == ["a dog", "a cat", ""]


def test_a_caption_is_shown_with_its_image() -> None:
    assert search_captions(STORE, torch.tensor([0.0, 1.0]), 1) == [
        Hit(rank=1, score=1.0, image_id="8", path="cat.jpg", caption="a cat")
    ]
