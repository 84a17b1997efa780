from __future__ import annotations

import torch

from dpce_cli.core.seeding import derived_seed, generator_for


def test_a_seed_is_the_same_on_every_machine() -> None:
    assert derived_seed(0, "order", 3) == 8483304753239185838


def test_different_parts_give_different_seeds() -> None:
    parts: list[tuple[int | str, ...]] = [(0,), (1,), ("0",), (0, 0), (0, 1), (1, 0), ("a", "b"), ("ab",), ()]
    assert len({derived_seed(*part) for part in parts}) == len(parts)


def test_seeds_are_such_as_torch_accepts() -> None:
    seeds = [derived_seed(i) for i in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_a_generator_neither_uses_nor_changes_torchs_own() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = torch.rand(4, generator=generator_for(0, "weights"))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(torch.rand(4, generator=generator_for(0, "weights")), one)
    assert not torch.equal(torch.rand(4, generator=generator_for(1, "weights")), one)
