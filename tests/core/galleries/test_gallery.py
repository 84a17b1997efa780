from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpce_cli.core.errors import QueryError, WorkspaceError
from dpce_cli.core.galleries import gallery as module
from dpce_cli.core.galleries.catalogue import About, Catalogue, Found, make_current
from dpce_cli.core.galleries.gallery import Gallery, change_model, recorded_model
from dpce_cli.core.galleries.overview import gallery_states
from dpce_cli.core.retrieval.combining import Term
from dpce_cli.core.retrieval.hits import Filters
from dpce_cli.core.retrieval.hubness import Bank
from dpce_cli.core.retrieval.relevance import Relevances
from tests.core.galleries.conftest import ColourModel, Place


def opened(place: Place, **filters: object) -> Gallery:
    return Gallery(place.gallery, place.model.as_model(), Filters(**filters))  # type: ignore[arg-type]


def found(place: Place, query: str | Path = "red", top_k: int = 10, **filters: object) -> list[str]:
    root = place.photos
    return [str(Path(hit.path).relative_to(root)) for hit in opened(place, **filters).search(query, top_k)]


def taken(place: Place, name: str, colour: tuple[int, int, int], when: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = when
    place.add(name, colour, exif=exif)


def test_sentences_and_photos_rank_photos(place: Place) -> None:
    place.add("red.png", (255, 0, 0))
    place.add("orange.png", (255, 128, 0))
    blue = place.add("blue.png", (0, 0, 255))
    place.index()

    assert found(place) == ["red.png", "orange.png", "blue.png"]
    assert found(place, blue, top_k=1) == ["blue.png"]
    hit = opened(place).search("red")[1]
    assert (hit.rank, hit.path, hit.caption, hit.date) == (2, str(place.photos / "orange.png"), "", None)
    assert hit.score == pytest.approx(255 / np.hypot(255, 128))


def test_photos_and_sentences_find_sentences(place: Place) -> None:
    text = place.photos / "labels.txt"
    text.write_text("a red car\na blue car\n")
    place.index(text)

    hits = opened(place).search(place.add("blue.png", (0, 0, 255)), 1)
    assert [(hit.caption, hit.path) for hit in hits] == [("a blue car", str(text))]
    assert [hit.caption for hit in opened(place).search("red")] == ["a red car", "a blue car"]


BANK = Bank(image_embeddings=torch.eye(3)[:1], text_embeddings=torch.eye(3)[:1])
"""Of red photos and captions."""


def test_hubs_are_corrected_between_photos_and_sentences_only(place: Place) -> None:
    red, orange = place.add("red.png", (255, 0, 0)), place.add("orange.png", (255, 128, 0))
    place.model = ColourModel(bank=BANK)
    place.index()

    by_sentence = {Path(hit.path): hit.score for hit in opened(place).search("red")}
    cosine = 255 / np.hypot(255, 128)
    assert by_sentence == {red: pytest.approx(1 - 1 / 2), orange: pytest.approx(cosine - cosine / 2)}
    by_photo = {Path(hit.path): hit.score for hit in opened(place).search(red)}
    assert by_photo == {red: pytest.approx(1), orange: pytest.approx(cosine)}
    by_vector = {Path(hit.path): hit.score for hit in opened(place).search(np.array([1, 0, 0], np.float32))}
    assert by_vector == by_photo


def test_hubs_are_corrected_among_sentences_for_photos(place: Place) -> None:
    text = place.photos / "labels.txt"
    text.write_text("a red car\na red blue car\n")
    place.model = ColourModel(bank=BANK)
    place.index(text)

    by_photo = [hit.score for hit in opened(place).search(place.add("red.png", (255, 0, 0)))]
    assert by_photo == pytest.approx([1 - 1 / 2, (1 - 1 / 2) / np.sqrt(2)])
    assert [hit.score for hit in opened(place).search("red")] == pytest.approx([1, 1 / np.sqrt(2)])


def test_terms_rank_by_the_similarity_to_the_weighted_sum(place: Place) -> None:
    colours = {
        "red.png": (255, 0, 0),
        "purple.png": (255, 0, 255),
        "orange.png": (255, 128, 0),
        "blue.png": (0, 0, 255),
    }
    red, *_ = [place.add(name, colour) for name, colour in colours.items()]
    place.index()

    def check(query: str | Path, terms: list[Term], combined: tuple[float, float, float], first: str) -> None:
        scores = {
            name: np.dot(colour, combined) / np.linalg.norm(colour) / np.linalg.norm(combined)
            for name, colour in colours.items()
        }
        hits = opened(place).search(query, terms=terms)
        assert [Path(hit.path).name for hit in hits] == sorted(colours, key=lambda name: -scores[name])
        assert [hit.score for hit in hits] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-6)
        assert Path(hits[0].path).name == first

    check("red", [Term(what="green")], (1, 1, 0), "orange.png")
    check("red", [Term(what="blue", weight=3.0)], (1, 0, 3), "blue.png")
    check("red blue", [Term(what="blue", is_minus=True)], (0.5**0.5, 0, 0.5**0.5 - 0.5), "red.png")
    check(red, [Term(what="blue")], (1, 0, 2), "purple.png")


