#!/usr/bin/env python3
"""Photos per second in training: batches in memory against cached features and against photos."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path

from measuring import in_own_process
from training_runs import train


def feeding(options: argparse.Namespace) -> None:
    """Photos per second after the first epoch, and the share of the time in which training waits for data."""
    print(
        f"Stage {options.stage} over {options.images} photos of {options.workspace} on {options.device} in "
        f"{options.precision}, {options.workers} workers"
    )
    for name, cache in [("cached features", True)] * (options.stage == 1) + [("photos", False)]:
        epochs = 15 if cache else 3
        for fed, in_memory in (("in memory", True), (name, False)):
            samples: list[tuple[float, int]] = []
            with sampled_utilisation(samples) if options.device == "cuda" else nullcontext():
                spans, records = in_own_process(
                    train,
                    options.workspace,
                    options.images,
                    options.workers,
                    feature_cache=cache,
                    device=options.device,
                    epochs=epochs,
                    in_memory=in_memory,
                    stage=options.stage,
                    preset=options.preset,
                    precision=options.precision,
                    steps=options.steps,
                )
            later = [record for record in records if record["step"] > records[-1]["step"] / epochs]
            speed = statistics.harmonic_mean(record["images_per_second"] for record in later)
            line = f"  {fed:<16}{speed:10.1f} photos per second"
            if in_memory:
                most = speed
            else:
                waited = statistics.mean(record["data_wait"] for record in later)
                line += f", ratio {speed / most:.2f}, {waited:.1%} of the time waiting for data"
            if options.device == "cuda":
                line += f"; peak memory {later[-1]['device_memory'] / 2**20:,.0f} MiB"
                measured = [spans[f"stage {options.stage} epoch {epoch}/{epochs}"] for epoch in range(2, epochs + 1)]
                busy = [share for when, share in samples if any(start < when < end for start, end in measured)]
                if busy:
                    line += f", GPU busy {statistics.mean(busy):.0f}% of the time"
            print(line)


@contextmanager
def sampled_utilisation(samples: list[tuple[float, int]]) -> Iterator[None]:
    """Fill `samples` with times, and the utilisation of the first GPU in percent."""
    fields = "--query-gpu=timestamp,utilization.gpu"
    query = ("nvidia-smi", "--id=0", fields, "--format=csv,noheader,nounits", "--loop-ms=250")
    with tempfile.TemporaryFile("w+") as output:  # a pipe would be full after some minutes
        with subprocess.Popen(query, stdout=output) as process:
            try:
                yield
            finally:
                process.terminate()
        output.seek(0)
        for line in output:
            when, _, share = line.strip().partition(", ")
            if share.isdecimal():  # a part of a GPU (MIG) has no utilisation
                samples.append((datetime.strptime(when, "%Y/%m/%d %H:%M:%S.%f").timestamp(), int(share)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--workspace", type=Path, default=Path("dpce-workspace"))
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--stage", type=int, choices=[1, 2], default=1)
    parser.add_argument("--preset", help="default: the settings of the data set")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--steps", type=int, help="the most steps per epoch")
    feeding(parser.parse_args())


if __name__ == "__main__":
    main()
