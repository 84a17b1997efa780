#!/usr/bin/env python3
"""Time and memory to write the embeddings of many photos with two processes, and to read them."""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path

from measuring import in_own_process, in_two_processes, peak_mib


def store(options: argparse.Namespace) -> None:
    """Time and memory to write the embeddings of many photos and captions in two processes, and to read them again."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "store.h5"
        print(f"{options.images:,} photos and as many captions, {options.dim}-d")
        seconds, mib = in_two_processes(write_store, path, options.images, options.dim)
        print(
            f"  written, {path.stat().st_size / 2**20:,.0f} MiB  {seconds:7.1f} s  {mib:6.0f} MiB of memory per process"
        )
        seconds, mib = in_own_process(read_whole_store, path)
        print(f"  read in blocks        {seconds:7.1f} s  {mib:6.0f} MiB of memory without mapped files")


def write_store(path: Path, images: int, dim: int) -> tuple[float, float]:
    """Seconds, and peak memory in MiB without imports."""
    import torch

    from dpce_cli.core.processes.collectives import lengths, rank
    from dpce_cli.core.storage.rows import open_or_resume

    before, start, size = peak_mib(), time.perf_counter(), 1024
    arrays = dict.fromkeys(("image_embeddings", "text_embeddings"), ((images, dim), "float32"))
    with open_or_resume(path, arrays=arrays, constants={}, meta={}) as writer:
        for name in arrays:
            for first in range(0, lengths(images)[rank()], size):
                writer.append(**{name: torch.randn(min(size, lengths(images)[rank()] - first), dim)})
        writer.finish()
    return time.perf_counter() - start, peak_mib() - before


def read_whole_store(path: Path) -> tuple[float, float]:
    """Seconds, and peak memory in MiB without imports and mapped files."""
    import torch

    from dpce_cli.core.storage.rows import read_store

    def anonymous() -> float:
        return int(re.findall(r"RssAnon:\s*(\d+)", Path("/proc/self/status").read_text())[0]) / 1024

    before, start, most = anonymous(), time.perf_counter(), 0.0
    for rows in read_store(path, remedy="store").arrays.values():
        for block in torch.from_numpy(rows).split(2**14):
            assert bool(block.isfinite().all())
            most = max(most, anonymous() - before)
    return time.perf_counter() - start, most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="a folder on a disk with 16 GB of free space")
    store(parser.parse_args())


if __name__ == "__main__":
    main()
