from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from dpce_cli.core.errors import DataError
from dpce_cli.core.retrieval.metrics import (
    evaluate,
    evaluate_by_identity,
    mean_average_precision,
    mean_metrics,
    mean_rank,
    median_rank,
    recall_at_k,
)
from tests.oracles import vsepp


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


@pytest.mark.parametrize("images", [1, 2, 7, 20])  # odd and even numbers of ranks, for the median
def test_without_ties_the_measures_are_those_of_vsepp(images: int) -> None:
    generator = torch.Generator().manual_seed(images)
    owners = torch.arange(5 * images) // 5
    image_embeddings = F.normalize(torch.randn(images, 8, generator=generator), dim=1)
    noise = torch.randn(5 * images, 8, generator=generator)
    text_embeddings = F.normalize(image_embeddings[owners] + 0.5 * noise, dim=1)
    metrics = evaluate(image_embeddings, text_embeddings, owners)
    similarity = (image_embeddings.double() @ text_embeddings.double().T).tolist()
    expected = (vsepp.image_to_text(similarity), vsepp.text_to_image(similarity))
    for direction, theirs in zip((metrics.image_to_text, metrics.text_to_image), expected, strict=True):
        ours = (100 * direction.r1, 100 * direction.r5, 100 * direction.r10, direction.median_rank, direction.mean_rank)
        assert ours == pytest.approx(theirs)


def test_where_all_tie_vsepp_goes_by_position_and_we_do_not() -> None:
    embeddings = torch.ones(2, 1)
    metrics = evaluate(embeddings, torch.ones(10, 1), torch.arange(10) // 5)
    assert (vsepp.text_to_image([[1.0] * 10] * 2)[0], metrics.text_to_image.r1) == (50, 0)
    assert (vsepp.image_to_text([[1.0] * 10] * 2)[0], metrics.image_to_text.r1) == (50, 0)


def test_where_every_image_is_its_own_identity_text_to_image_is_plain() -> None:
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(30, 8, generator=generator), dim=1)
    texts = F.normalize(torch.randn(90, 8, generator=generator), dim=1)
    owners = torch.randint(30, (90,), generator=generator)
    plain = evaluate(images, texts, owners).text_to_image
    assert evaluate_by_identity(images, texts, owners, torch.randperm(30, generator=generator)) == plain


def test_folds_are_averaged_measure_by_measure() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (
        evaluate(
            torch.eye(count), F.normalize(torch.rand(count, count, generator=generator), dim=1), torch.arange(count)
        )
        for count in (6, 11)
    )
    mean = mean_metrics([one.text_to_image, other.text_to_image])
    assert mean.r5 == (one.text_to_image.r5 + other.text_to_image.r5) / 2
    assert mean.median_rank == (one.text_to_image.median_rank + other.text_to_image.median_rank) / 2
    assert (mean.queries, mean.gallery) == (8, 8)
    assert mean_metrics([other.image_to_text]) == other.image_to_text


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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_five_thousand_images_and_their_captions_are_ranked_in_two_gigabytes() -> None:
    script = r"""
import re, torch
from pathlib import Path
from torch.nn.functional import normalize
from dpce_cli.core.retrieval.metrics import evaluate

torch.set_num_threads(1)
images = normalize(torch.randn(5_000, 512), dim=1)
texts = normalize(images.repeat_interleave(5, dim=0) + torch.randn(25_000, 512) / 16, dim=1)
assert evaluate(images, texts, torch.arange(25_000) // 5).text_to_image.r1 > 0.9
print(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(run.stdout) * 1024 < 2 * 2**30
