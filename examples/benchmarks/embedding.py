#!/usr/bin/env python3
"""Time and memory per step of the text encoder's first layer: one-hot convolution against look-up."""

from __future__ import annotations

import argparse
import statistics
import time

from measuring import in_own_process, peak_mib


def embedding(options: argparse.Namespace) -> None:
    """Forward and backward pass of the text encoder's first layer: time per step and peak memory."""
    print(f"first layer: {options.batch} captions of {options.words} words, {options.vocabulary} words of 300 numbers")
    sizes = (options.batch, options.words, options.vocabulary, options.steps)
    results = [in_own_process(first_layer, one_hot, *sizes) for one_hot in (True, False)]
    (slow, large, expected), (fast, small, got) = results
    assert abs(got - expected) <= 1e-4 * abs(expected), "the two layers disagree"
    print(f"  one-hot convolution  {1000 * slow:9.2f} ms per step  {large:8.1f} MiB")
    print(f"  look-up              {1000 * fast:9.2f} ms per step  {small:8.1f} MiB")
    print(f"  ratio                {slow / fast:9.1f}            {large / small:8.1f}")


def first_layer(one_hot: bool, batch: int, words: int, vocabulary: int, steps: int) -> tuple[float, float, float]:
    """Median seconds per step, peak memory in MiB without imports, and the norm of the output."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(0)
    before = peak_mib()
    table = torch.randn(vocabulary + 1, 300, generator=generator)  # row 0 is the blank
    weight = nn.Parameter(table.T.unsqueeze(2).contiguous() if one_hot else table)
    bias = nn.Parameter(torch.full((300,), 0.1))
    del table

    def forward(token_ids: Tensor) -> Tensor:
        if one_hot:
            marks = torch.zeros(batch, vocabulary + 1, words).scatter_(1, token_ids[:, None], 1.0)
            return F.conv1d(marks, weight, bias)
        return (F.embedding(token_ids, weight, padding_idx=0) + bias).transpose(1, 2)

    seconds = []
    for _ in range(steps + 1):
        token_ids = torch.randint(1, vocabulary + 1, (batch, words), generator=generator)
        weight.grad = bias.grad = None
        start = time.perf_counter()
        output = forward(token_ids)
        output.square().sum().backward()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), peak_mib() - before, output.norm().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--words", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=30_000)
    parser.add_argument("--steps", type=int, default=20)
    embedding(parser.parse_args())


if __name__ == "__main__":
    main()
