from __future__ import annotations

import errno
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dpce_cli.core.data.records import CaptionedImages
from dpce_cli.core.errors import DpceError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.scenes.canvas import PAINT, Colour
from dpce_cli.core.scenes.captions import FEWEST_WORDS, MOST_WORDS, write_captions
from dpce_cli.core.scenes.dataset import build_scenes, sample_splits
from dpce_cli.core.scenes.drawing import draw_scene
from dpce_cli.core.scenes.facts import (
    QUERY,
    QUERY_FACTS,
    Person,
    Scene,
    facts_of,
    is_true,
    sample_scene,
)

COUNTS = {"train": 12, "val": 3, "test": 5}
PLAIN = Scene(
    people=(Person("woman", "brown", "purple", "stroller", "", "left"),),
    vehicle="",
    vehicle_colour="",
    houses=1,
    house_colour="white",
    house_side="left",
    trees=0,
    sky="sunny",
)


def build(root: Path, seed: int = 3, size: int = 48) -> CaptionedImages:
    return build_scenes(root, seed=seed, counts=COUNTS, size=size, reporter=Reporter())


def pictures(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.png")}


def words(caption: str) -> list[str]:
    return re.findall(r"[a-z]+", caption)


def share_near(picture: Image.Image, colour: Colour) -> tuple[float, float]:
    """The shares of the left half and of the right half of the picture that look like the colour."""
    pixels = np.asarray(picture, dtype=np.int64)
    near = np.abs(pixels - np.array(colour)).max(axis=2) <= 16
    half = picture.width // 2
    return float(near[:, :half].mean()), float(near[:, half:].mean())


def test_the_same_arguments_give_the_same_captions_and_pictures(tmp_path: Path) -> None:
    first, second = build(tmp_path / "a"), build(tmp_path / "b")
    assert first.images == second.images
    assert pictures(tmp_path / "a") == pictures(tmp_path / "b")


def test_another_seed_gives_other_captions_and_pictures(tmp_path: Path) -> None:
    first, second = build(tmp_path / "a"), build(tmp_path / "b", seed=4)
    assert all(one.captions != other.captions for one, other in zip(first.images, second.images, strict=True))
    assert not set(pictures(tmp_path / "a").values()) & set(pictures(tmp_path / "b").values())


def test_the_order_of_the_counts_does_not_matter() -> None:
    assert sample_splits(0, {"train": 9, "test": 4}) == sample_splits(0, {"test": 4, "train": 9})


def test_finished_pictures_are_used_again_and_a_lost_one_is_drawn_again(tmp_path: Path) -> None:
    first = build(tmp_path)
    drawn = pictures(tmp_path)
    lost = tmp_path / "train/000007.png"
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png") if path != lost}
    lost.unlink()
    assert build(tmp_path) == first
    assert pictures(tmp_path) == drawn
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.parametrize("change", [{"seed": 4}, {"size": 64}])
def test_pictures_of_other_arguments_are_replaced(tmp_path: Path, change: dict[str, Any]) -> None:
    build(tmp_path / "a")
    build(tmp_path / "a", **change)
    build(tmp_path / "b", **change)
    assert pictures(tmp_path / "a") == pictures(tmp_path / "b")


def test_pictures_are_rgb_files_of_the_size_asked_for(tmp_path: Path) -> None:
    data = build(tmp_path, size=96)
    assert Counter(image.split for image in data.images) == COUNTS
    assert len({image.image_id for image in data.images}) == len(data.images)
    for image in data.images:
        with Image.open(data.root / image.path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (96, 96))


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train/000000.png").mkdir(parents=True)
    with pytest.raises(DpceError, match=r"train/000000\.png: cannot be written"):
        build(tmp_path)


def test_a_full_disk_leaves_no_partial_picture_and_the_next_call_draws_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "a", seed=4)
    save = Image.Image.save

    def fill_the_disk(self: Image.Image, path: Path, format: str) -> None:
        if "000005" in path.name:
            path.write_bytes(b"\x89PNG")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, path, format)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fill_the_disk)
        with pytest.raises(DpceError, match=r"train/000005\.png: cannot be written \(No space left"):
            build(tmp_path / "a")
    assert not list(tmp_path.rglob("*.tmp"))
    build(tmp_path / "a")
    build(tmp_path / "b")
    assert pictures(tmp_path / "a") == pictures(tmp_path / "b")


