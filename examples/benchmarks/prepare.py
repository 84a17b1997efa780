#!/usr/bin/env python3
"""Time and memory of prepare-vocab on generated annotations of MSCOCO's size."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import in_own_process


def prepare(options: argparse.Namespace) -> None:
    """Wall time and peak memory of prepare-vocab on generated annotations of MSCOCO's size and form."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        in_own_process(write_coco, root / "coco", images=options.images, captions=options.captions)
        sizes = ", ".join(
            f"{path.name} {path.stat().st_size / 1e6:.0f} MB" for path in sorted((root / "coco").rglob("*.json"))
        )
        print(f"{options.images:,} images, {options.captions:,} captions; {sizes}")
        for splits in ("karpathy", "paper"):
            seconds, mib = in_own_process(prepare_coco, root / "coco", root / splits, splits)
            print(f"  --splits {splits:<10}{seconds:8.1f} s  {mib:8.0f} MiB")


def prepare_coco(root: Path, workspace: Path, splits: str) -> tuple[float, float]:
    """Seconds and peak memory in MiB of the whole process, with imports."""
    start = time.perf_counter()
    command = (sys.executable, "-m", "dpce_cli", "prepare-vocab", "coco", "--splits", splits)
    subprocess.run([*command, "--root", root, "--workspace", workspace], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def write_coco(root: Path, *, images: int, captions: int) -> None:
    """Write Karpathy's file, the official annotations, and empty photos; word frequencies resemble those of English."""
    rng = random.Random(0)
    words = ["".join(rng.choices("aeinorstlcdmpug", k=rng.randint(2, 9))) for _ in range(30_000)]
    frequencies = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))
    test, train = images * 5_000 // 123_287, images * 82_783 // 123_287
    karpathy = []
    official: dict[str, dict[str, list[object]]] = {
        part: {"images": [], "annotations": []} for part in ("train", "val")
    }
    for number in range(images):
        part = "train" if number < train else "val"
        name = f"COCO_{part}2014_{number:012}.jpg"
        photo = root / f"{part}2014" / name
        photo.parent.mkdir(parents=True, exist_ok=True)
        if number % 10_000 == 0 or number == train:  # file systems limit the links to a file
            empty = photo
            empty.touch()
        else:
            os.link(empty, photo)
        texts = [
            f"{' '.join(rng.choices(words, cum_weights=frequencies, k=rng.randint(8, 13))).capitalize()}."
            for _ in range(captions * (number + 1) // images - captions * number // images)
        ]
        ids = range(10 * number, 10 * number + len(texts))
        split = "test" if number >= images - test else "val" if number >= images - 2 * test else "restval"
        karpathy.append(
            {
                "filepath": f"{part}2014",
                "sentids": list(ids),
                "filename": name,
                "imgid": number,
                "split": "train" if part == "train" else split,
                "sentences": [
                    {"tokens": text[:-1].lower().split(), "raw": text, "imgid": number, "sentid": sentence}
                    for sentence, text in zip(ids, texts, strict=True)
                ],
                "cocoid": number,
            }
        )
        official[part]["images"].append(
            {
                "license": 5,
                "file_name": name,
                "coco_url": f"http://images.cocodataset.org/{part}2014/{name}",
                "height": 480,
                "width": 640,
                "date_captured": "2013-11-14 11:18:45",
                "flickr_url": f"http://farm9.staticflickr.com/8186/{number}_76f0fae304_z.jpg",
                "id": number,
            }
        )
        official[part]["annotations"] += [
            {"image_id": number, "id": sentence, "caption": text} for sentence, text in zip(ids, texts, strict=True)
        ]
    (root / "annotations").mkdir()
    for part, content in official.items():
        (root / "annotations" / f"captions_{part}2014.json").write_text(json.dumps(content))
    (root / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": karpathy}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--images", type=int, default=123_287)
    parser.add_argument("--captions", type=int, default=616_767)
    prepare(parser.parse_args())


if __name__ == "__main__":
    main()
