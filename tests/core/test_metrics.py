from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dpce_cli.core.errors import DataError
from dpce_cli.core.metrics import (
    evaluate,
    mean_average_precision,
    mean_rank,
    median_rank,
    rank_embeddings,
    rank_similarity,
    recall_at_k,
)
from tests.oracles import retrieval as oracle


@st.composite
def tied_similarities(draw: st.DrawFn) -> tuple[list[list[float]], list[int]]:
    """A similarity matrix of few distinct values, and captions in any order with any number per image."""
    images, texts = draw(st.integers(1, 7)), draw(st.integers(1, 12))
    value = st.integers(-2, 2).map(float)
    rows = st.lists(st.lists(value, min_size=texts, max_size=texts), min_size=images, max_size=images)
    return draw(rows), draw(st.lists(st.integers(0, images - 1), min_size=texts, max_size=texts))


@given(tied_similarities())
def test_ranks_and_precision_of_a_similarity_matrix_equal_the_definitions(
    case: tuple[list[list[float]], list[int]],
) -> None:
    similarity, image_of_text = case
    owners = torch.tensor(image_of_text)
    ranks = rank_similarity(torch.tensor(similarity), owners)
    image_ranks, image_precisions = oracle.image_to_text(similarity, image_of_text)
    text_ranks, text_precisions = oracle.text_to_image(similarity, image_of_text)
    assert ranks.image_to_text.tolist() == image_ranks
    assert ranks.text_to_image.tolist() == text_ranks
    assert mean_average_precision(ranks.own_captions, owners) == pytest.approx(
        sum(image_precisions) / len(image_precisions)
    )
    assert mean_average_precision(ranks.text_to_image, torch.arange(len(owners))) == pytest.approx(
        sum(text_precisions) / len(text_precisions)
    )


@given(seed=st.integers(0, 2**31), images=st.integers(1, 9), texts=st.integers(1, 20), chunk=st.integers(1, 25))
def test_ranks_of_embeddings_equal_the_definitions_whatever_the_chunk(
    seed: int, images: int, texts: int, chunk: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # One-hot rows, so that similarities are exactly 0 or 1 and most of them tie.
    image_embeddings = torch.eye(3)[torch.randint(3, (images,), generator=generator)]
    text_embeddings = torch.eye(3)[torch.randint(3, (texts,), generator=generator)]
    image_of_text = torch.randint(images, (texts,), generator=generator)
    ranks = rank_embeddings(image_embeddings, text_embeddings, image_of_text, chunk=chunk)
    similarity = (image_embeddings @ text_embeddings.T).tolist()
    assert ranks.image_to_text.tolist() == oracle.image_to_text(similarity, image_of_text.tolist())[0]
    assert ranks.text_to_image.tolist() == oracle.text_to_image(similarity, image_of_text.tolist())[0]


def test_ranks_of_embeddings_equal_those_of_their_similarity_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(60, 16, generator=generator), dim=1)
    texts = F.normalize(torch.randn(200, 16, generator=generator), dim=1)
    owners = torch.randint(60, (200,), generator=generator)
    by_embeddings = rank_embeddings(images, texts, owners, chunk=7)
    by_matrix = rank_similarity(images.double() @ texts.double().T, owners)
    assert by_embeddings.image_to_text.equal(by_matrix.image_to_text)
    assert by_embeddings.text_to_image.equal(by_matrix.text_to_image)
    assert by_embeddings.own_captions.equal(by_matrix.own_captions)


def test_a_matrix_worked_by_hand() -> None:
    similarity = torch.tensor(
        [
            [0.9, 0.4, 0.8, 0.7, 0.1],
            [0.3, 0.5, 0.2, 0.6, 0.6],
            [0.9, 0.9, 0.9, 0.9, 0.9],
        ]
    )
    ranks = rank_similarity(similarity, torch.tensor([0, 0, 1, 1, 2]))
    # Image 0 finds its text 0 first and its text 1 fourth; image 1 its text 3 behind the tied text 4.
    assert ranks.own_captions.tolist() == [1, 4, 5, 2, 5]
    assert ranks.image_to_text.tolist() == [1, 2, 5]
    # Text 0 ties with image 2; text 1 has images 2 and 1 ahead; text 2 is least like its own image 1.
    assert ranks.text_to_image.tolist() == [2, 3, 3, 3, 1]


