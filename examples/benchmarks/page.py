#!/usr/bin/env python3
"""The page of `dpce serve`: time of searches one after another and at once, in galleries of synthetic embeddings."""

from __future__ import annotations

import argparse
import http.client
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import numpy as np

import dpce_cli
from galleries import make_gallery

SEARCHES = 100


@contextmanager
def served(workspace: Path) -> Iterator[str]:
    """Runs `dpce serve`; gives the host and port."""
    command = [sys.executable, "-m", "dpce_cli", "serve", "--workspace", str(workspace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        try:
            yield urlsplit(server.stdout.readline().split()[0]).netloc
        finally:
            server.kill()


def milliseconds(host: str, gallery: str, text: str) -> float:
    """Of one search for as many results as the page shows first, on a new connection."""
    begin = time.perf_counter()
    connection = http.client.HTTPConnection(host, timeout=120)
    connection.request("GET", "/search?" + urlencode({"gallery": gallery, "text": text, "count": 60}))
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    assert answer.status == 200, content.decode()
    return 1000 * (time.perf_counter() - begin)


def at_once(host: str, gallery: str, sentences: list[str]) -> list[float]:
    """Milliseconds of each search, all sent at the same time."""
    start = threading.Barrier(len(sentences))

    def search(text: str) -> float:
        start.wait()
        return milliseconds(host, gallery, text)

    with ThreadPoolExecutor(len(sentences)) as pool:
        return list(pool.map(search, sentences))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("model", type=Path, help="a folder that dpce export wrote")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 100_000])
    options = parser.parse_args()
    model = dpce_cli.load_model(options.model)
    words = np.random.default_rng(0).choice(model.vocabulary.words, (SEARCHES, 4))
    sentences = [" ".join(four) for four in words]
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            made = Path(folder) / "galleries" / f"{size}"
            make_gallery(made, size, model.fingerprint, str(options.model.resolve()), model.dim)
        with served(Path(folder)) as host:
            for size in options.sizes:
                milliseconds(host, f"{size}", sentences[0])
                one_by_one = [milliseconds(host, f"{size}", text) for text in sentences]
                together = at_once(host, f"{size}", sentences)
                for what, times in (("one after another", one_by_one), (f"{SEARCHES} at once", together)):
                    p50, p95 = np.percentile(times, [50, 95])
                    print(f"{size:>9,} x {model.dim}  {what:17}  p50 {p50:7.1f} ms  p95 {p95:7.1f} ms")


if __name__ == "__main__":
    main()