def test_no_two_scenes_of_any_splits_have_the_same_facts() -> None:
    splits = sample_splits(1, {"train": 3000, "val": 200, "test": 200})
    facts = [facts_of(scene) for scenes in splits.values() for scene in scenes]
    assert len(set(facts)) == len(facts) == 3400


def differing_values(one: Scene, other: Scene) -> list[str]:
    """The names of the attributes that differ: of the scene, and of each person by position."""
    pairs: list[tuple[Scene, Scene] | tuple[Person, Person]] = [
        (one, other),
        *zip(one.people, other.people, strict=True),
    ]
    return [
        name
        for first, second in pairs
        for name in first.__slots__
        if name != "people" and getattr(first, name) != getattr(second, name)
    ]


def test_training_scenes_are_pairs_that_differ_in_one_fact() -> None:
    train = sample_splits(0, {"train": 400})["train"]
    changes = [differing_values(one, other) for one, other in zip(train[::2], train[1::2], strict=True)]
    alone = Counter(names[0] for names in changes if len(names) == 1)
    assert alone.keys() == {
        "kind", "hair", "clothes", "item", "side", "vehicle_colour", "houses", "house_colour", "house_side", "trees",
        "sky",
    }  # fmt: skip
    for one, other, names in zip(train[::2], train[1::2], changes, strict=True):
        if len(names) > 1:
            assert len(one.people) == 2  # they changed sides
            assert {replace(person, side="") for person in one.people} == {replace(p, side="") for p in other.people}


@pytest.mark.parametrize("count", [1, 2, 200])
def test_exactly_one_test_scene_is_right_for_the_query(count: int) -> None:
    for seed in range(20):
        splits = sample_splits(seed, {"train": 30, "test": count})
        assert sum(is_true(QUERY_FACTS, facts_of(scene)) for scene in splits["test"]) == 1


def test_a_caption_states_only_what_its_words_say() -> None:
    signs = {"house": ("house",), "tree": ("tree",), "sky": ("sun", "sky", "night", "moon", "rain", "snow")}
    for seed in range(200):
        rng = random.Random(seed)
        for caption in write_captions(sample_scene(rng), rng):
            for what in {value for thing in caption.facts for name, value in thing if name == "what"} & signs.keys():
                assert any(sign in caption.text for sign in signs[what]), caption


def test_the_query_is_a_possible_caption_of_its_scene() -> None:
    answer = sample_scene(random.Random(0), {"kind": "woman", "hair": "blonde", "clothes": "blue", "action": "hail"})
    texts = [caption.text for seed in range(100) for caption in write_captions(answer, random.Random(seed))]
    assert any(text.startswith(QUERY) for text in texts)
    assert is_true(QUERY_FACTS, facts_of(answer))
    for change in ({"hair": "red"}, {"clothes": "white"}, {"kind": "man"}, {"action": "bag", "item": "red"}):
        other = replace(answer, people=tuple(replace(person, **change) for person in answer.people))
        assert not is_true(QUERY_FACTS, facts_of(other))


def test_the_training_vocabulary_is_small_and_has_the_words_of_the_query() -> None:
    captions = [
        caption
        for index, scene in enumerate(sample_splits(0, {"train": 600})["train"])
        for caption in write_captions(scene, random.Random(index))
    ]
    counts = Counter(word for caption in captions for word in words(caption.text))
    assert 80 <= len(counts) <= 250
    assert min(counts.values()) >= 20
    assert set(words(QUERY)) <= set(counts)
    assert sum(len(caption.text.split()) <= 16 for caption in captions) >= len(captions) / 5