def test_a_tie_counts_against_us() -> None:
    ranks = rank_similarity(torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([0, 1]))
    assert ranks.image_to_text.tolist() == [2, 2]
    assert ranks.text_to_image.tolist() == [2, 2]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_embeddings_that_are_all_alike_rank_last(chunk: int) -> None:
    """Also where the last block has another size, and so other rounding errors, than the rest."""
    constant = F.normalize(torch.rand(1, 300, generator=torch.Generator().manual_seed(0)), dim=1)
    owners = torch.arange(50) // 5
    ranks = rank_embeddings(constant.expand(10, -1), constant.expand(50, -1), owners, chunk=chunk)
    assert ranks.image_to_text.tolist() == [46] * 10
    assert ranks.text_to_image.tolist() == [10] * 50


def test_an_image_without_captions_is_no_query_but_stays_in_the_gallery() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    metrics = evaluate(images, torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    assert (metrics.image_to_text.queries, metrics.image_to_text.gallery) == (1, 1)
    assert (metrics.text_to_image.queries, metrics.text_to_image.gallery) == (1, 2)
    assert metrics.text_to_image.mean_rank == 2


def test_perfect_embeddings_score_one_everywhere() -> None:
    embeddings = torch.eye(12)
    metrics = evaluate(embeddings, embeddings.repeat_interleave(5, dim=0), torch.arange(60) // 5)
    assert metrics.rsum == pytest.approx(600)
    for direction in (metrics.image_to_text, metrics.text_to_image):
        assert (direction.r1, direction.median_rank, direction.mean_rank, direction.map) == (1, 1, 1, 1)


def test_random_embeddings_score_about_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(200, 32, generator=generator), dim=1)
    texts = F.normalize(torch.randn(1000, 32, generator=generator), dim=1)
    metrics = evaluate(images, texts, torch.arange(1000) // 5)
    assert metrics.text_to_image.r10 == pytest.approx(10 / 200, abs=0.02)
    assert metrics.text_to_image.median_rank == pytest.approx(100, abs=10)


def test_recall_counts_ranks_up_to_and_with_k() -> None:
    ranks = torch.tensor([1, 5, 6, 10, 11])
    assert [recall_at_k(ranks, k) for k in (1, 5, 10)] == [0.2, 0.4, 0.8]


def test_median_of_an_even_number_of_ranks_is_the_middle_rounded_down() -> None:
    assert median_rank(torch.tensor([1, 2])) == 1
    assert median_rank(torch.tensor([7, 1, 3, 2])) == 2
    assert median_rank(torch.tensor([4, 1, 9])) == 4


def test_mean_rank_is_the_arithmetic_mean() -> None:
    assert mean_rank(torch.tensor([1, 2, 6])) == 3


def test_precision_is_averaged_over_each_query_before_it_is_averaged_over_queries() -> None:
    ranks, query = torch.tensor([2, 1, 3, 6]), torch.tensor([4, 2, 4, 4])  # queries 0, 1 and 3 do not occur
    assert mean_average_precision(ranks, query) == pytest.approx((1 + (1 / 2 + 2 / 3 + 3 / 6) / 3) / 2)


def test_the_result_is_plain_numbers_by_direction() -> None:
    values = evaluate(torch.eye(2), torch.eye(2), torch.arange(2)).to_dict()
    assert set(values) == {"image_to_text", "text_to_image", "rsum"}
    assert values["rsum"] == 600
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


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_embeddings_that_are_not_finite_are_refused(value: float) -> None:
    broken = torch.eye(2)
    broken[1, 1] = value
    with pytest.raises(DataError, match="image embeddings: NaN or infinite"):
        evaluate(broken, torch.eye(2), torch.arange(2))
    with pytest.raises(DataError, match="text embeddings: NaN or infinite"):
        evaluate(torch.eye(2), broken, torch.arange(2))


def test_a_split_without_captions_is_refused() -> None:
    with pytest.raises(DataError, match="no caption to rank"):
        evaluate(torch.eye(2), torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))


def test_the_similarity_matrix_is_left_as_it_was() -> None:
    similarity = torch.eye(2)
    rank_similarity(similarity, torch.arange(2))
    assert similarity.equal(torch.eye(2))


@pytest.mark.slow
def test_five_thousand_images_and_their_captions_are_ranked_in_two_gigabytes() -> None:
    script = """
import resource, torch
from torch.nn.functional import normalize
from dpce_cli.core.metrics import evaluate

torch.set_num_threads(1)
images = normalize(torch.randn(5_000, 512), dim=1)
texts = normalize(images.repeat_interleave(5, dim=0) + torch.randn(25_000, 512) / 16, dim=1)
assert evaluate(images, texts, torch.arange(25_000) // 5).text_to_image.r1 > 0.9
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(run.stdout) * 1024 < 2 * 2**30