def test_relevance_is_told_between_photos_and_sentences_where_hubs_are_corrected(place: Place) -> None:
    red = place.add("red.png", (255, 0, 0))
    curves = {"text_to_image": {"slope": 4.0, "intercept": -1.0}, "image_to_text": {"slope": 1.0, "intercept": 0.0}}
    place.model.relevances = Relevances.from_dict(curves)
    place.index()
    assert opened(place).search("red")[0].relevance is None

    place.model = ColourModel(bank=BANK)
    place.model.relevances = Relevances.from_dict(curves)
    place.index(rebuild=True)
    assert opened(place).search("red")[0].relevance == pytest.approx(1 / (1 + np.exp(-(4 * 0.5 - 1))))
    assert opened(place).search(red)[0].relevance is None


def test_a_gallery_goes_on_with_or_without_the_correction_that_it_began_with(place: Place) -> None:
    red = place.add("red.png", (255, 0, 0))
    place.index()
    place.add("green.png", (0, 255, 0))
    place.index(model=ColourModel(bank=BANK))
    assert [hit.score for hit in opened(place).search("red")] == pytest.approx([1, 0])

    place.index(model=ColourModel(bank=BANK), rebuild=True)
    assert opened(place).search("red")[0].score == pytest.approx(1 / 2)
    place.add("blue.png", (0, 0, 255))
    with pytest.raises(WorkspaceError, match="this gallery corrects hubs, but its model has no bank any more"):
        place.index()
    assert found(place) == [red.name, "green.png"]


def test_results_are_those_of_a_complete_sort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 100)
    rows = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    rows[7] = rows[3]
    rows[11] = np.nan  # damaged
    with closing(
        Catalogue.create(tmp_path / "generation-1", About("photos", 4, "colours", "", "m", False))
    ) as catalogue:
        root = catalogue.add_root(Path("/photos"))
        with catalogue.transaction():
            for number in range(1000):
                catalogue.put(root, Found(f"{number:03}".encode(), 1, 1), f"{number}".encode(), None)
        catalogue.append(range(1, 1001), rows)
    make_current(tmp_path / "generation-1")
    vector = rows[3, :3]
    scores = np.nan_to_num(rows[:, :3] @ vector, nan=-np.inf)
    hits = Gallery(tmp_path, ColourModel().as_model()).search(vector, 1000)

    expected = np.argsort(-scores, kind="stable")
    assert [int(hit.path[-3:]) for hit in hits] == expected.tolist()


def test_under_since_and_until(place: Place) -> None:
    taken(place, "a/1.jpg", (255, 0, 0), "2023:12:31 23:59:59")
    taken(place, "a/b/2.jpg", (255, 50, 0), "2024:01:01 00:00:00")
    taken(place, "ab/3.jpg", (255, 100, 0), "2024:06:30 12:00:00")
    place.add("4.jpg", (255, 150, 0))
    taken(place, "5.jpg", (255, 200, 0), "0000:00:00 00:00:00")
    place.index()

    assert found(place) == ["a/1.jpg", "a/b/2.jpg", "ab/3.jpg", "4.jpg", "5.jpg"]
    assert found(place, under=place.photos / "a") == ["a/1.jpg", "a/b/2.jpg"]
    assert len(found(place, under=place.photos.parent)) == 5
    assert found(place, since=date(2024, 1, 1)) == ["a/b/2.jpg", "ab/3.jpg"]
    assert found(place, until=date(2023, 12, 31)) == ["a/1.jpg"]
    assert found(place, until=date(2024, 1, 1), under=place.photos / "a/b") == ["a/b/2.jpg"]
    assert opened(place).search("red")[0].date == "2023-12-31T23:59:59"
    with pytest.raises(QueryError, match="the gallery has nothing there"):
        found(place, under=place.photos.parent / "elsewhere")


