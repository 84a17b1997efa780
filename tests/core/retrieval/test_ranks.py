from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dpce_cli.core.retrieval.metrics import evaluate_by_identity, mean_average_precision
from dpce_cli.core.retrieval.ranks import rank_by_identity, rank_embeddings, rank_similarity
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


@given(seed=st.integers(0, 2**31), images=st.integers(1, 9), texts=st.integers(1, 20), chunk=st.integers(1, 25))
def test_ranks_by_identity_equal_the_definitions_whatever_the_chunk(
    seed: int, images: int, texts: int, chunk: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    image_embeddings = torch.eye(4)[torch.randint(4, (images,), generator=generator)]
    text_embeddings = F.normalize(torch.randint(3, (texts, 4), generator=generator).float(), dim=1)
    image_of_text = torch.randint(images, (texts,), generator=generator)
    identities = torch.randint(5, (images,), generator=generator)
    similarity = (image_embeddings @ text_embeddings.T).tolist()
    ranks, query = rank_by_identity(image_embeddings, text_embeddings, image_of_text, identities, chunk=chunk)
    expected, precisions = oracle.text_to_identity(similarity, image_of_text.tolist(), identities.tolist())
    assert [sorted(ranks[query == text].tolist()) for text in range(texts)] == expected
    found = evaluate_by_identity(image_embeddings, text_embeddings, image_of_text, identities, chunk=chunk)
    assert found.map == pytest.approx(sum(precisions) / texts)
    assert found.mean_rank == pytest.approx(sum(min(own) for own in expected) / texts)
    assert (found.queries, found.gallery) == (texts, images)


def test_identities_worked_by_hand() -> None:
    # The text's cosines with images 0 to 3 are 0.6, 0, 0.8 and 0; images 0 and 3 show its person, image 1 ties with 3.
    text = torch.tensor([[0.6, 0.8, 0.0]])
    images = torch.eye(3)[[0, 2, 1, 2]]
    ranks, query = rank_by_identity(images, text, torch.tensor([3]), torch.tensor([5, 6, 7, 5]))
    assert (ranks.tolist(), query.tolist()) == ([2, 4], [0, 0])


def test_the_similarity_matrix_is_left_as_it_was() -> None:
    similarity = torch.eye(2)
    rank_similarity(similarity, torch.arange(2))
    assert similarity.equal(torch.eye(2))
