from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch

from dpce_cli.core.training.batches import Batch


def made_up_batch(captions: Sequence[int], counts: tuple[int, ...], own: slice) -> Batch:
    """Photo i is the number i, and its captions say so; a process has the photos `own`."""
    photos = torch.arange(len(captions))
    owner = photos.repeat_interleave(torch.tensor(captions))
    return Batch(
        rows=100 + photos,
        images=photos[own, None],
        counts=counts,
        instance_ids=photos,
        token_ids=owner[:, None],
        text_instance_ids=owner,
        image_of_text=owner,
        swapped_token_ids=1000 + torch.arange(len(owner))[::2, None],
        text_of_swap=torch.arange(len(owner))[::2],
    )


@pytest.mark.parametrize("counts", [(8,), (9,), (4, 4), (5, 4), (3, 2, 4)])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_parts_of_a_batch_are_the_batch(counts: tuple[int, ...], parts: int) -> None:
    total, ends = sum(counts), itertools.accumulate(counts, initial=0)
    captions = [1 + photo % 3 for photo in range(total)]
    of_processes = [
        made_up_batch(captions, counts, slice(first, end)).parts(parts) for first, end in itertools.pairwise(ends)
    ]
    assert {len(of_process) for of_process in of_processes} == {min(parts, total // 2, *counts)}
    for same_part in zip(*of_processes, strict=True):
        part = same_part[0]
        assert len(part.rows) == len(part.instance_ids) == sum(part.counts) >= 2
        assert [len(other.images) for other in same_part] == list(part.counts)
        assert torch.cat([other.images[:, 0] for other in same_part]).equal(part.instance_ids)
        assert part.rows.equal(100 + part.instance_ids)
        assert part.token_ids[:, 0].equal(part.text_instance_ids)
        assert part.instance_ids[part.image_of_text].equal(part.text_instance_ids)
    whole = torch.cat([part.instance_ids for part in of_processes[0]])
    assert sorted(whole.tolist()) == list(range(total))
    assert sum(len(part.token_ids) for part in of_processes[0]) == sum(captions)


def test_swapped_captions_are_in_the_part_of_their_caption() -> None:
    batch = made_up_batch([1, 5, 2, 4, 3, 1], (6,), slice(0, 6))
    parts = batch.parts(3)
    for part in parts:
        caption = part.swapped_token_ids[:, 0] - 1000  # its position in the batch
        assert batch.token_ids[caption].equal(part.token_ids[part.text_of_swap])
    found = torch.cat([part.swapped_token_ids for part in parts])
    assert sorted(found.tolist()) == batch.swapped_token_ids.tolist()


def test_parts_are_the_same_for_any_number_of_processes() -> None:
    alone = made_up_batch([2] * 8, (8,), slice(0, 8)).parts(2)
    shared = made_up_batch([2] * 8, (4, 4), slice(0, 4)).parts(2)
    assert [part.rows.tolist() for part in alone] == [part.rows.tolist() for part in shared]
    assert [part.token_ids.tolist() for part in alone] == [part.token_ids.tolist() for part in shared]


def test_a_mean_over_photos_or_captions_is_the_sum_of_what_its_parts_add() -> None:
    batch = made_up_batch([1, 5, 2, 4, 3, 1], (6,), slice(0, 6))
    parts = batch.parts(3)
    losses = torch.rand(6), torch.rand(len(batch.token_ids))
    of_photos = sum(part.image_share * losses[0][part.instance_ids].mean() for part in parts)
    torch.testing.assert_close(of_photos, losses[0].mean())
    of_text, start = torch.zeros(()), 0
    order = torch.cat([(batch.image_of_text == photo).nonzero()[:, 0] for part in parts for photo in part.instance_ids])
    for part in parts:
        of_text = of_text + part.text_share * losses[1][order[start : start + len(part.token_ids)]].mean()
        start += len(part.token_ids)
    torch.testing.assert_close(of_text, losses[1].mean())


def test_parts_are_numbered_and_weigh_their_queries() -> None:
    parts = made_up_batch([1, 5, 2, 3, 1, 4, 2], (7,), slice(0, 7)).parts(3)
    assert [part.part for part in parts] == [0, 1, 2]
    assert [len(part.rows) for part in parts] == [3, 2, 2]
    assert [part.query_share for part in parts] == pytest.approx([1 / 3, 1 / 3, 1 / 3])