def test_near_duplicates_are_shown_once(place: Place) -> None:
    place.add("1.png", (255, 0, 0))
    place.add("copy.png", (255, 0, 0))
    place.add("near.png", (255, 20, 0))
    place.add("other.png", (255, 120, 0))
    place.index()

    assert found(place) == ["1.png", "copy.png", "near.png", "other.png"]
    assert found(place, unique=True) == ["1.png", "other.png"]


def test_a_gallery_that_is_being_indexed_can_be_searched(place: Place) -> None:
    place.add("1.png")
    place.index()
    searched = opened(place)
    with closing(Catalogue(place.gallery / "generation-1", writable=True)) as writer, writer.transaction() as database:
        database.execute("DELETE FROM items")
        assert len(searched.search("red")) == 1
    assert searched.search("red") == []
    place.index()
    assert len(searched.search("red")) == 1


def test_a_search_goes_on_with_the_gallery_that_has_replaced_another(place: Place) -> None:
    place.add("1.png")
    place.index()
    searched = opened(place)
    searched.search("red")
    place.add("2.png")
    place.index(rebuild=True)

    assert len(searched.search("red")) == 2


def test_damaged_rows_are_not_shown(place: Place) -> None:
    place.add("1.png")
    place.add("2.png", (200, 90, 0))
    place.index()
    rows = np.memmap(place.gallery / "generation-1" / "embeddings.f32", np.float32, "r+", shape=(2, 3))
    rows[0] *= 5
    rows.flush()

    assert found(place) == ["2.png"]


def test_a_gallery_of_another_model_or_name_is_refused(place: Place) -> None:
    place.add("1.png")
    place.index(model_source="/models/dogs")
    assert recorded_model(place.gallery) == "/models/dogs"
    with pytest.raises(WorkspaceError, match=r"was made with another model \(model colours\) than model other"):
        Gallery(place.gallery, ColourModel("other").as_model())
    with pytest.raises(
        WorkspaceError, match="there is no such gallery; 'dpce index FOLDER' makes one; there are: photos"
    ):
        Gallery(place.gallery.with_name("nosuch"), place.model.as_model())
    with pytest.raises(QueryError, match="--top-k 0"):
        opened(place).search("red", 0)


def test_a_model_that_only_adds_words_searches_the_gallery_and_can_take_it_over(place: Place) -> None:
    place.add("1.png")
    place.index()
    taught = ColourModel("taught")
    taught.extends = ("colours",)
    before = opened(place).search("red")
    assert Gallery(place.gallery, taught.as_model()).search("red") == before

    with pytest.raises(WorkspaceError, match="got another model in the meantime"):
        change_model(place.gallery, "others", taught.as_model(), "/models/taught")
    change_model(place.gallery, "colours", taught.as_model(), "/models/taught")
    assert recorded_model(place.gallery) == "/models/taught"
    assert Gallery(place.gallery, taught.as_model()).search("red") == before
    with pytest.raises(WorkspaceError, match="was made with another model"):
        opened(place)
    assert place.index(model=taught).counts == {"gone": 0}
    with pytest.raises(WorkspaceError, match="there is no such gallery"):
        change_model(place.gallery.with_name("nosuch"), "colours", taught.as_model(), "")


def test_the_overview_counts_items_and_names_problems(place: Place) -> None:
    place.add("1.png")
    (place.photos / "2.png").touch()
    place.index()
    (state,) = gallery_states(place.gallery.parent)

    assert (state.name, state.kind, state.items, state.pending) == ("photos", "photos", 1, 0)
    assert [path for path, _ in state.problems] == [str(place.photos / "2.png")]
    assert state.size == sum(file.stat().st_size for file in place.gallery.rglob("*") if file.is_file())


def test_search_imports_no_torch() -> None:
    code = "import sys, dpce_cli.core.galleries.gallery; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
