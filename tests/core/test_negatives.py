from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dpce_cli.core.negatives import hardest_in_batch, hardest_in_pool, random_in_batch
from dpce_cli.core.seeding import generator_for
from tests.oracles.losses import hardest_negatives


@pytest.mark.parametrize("captions_per_image", [1, 2, 5])
@pytest.mark.parametrize("images", [2, 3, 17])
def test_hardest_in_batch_equals_the_slow_search(images: int, captions_per_image: int) -> None:
    generator = generator_for(images, captions_per_image)
    image_instances = torch.randperm(100, generator=generator)[:images]
    owner = torch.arange(images).repeat_interleave(captions_per_image)
    owner = owner[torch.randperm(len(owner), generator=generator)]
    text_instances = image_instances[owner]
    similarity = torch.randn(images, len(owner), generator=generator)
    similarity[owner, torch.arange(len(owner))] += 10  # own pairs are the most similar of all

    texts, chosen_images = hardest_in_batch(similarity, image_instances, text_instances)

    own = image_instances[:, None] == text_instances
    assert texts.tolist() == [hardest_negatives(row, mask) for row, mask in zip(similarity, own.tolist(), strict=True)]
    assert chosen_images.tolist() == [
        hardest_negatives(column, mask) for column, mask in zip(similarity.T, own.T.tolist(), strict=True)
    ]
    assert (text_instances[texts] != image_instances).all()
    assert (image_instances[chosen_images] != text_instances).all()


def test_hardest_in_batch_by_hand() -> None:
    similarity = torch.tensor([[0.9, 0.8, 0.1, 0.3], [0.2, 0.7, 0.9, 0.4], [0.5, 0.6, 0.3, 0.8]])
    instances = torch.tensor([7, 8, 9])
    texts, images = hardest_in_batch(similarity, instances, torch.tensor([7, 7, 8, 9]))
    assert texts.tolist() == [3, 1, 1]
    assert images.tolist() == [2, 1, 2, 1]


def test_a_photo_that_is_twice_in_the_batch_is_not_its_own_negative() -> None:
    similarity = torch.tensor([[0.9, 0.8, 0.1], [0.9, 0.8, 0.2], [0.1, 0.2, 0.9]])
    instances = torch.tensor([4, 4, 5])
    texts, images = hardest_in_batch(similarity, instances, instances)
    assert texts.tolist() == [2, 2, 1]
    assert images.tolist() == [2, 2, 1]


def test_similarities_of_minus_one_do_not_make_an_own_caption_the_hardest() -> None:
    instances = torch.arange(3)
    texts, images = hardest_in_batch(2 * torch.eye(3) - 1, instances, instances)
    assert texts.tolist() == images.tolist() == [1, 0, 0]


def test_searching_leaves_the_similarities_and_their_graph_alone() -> None:
    similarity = torch.eye(3).requires_grad_()
    texts, _ = hardest_in_batch(similarity, torch.arange(3), torch.arange(3))
    assert not texts.requires_grad
    assert similarity.equal(torch.eye(3))


@pytest.mark.parametrize("pool", [1, 2, 256])
def test_hardest_in_pool_equals_the_slow_search(pool: int) -> None:
    generator = generator_for("pool", pool)
    image = F.normalize(torch.randn(16, 8, generator=generator), dim=1)
    text = F.normalize(torch.randn(pool, 8, generator=generator), dim=1)
    expected = [max(range(pool), key=lambda j: float(query @ text[j])) for query in image]
    assert hardest_in_pool(image, text).tolist() == expected


def test_random_negatives_are_all_those_of_other_instances_alike() -> None:
    torch.manual_seed(0)
    image_instances, text_instances = torch.tensor([4, 4, 5, 6]), torch.tensor([6, 4, 4, 5, 5])
    draws = [random_in_batch(image_instances, text_instances) for _ in range(600)]
    texts, images = (torch.stack(chosen) for chosen in zip(*draws, strict=True))
    assert (text_instances[texts] != image_instances).all()
    assert (image_instances[images] != text_instances).all()
    for chosen, own in ((texts[:, 0], {1, 2}), (images[:, 0], {3})):
        counts = torch.bincount(chosen, minlength=4)
        allowed = [index for index in range(len(counts)) if index not in own]
        expected = 600 / len(allowed)
        assert all(0.75 * expected < int(counts[index]) < 1.25 * expected for index in allowed)
