#!/usr/bin/env python3
"""Photos per second when they are read in random order: files against tar shards."""

from __future__ import annotations

import argparse
import io
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

from dpce_cli.core.progress import Reporter
from measuring import in_own_process


def shards(options: argparse.Namespace) -> None:
    """Photos per second, read in random order and scaled; medians of five passes."""
    files, tars = in_own_process(read_photos, options.workspace, options.images)
    print(f"{options.images} photos of {options.workspace}")
    print(f"  files   {files:8.1f} photos per second")
    print(f"  shards  {tars:8.1f}, ratio {tars / files:.2f}")


def read_photos(root: Path, images: int) -> tuple[float, float]:
    """Photos per second from the files of a workspace's data set, and from tars with 100 photos each."""
    import torch

    from dpce_cli.core.data.loading import read_views
    from dpce_cli.core.data.readers.webdataset import read_webdataset
    from dpce_cli.core.data.records import CaptionedImage
    from dpce_cli.core.data.views import FixedViews
    from dpce_cli.core.workspace.workspace import Workspace

    torch.set_num_threads(1)
    dataset = Workspace(root).load_dataset()
    files = dataset.split("train")[:images]

    view = FixedViews(dataset.config.image)

    def speed(root: Path, photos: list[CaptionedImage]) -> float:
        start = time.perf_counter()
        assert not any(bad for _, _, bad in read_views(root, photos, view, batch_size=32, workers=0))
        return len(photos) / (time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder:
        for number, photo in enumerate(files):
            with tarfile.open(f"{folder}/{number // 100:04}.tar", "a") as tar:
                path = Path(photo.path)
                tar.add(dataset.root / path, f"{number:06}{path.suffix}")
                caption = tarfile.TarInfo(f"{number:06}.txt")
                caption.size = 1
                tar.addfile(caption, io.BytesIO(b"x"))
        stored = read_webdataset(Path(folder), val_fraction=0, test_fraction=0, seed=0, reporter=Reporter()).images
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
        speeds = [
            (speed(dataset.root, [files[i] for i in order]), speed(Path(folder), [stored[i] for i in order]))
            for _ in range(6)
        ]
    from_files, from_tars = zip(*speeds[1:], strict=True)
    return statistics.median(from_files), statistics.median(from_tars)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--workspace", type=Path, default=Path("dpce-workspace"))
    parser.add_argument("--images", type=int, default=1000)
    shards(parser.parse_args())


if __name__ == "__main__":
    main()
