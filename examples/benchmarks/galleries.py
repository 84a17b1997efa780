#!/usr/bin/env python3
"""Galleries of synthetic embeddings: time and memory of a search, FAISS's recall, and a rescan of unchanged files."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dpce_cli.core.galleries.approximate import WORTHWHILE, nearest, open_index, update_index
from dpce_cli.core.galleries.catalogue import About, Catalogue, Found, make_current
from dpce_cli.core.progress import Reporter
from measuring import in_own_process

DIM, QUERIES = 512, 50
Rows = npt.NDArray[np.float32]


def rows(count: int, seed: int, noise: float, dim: int = DIM) -> Rows:
    """Points around 2,000 centres, each `noise` times as far from its centre as the centre is from the origin."""
    random, centres = np.random.default_rng(seed), np.random.default_rng(0).normal(size=(2000, dim)).astype(np.float32)
    points = centres[random.integers(0, len(centres), count)]
    points += noise * random.normal(size=points.shape).astype(np.float32)
    return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True), np.float32)


def without_hubness(points: Rows) -> Rows:
    """Rows of a gallery, whose last number is minus the hubness, or queries that leave it out."""
    return np.concatenate([points, np.zeros((len(points), 1), np.float32)], axis=1)


def make_gallery(folder: Path, count: int, fingerprint: str, model: str, dim: int = DIM) -> float:
    """A gallery of random embeddings; returns the seconds that its FAISS index took."""
    made = folder / "generation-1"
    with closing(Catalogue.create(made, About("photos", dim + 1, fingerprint, model, "synthetic", False))) as catalogue:
        root = catalogue.add_root(Path("/photos"))
        for start in range(0, count, 20_000):
            numbers = range(start, min(count, start + 20_000))
            with catalogue.transaction():
                for number in numbers:
                    catalogue.put(root, Found(b"%08d.jpg" % number, 1, 1), b"%032d" % number, None)
            catalogue.append(
                [number + 1 for number in numbers], without_hubness(rows(len(numbers), start + 1, 1.0, dim))
            )
        make_current(made)
        begin = time.perf_counter()
        update_index(made, catalogue.embeddings(catalogue.row_count()), Reporter())
        return time.perf_counter() - begin


def private_mib() -> float:
    return int(re.findall(r"RssAnon:\s*(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


def p50(function: Callable[[Rows], object], queries: Rows) -> float:
    """Median milliseconds after one call more."""
    function(queries[0])
    times = []
    for query in queries:
        begin = time.perf_counter()
        function(query)
        times.append(1000 * (time.perf_counter() - begin))
    return float(np.median(times))


def warm_searches(folder: Path, fingerprint: str, is_exact: bool) -> tuple[float, float]:
    """Median milliseconds of a search, and MiB of private memory after it."""
    from types import SimpleNamespace
    from typing import Any
    from unittest.mock import patch

    from dpce_cli.core.galleries import gallery

    model: Any = SimpleNamespace(fingerprint=fingerprint, name="synthetic", relevances=None)
    with patch.object(gallery, "WORTHWHILE", sys.maxsize if is_exact else WORTHWHILE):
        searched = gallery.Gallery(folder, model)
        return p50(lambda query: searched.search(query, 10), rows(QUERIES, 99, 2.0)), private_mib()


def recall(folder: Path) -> float:
    """Share of the 10 nearest rows that FAISS finds, for queries twice as far from their centres as the rows are."""
    with closing(Catalogue(folder / "generation-1")) as catalogue:
        embeddings = catalogue.embeddings(catalogue.row_count())
        index, found = open_index(folder / "generation-1"), list[float]()
        for query in without_hubness(rows(QUERIES, 99, 2.0)):
            scores = np.concatenate([embeddings[i : i + 2**14] @ query for i in range(0, len(embeddings), 2**14)])
            exact = {*np.argsort(-scores, kind="stable")[:10].tolist()}
            found.append(len(exact & {row for row, _ in nearest(index, embeddings, query, 256)[:10]}) / 10)
    return float(np.mean(found))


def cold_seconds(command: Sequence[str]) -> float:
    """The least of three runs."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        times.append(time.perf_counter() - begin)
    return min(times)


