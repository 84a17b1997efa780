#!/usr/bin/env python3
"""Time per epoch of Stage I with a frozen image CNN: CNN in each epoch against cached features."""

from __future__ import annotations

import argparse
from pathlib import Path

from measuring import in_own_process
from training_runs import train


def stage1(options: argparse.Namespace) -> None:
    """Time of the second epoch of Stage I, on the same photos with the same frozen image CNN."""
    runs = [
        in_own_process(train, options.workspace, options.images, options.workers, feature_cache=cache)
        for cache in (True, False)
    ]
    cached, fresh = ({label: end - start for label, (start, end) in spans.items()} for spans, _ in runs)
    epoch, cache = "stage 1 epoch 2/2", "features of train photos"
    print(f"Stage I over {options.images} photos of {options.workspace}, {options.workers} workers")
    print(f"  image CNN each epoch   {fresh[epoch]:9.2f} s per epoch")
    print(f"  cached features        {cached[epoch]:9.2f} s per epoch, after {cached[cache]:.2f} s once")
    print(f"  ratio                  {fresh[epoch] / cached[epoch]:9.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--workspace", type=Path, default=Path("dpce-workspace"))
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    stage1(parser.parse_args())


if __name__ == "__main__":
    main()
