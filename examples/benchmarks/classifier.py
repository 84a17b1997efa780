#!/usr/bin/env python3
"""Time and memory per step of the shared classifier: all logits at once against parts and samples."""

from __future__ import annotations

import argparse
import os
import statistics
import time

from measuring import in_own_process, in_two_processes, peak_after_imports, peak_mib


def classifier(options: argparse.Namespace) -> None:
    """Time and peak memory per step (forward, backward, SGD) of the shared classifier, for several sizes."""
    print(f"shared classifier, {options.dim}-d, {options.batch} photos and as many captions, {os.cpu_count()} cores")
    for classes in options.classes:
        sizes = (classes, options.dim, options.batch, options.steps)
        dense = in_own_process(classifier_step, "all logits", *sizes)
        parts = in_own_process(classifier_step, "parts", *sizes)
        shared = in_two_processes(classifier_step, "shared", *sizes)
        assert abs(dense[2] - parts[2]) <= 1e-4 * dense[2], "the losses differ"
        print(f"{classes:,} classes")
        for name, (seconds, mib, _) in (
            ("all logits at once", dense),
            ("in parts, as in dpce", parts),
            ("2 processes, a tenth sampled", shared),
        ):
            faster, smaller = dense[0] / seconds, dense[1] / mib
            print(f"  {name:<30}{seconds:7.2f} s per step {faster:6.1f}x  {mib:8,.0f} MiB {smaller:5.1f}x")


def classifier_step(kind: str, classes: int, dim: int, batch: int, steps: int) -> tuple[float, float, float]:
    """Median seconds per step, peak memory in MiB without imports, and the last loss."""
    import torch
    from torch.nn import functional as F

    from dpce_cli.core.models.shared_classifier import SharedClassifier

    before = peak_after_imports()
    rate = 0.1 if kind == "shared" else 1.0
    model = SharedClassifier(instances=classes, embedding_dim=dim, bias=False, scale=0.0, sample_rate=rate)
    model.keep_share()
    model.reset_parameters(torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True)
    model.attach_to(optimizer)
    generator, seconds = torch.Generator().manual_seed(1), []
    for _ in range(steps + 1):
        embeddings = torch.randn(2 * batch, dim, generator=generator, requires_grad=True)
        ids = torch.randint(classes, (batch,), generator=generator).repeat(2)
        start = time.perf_counter()
        if kind == "all logits":
            loss = F.cross_entropy(model(embeddings[:batch]), ids[:batch])
            loss = loss + F.cross_entropy(model(embeddings[batch:]), ids[batch:])
        else:
            loss = 2 * model.instance_losses(embeddings, ids, 0.0)[0].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), peak_mib() - before, loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--classes", type=int, nargs="+", default=[10_000, 113_287, 1_000_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    classifier(parser.parse_args())


if __name__ == "__main__":
    main()