def rescan(folder: Path, files: int) -> float:
    """Unchanged files per second, from the scan of the folder to the end of the run."""
    from types import SimpleNamespace
    from typing import Any

    from dpce_cli.core.galleries.indexing import index_gallery

    photos, gallery = folder / "photos", folder / "rescanned"
    for number in range(files):
        path = photos / f"{number // 1000}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (10**9, 10**9))
    model: Any = SimpleNamespace(dim=DIM, fingerprint="m", name="synthetic", load_bank=None)
    made = gallery / "generation-1"
    with closing(Catalogue.create(made, About("photos", DIM + 1, "m", "", "synthetic", False))) as catalogue:
        root = catalogue.add_root(photos.resolve())
        with catalogue.transaction():
            for number in range(files):
                item = Found(b"%d/%d.jpg" % (number // 1000, number), 0, 10**18)
                catalogue.put(root, item, b"%032d" % number, None)
        catalogue.append([number + 1 for number in range(files)], without_hubness(rows(files, 1, 1.0)))
    make_current(made)
    begin = time.perf_counter()
    result = index_gallery(gallery, [photos], model, model_source=None, workers=0, reporter=Reporter())
    assert result.items == files
    assert not +result.counts
    return files / (time.perf_counter() - begin)


def bare_loop(model: Path, photos: Path, workers: int) -> float:
    """Photos per second that are decoded and embedded, and not kept."""
    import dpce_cli
    from dpce_cli.core.data.loading import read_views
    from dpce_cli.core.data.records import CaptionedImage
    from dpce_cli.core.data.views import views_in_testing

    found = dpce_cli.load_model(model, device="cpu")
    names = sorted(os.listdir(photos))
    images = [CaptionedImage(image_id="", path=name, split="", captions=()) for name in names]
    found.encode_images([photos / names[0]])
    begin = time.perf_counter()
    for _, views, _ in read_views(photos, images, views_in_testing(found.config.image), batch_size=16, workers=workers):
        found.encode_views(views)
    return len(images) / (time.perf_counter() - begin)


def indexing(model: Path, photos: Path, workers: int, gallery: Path) -> float:
    """Photos per second that are made a gallery."""
    import dpce_cli
    from dpce_cli.core.galleries.indexing import index_gallery

    found = dpce_cli.load_model(model, device="cpu")
    names = sorted(os.listdir(photos))
    found.encode_images([photos / names[0]])
    begin = time.perf_counter()
    index_gallery(gallery, [photos], found, model_source=str(model), workers=workers, reporter=Reporter())
    return len(names) / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--files", type=int, default=100_000, help="of the rescan")
    parser.add_argument("--model", type=Path, help="a folder that export --onnx wrote, 512-d: for the cold start")
    parser.add_argument("--folder", type=Path, help="where there is room for 4 GB")
    parser.add_argument("--photos", type=Path, help="a folder of photos without subfolders, to index with --model")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    fingerprint, model = "synthetic", ""
    if options.model:
        import dpce_cli

        fingerprint, model = dpce_cli.load_model(options.model).fingerprint, str(options.model.resolve())
        print(f"python -c 'import torch'   {cold_seconds([sys.executable, '-c', 'import torch']):6.2f} s")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for size in options.sizes:
            gallery = Path(folder) / "galleries" / f"{size}"
            seconds = make_gallery(gallery, size, fingerprint, model)
            print(f"{size:,} x {DIM}")
            if options.model:
                command = [sys.executable, "-m", "dpce_cli", "retrieve", "--gallery", str(size), "--query", "a dog"]
                print(f"  cold retrieve --gallery  {cold_seconds([*command, '--workspace', folder]):6.2f} s")
            for is_exact in (True, False) if size >= WORTHWHILE else (True,):
                milliseconds, mib = in_own_process(warm_searches, gallery, fingerprint, is_exact)
                kind = "exact" if is_exact else "FAISS"
                print(f"  {kind} search, p50  {milliseconds:8.1f} ms  {mib:6.0f} MiB of private memory")
            if size >= WORTHWHILE:
                print(f"  FAISS: recall@10 {recall(gallery):.4f}, index made in {seconds:.0f} s")
        if options.model and options.photos:
            bare = in_own_process(bare_loop, options.model, options.photos, options.workers)
            made = in_own_process(indexing, options.model, options.photos, options.workers, Path(folder) / "indexed")
            print(f"indexing: {made:.2f} photos/s, decoding and embedding alone: {bare:.2f}, ratio {made / bare:.2f}")
        print(f"rescan of {options.files:,} unchanged files: {rescan(Path(folder), options.files):,.0f} files/s")


if __name__ == "__main__":
    main()