@pytest.mark.parametrize("seed", [0, 1])
def test_a_caption_is_true_of_one_picture_among_200(seed: int) -> None:
    scenes = sample_splits(seed, {"test": 200})["test"]
    gallery = [facts_of(scene) for scene in scenes]
    matches = []
    for index, scene in enumerate(scenes):
        for caption in write_captions(scene, random.Random(index)):
            assert is_true(caption.facts, gallery[index]), caption
            matches.append(sum(is_true(caption.facts, facts) for facts in gallery))
    assert matches.count(1) / len(matches) >= 0.95


def test_five_captions_differ_and_have_a_natural_length() -> None:
    for index, scene in enumerate(sample_splits(2, {"train": 500})["train"]):
        texts = [caption.text for caption in write_captions(scene, random.Random(index))]
        assert len(set(texts)) == 5
        for text in texts:
            assert FEWEST_WORDS <= len(text.split()) <= MOST_WORDS
            assert len(words(text)) <= 30
            assert re.fullmatch(r"[a-z]+(?:,? [a-z]+|-[a-z]+)*", text), text
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text


@pytest.mark.parametrize("side", ["left", "right"])
def test_people_stand_on_the_side_that_their_facts_name(side: str) -> None:
    for seed in range(20):
        person = replace(PLAIN.people[0], side=side)
        picture = draw_scene(replace(PLAIN, people=(person,)), 96, random.Random(seed))
        left, right = share_near(picture, PAINT["purple"])
        here, there = (left, right) if side == "left" else (right, left)
        assert here > 0.03
        assert there == 0


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("vehicle", ["car", "bus"])
def test_a_vehicle_stands_opposite_a_single_person(side: str, vehicle: str) -> None:
    people = (replace(PLAIN.people[0], side=side),)
    for seed in range(20):
        scene = replace(PLAIN, people=people, vehicle=vehicle, vehicle_colour="blue")
        left, right = share_near(draw_scene(scene, 96, random.Random(seed)), PAINT["blue"])
        assert scene.vehicle_side != side
        here, there = (left, right) if scene.vehicle_side == "left" else (right, left)
        assert here > 0.03
        assert there < here / 10


@pytest.mark.parametrize("side", ["left", "right"])
def test_houses_stand_on_the_side_that_their_facts_name(side: str) -> None:
    for houses in (1, 2):
        for seed in range(10):
            scene = replace(PLAIN, houses=houses, house_colour="red", house_side=side)
            left, right = share_near(draw_scene(scene, 96, random.Random(seed)), PAINT["red"])
            here, there = (left, right) if side == "left" else (right, left)
            assert here > 0.03
            assert there < here / 10


def test_more_trees_are_more_green_opposite_the_houses() -> None:
    def green(trees: int) -> float:
        picture = draw_scene(replace(PLAIN, trees=trees), 96, random.Random(5)).crop((48, 0, 96, 48))
        red, green, blue = np.moveaxis(np.asarray(picture, dtype=np.int64), 2, 0)
        return float(((green > red + 30) & (green > blue + 30)).mean())

    assert green(0) < green(1) < green(2) < green(3)


def test_each_colour_of_clothes_and_each_sky_changes_the_picture() -> None:
    variants = [replace(PLAIN, people=(replace(PLAIN.people[0], clothes=colour),)) for colour in ("red", "green")]
    variants += [replace(PLAIN, sky=sky) for sky in ("sunny", "sunset", "night", "rain", "snow")]
    drawn = [np.asarray(draw_scene(scene, 96, random.Random(1)), dtype=np.float64) for scene in variants]
    for index, one in enumerate(drawn):
        for other in drawn[:index]:
            assert np.abs(one - other).mean() > 2
