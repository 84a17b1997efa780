#!/usr/bin/env python3
"""Time of short commands, against the time to import torch."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path


def startup(options: argparse.Namespace) -> None:
    """Median wall time of five runs per command."""
    dpce = (sys.executable, "-m", "dpce_cli")
    query = ("retrieve", "--query", options.query, "--workspace", str(options.workspace))
    imports = seconds_of(sys.executable, "-c", "import torch, torchvision")
    for name, seconds in (
        ("import torch, torchvision", imports),
        ("dpce --help", seconds_of(*dpce, "--help")),
        ("dpce retrieve --help", seconds_of(*dpce, "retrieve", "--help")),
        ("dpce retrieve --query ...", seconds_of(*dpce, *query)),
    ):
        print(f"{name:<28}{seconds:7.2f} s  {seconds / imports:5.2f} of importing torch")


def seconds_of(*command: str) -> float:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--workspace", type=Path, default=Path("dpce-workspace"))
    parser.add_argument("--query", default="a woman in blue")
    startup(parser.parse_args())


if __name__ == "__main__":
    main()
