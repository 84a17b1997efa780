from __future__ import annotations

from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from dpce_cli.core.galleries import approximate, gallery
from dpce_cli.core.galleries.approximate import FILE, nearest, open_index, update_index
from dpce_cli.core.galleries.catalogue import About, Catalogue, Found, Rows, make_current
from dpce_cli.core.galleries.gallery import Gallery
from dpce_cli.core.progress import Reporter
from tests.core.galleries.conftest import ColourModel

pytest.importorskip("faiss")
ROWS, DIM = 6000, 32


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gallery of random clusters that counts as a large one."""
    for module in (approximate, gallery):
        monkeypatch.setattr(module, "WORTHWHILE", 1000)
    folder = tmp_path / "generation-1"
    with closing(Catalogue.create(folder, About("photos", DIM + 1, "colours", "", "m", False))) as catalogue:
        add(catalogue, clusters(ROWS))
    make_current(folder)
    return tmp_path


def clusters(count: int, seed: int = 0) -> Rows:
    random = np.random.default_rng(seed)
    rows = np.random.default_rng(0).normal(size=(100, DIM))[random.integers(0, 100, count)]
    rows = rows + 0.5 * random.normal(size=(count, DIM))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def add(catalogue: Catalogue, rows: Rows) -> None:
    root, first = catalogue.add_root(Path("/photos")), catalogue.row_count()
    numbers = range(first, first + len(rows))
    with catalogue.transaction():
        for number in numbers:
            catalogue.put(root, Found(f"{number:05}".encode(), 1, 1), f"{number}".encode(), None)
    catalogue.append([number + 1 for number in numbers], np.pad(rows, ((0, 0), (0, 1))))


def index(folder: Path) -> Rows:
    with closing(Catalogue(folder / "generation-1")) as catalogue:
        rows = catalogue.embeddings(catalogue.row_count())
        update_index(folder / "generation-1", rows, Reporter())
    return rows


def numbers(folder: Path, vector: Rows, top_k: int = 10) -> list[int]:
    hits = Gallery(folder, ColourModel().as_model()).search(vector, top_k)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    return [int(Path(hit.path).name) for hit in hits]


def test_nearly_all_of_the_ten_nearest_are_found(large: Path) -> None:
    rows = index(large)
    queries = clusters(50, seed=1)
    with patch.object(gallery, "_ranked", side_effect=AssertionError):
        answers = [numbers(large, query) for query in queries]
    exact = [np.argsort(-(rows[:, :-1] @ query), kind="stable")[:10] for query in queries]

    assert np.mean([len({*a} & {*e.tolist()}) / 10 for a, e in zip(answers, exact, strict=True)]) >= 0.98


def test_harder_rows_have_searches_look_into_more_lists(large: Path) -> None:
    index(large)
    easy = open_index(large / "generation-1")
    hard = np.random.default_rng(5).normal(size=(ROWS, DIM + 1)).astype(np.float32)
    (large / "hard").mkdir()
    update_index(large / "hard", hard, Reporter())
    made = open_index(large / "hard")

    assert easy is not None
    assert made is not None
    assert easy.nprobe < made.nprobe
    found = [{row for row, _ in nearest(made, hard, query, 256)[:10]} for query in hard[:100]]
    exact = [{*np.argsort(-(hard @ query), kind="stable")[:10].tolist()} for query in hard[:100]]
    assert np.mean([len(a & b) / 10 for a, b in zip(found, exact, strict=True)]) >= 0.98


def test_rows_that_were_added_since_are_found_and_many_of_them_have_the_index_made_again(large: Path) -> None:
    index(large)
    before = (large / "generation-1" / FILE).stat().st_mtime_ns
    query = clusters(1, seed=3)[0]
    with closing(Catalogue(large / "generation-1", writable=True)) as catalogue:
        add(catalogue, query[None])
        assert numbers(large, query, 1) == [ROWS]
        index(large)
        assert (large / "generation-1" / FILE).stat().st_mtime_ns == before
        add(catalogue, clusters(1000, seed=4))
    index(large)
    made = open_index(large / "generation-1")
    assert made is not None
    assert made.ntotal == ROWS + 1001
    # a search that sees an older state of the catalogue
    older = index(large)[:ROWS]
    assert all(row < ROWS for row, _ in nearest(made, older, np.append(query, np.float32(0)), 50))


def test_where_the_index_is_missing_or_damaged_or_too_much_is_gone_the_search_is_exact(large: Path) -> None:
    query = clusters(1, seed=3)[0]
    exact = numbers(large, query, 20)
    index(large)
    assert numbers(large, query, 20) == exact
    with closing(Catalogue(large / "generation-1", writable=True)) as catalogue:
        order = np.argsort(-(catalogue.embeddings(ROWS)[:, :-1] @ query), kind="stable")
        catalogue.drop(1, [f"{number:05}".encode() for number in order[:300]])
    assert numbers(large, query, 20) == order[300:320].tolist()
    (large / "generation-1" / FILE).write_bytes(b"no index")
    assert numbers(large, query, 20) == order[300:320].tolist()
    index(large)
    assert open_index(large / "generation-1") is not None
