from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dpce_cli.core.losses import detail_loss, instance_loss, ranking_loss
from dpce_cli.core.seeding import generator_for
from tests.oracles import losses as oracle


def random(*shape: int, seed: str = "losses") -> Tensor:
    return torch.randn(shape, generator=generator_for(seed, *shape), dtype=torch.float64)


@pytest.mark.parametrize("margin", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("triplets", [1, 16])
def test_ranking_loss_equals_the_slow_one(triplets: int, margin: float) -> None:
    positive, text, image = random(3, triplets).tanh()
    expected = oracle.ranking_loss(positive.tolist(), text.tolist(), image.tolist(), margin)
    assert float(ranking_loss(positive, text, image, margin)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("positive", "text", "image", "margin", "expected"),
    [
        (0.9, 0.1, 0.1, 0.5, 0.0),  # both far enough
        (0.5, 0.25, 0.25, 0.25, 0.0),  # exactly the margin apart
        (0.5, 0.5, 0.25, 0.25, 0.125),  # only the caption is too near
        (0.5, 0.25, 0.5, 0.25, 0.125),  # only the photo is too near
        (0.0, 1.0, 1.0, 1.0, 2.0),  # the worst of orthogonal embeddings
        (1.0, 0.0, 0.0, 1.0, 0.0),  # the best of them
        (0.25, 0.75, 0.5, 0.0, 0.375),  # without a margin only the order counts
    ],
)
def test_ranking_loss_by_hand(positive: float, text: float, image: float, margin: float, expected: float) -> None:
    triplet = torch.tensor([[positive], [text], [image]])
    assert float(ranking_loss(triplet[0], triplet[1], triplet[2], margin)) == expected


def test_ranking_loss_of_32_photos_is_the_sum_over_16_triplets_by_32() -> None:
    positive, text, image = torch.rand(3, 16, generator=generator_for("rank"), dtype=torch.float64)
    hinges = (1 - positive + text).sum() + (1 - positive + image).sum()
    assert float(ranking_loss(positive, text, image, 1.0)) == pytest.approx(float(hinges) / 32)


def test_a_satisfied_triplet_has_no_gradient() -> None:
    positive, text, image = (torch.tensor([value], requires_grad=True) for value in (0.9, 0.1, 0.85))
    ranking_loss(positive, text, image, 0.2).backward()
    assert text.grad == 0
    assert image.grad == 0.5
    assert positive.grad == -0.5


def test_gradients_are_right() -> None:
    similarities = tuple(random(5, seed=name).requires_grad_() for name in ("positive", "text", "image"))
    assert torch.autograd.gradcheck(lambda p, t, i: ranking_loss(p, t, i, 1.0), similarities)


@pytest.mark.parametrize("margin", [0.0, 0.2])
@pytest.mark.parametrize("swaps", [0, 1, 16])
def test_detail_loss_equals_the_slow_one(swaps: int, margin: float) -> None:
    true, swapped = random(2, swaps).tanh()
    expected = oracle.detail_loss(true.tolist(), swapped.tolist(), 20, margin)
    assert float(detail_loss(true, swapped, 20, margin)) == pytest.approx(expected, rel=1e-12)


def test_detail_loss_by_hand() -> None:
    true, swapped = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.25, 0.5, 0.75])
    assert float(detail_loss(true, swapped, 4, 0.25)) == (0 + 0.25 + 0.5) / 4
    true.requires_grad_()
    detail_loss(true, swapped, 4, 0.25).backward()
    assert true.grad is not None
    assert true.grad.tolist() == [0, -0.25, -0.25]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_instance_loss_equals_the_slow_one(label_smoothing: float) -> None:
    logits, own = 30 * random(5, 7), torch.tensor([0, 6, 3, 3, 1])
    expected = oracle.instance_loss(logits.tolist(), own.tolist(), label_smoothing)
    assert float(instance_loss(logits, own, label_smoothing)) == pytest.approx(expected, rel=1e-12)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: instance_loss(x, own, label_smoothing), (logits,))
