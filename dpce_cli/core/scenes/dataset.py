"""The built-in data set, which needs no download: cartoon street scenes that differ in colours, numbers and sides."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpce_cli import __version__
from dpce_cli.core.data.records import SPLITS, CaptionedImage, CaptionedImages
from dpce_cli.core.progress import Reporter
from dpce_cli.core.scenes.captions import write_captions
from dpce_cli.core.scenes.drawing import draw_scene
from dpce_cli.core.scenes.facts import (
    QUERY_FACTS,
    QUERY_PERSON,
    Facts,
    Scene,
    change_one_fact,
    facts_of,
    is_true,
    sample_scene,
)
from dpce_cli.core.storage.files import replacing, write_json

SIZE = 96
"""Side of a picture in pixels."""


def draw_scenes(parent: Path, *, train_images: int, test_images: int, seed: int, reporter: Reporter) -> CaptionedImages:
    """The data set of `prepare-vocab scenes`, with `test_images` pictures each for validation and testing.

    The pictures are in a folder of `parent` whose name depends on the arguments, so pictures of other arguments stay.
    See `build_scenes`.
    """
    counts = {"train": train_images, "val": test_images, "test": test_images}
    digest = hashlib.sha256(json.dumps(_origin(seed, counts, SIZE)).encode()).hexdigest()
    root = parent / f"photos-{digest[:12]}"
    return replace(build_scenes(root, seed=seed, counts=counts, size=SIZE, reporter=reporter), source=parent)


def build_scenes(root: Path, *, seed: int, counts: Mapping[str, int], size: int, reporter: Reporter) -> CaptionedImages:
    """Draw `counts[split]` PNG pictures of `size` by `size` pixels in the folder `root`, with five captions each.

    The same arguments give the same captions and pictures. All scenes have different facts, so no scene is in two
    splits. Exactly one test scene is right for `facts.QUERY`. If an earlier call with the same arguments finished, its
    pictures are used again.

    Raises:
        WorkspaceError: the pictures cannot be written.
    """
    stamp = root / "scenes.json"
    origin = _origin(seed, counts, size)
    finished = _read(stamp) == origin
    if not finished:
        write_json(stamp, {})
    images = []
    with reporter.track("Drawing scenes", sum(counts.values())) as advance:
        for split, scenes in sample_splits(seed, counts).items():
            for index, scene in enumerate(scenes):
                image_id = f"{split}/{index:06d}"
                path = root / f"{image_id}.png"
                rng = random.Random(f"{seed} {image_id}")
                captions = write_captions(scene, rng)
                if not (finished and path.is_file()):
                    with replacing(path) as temporary:
                        draw_scene(scene, size, rng).save(temporary, "PNG")
                images.append(
                    CaptionedImage(
                        image_id=image_id,
                        path=f"{image_id}.png",
                        split=split,
                        captions=tuple(caption.text for caption in captions),
                    )
                )
                advance()
    if not finished:
        write_json(stamp, origin)
    return CaptionedImages(name="scenes", root=root, images=tuple(images))


def _origin(seed: int, counts: Mapping[str, int], size: int) -> dict[str, Any]:
    return {"seed": seed, "counts": dict(counts), "size": size, "version": __version__}


def sample_splits(seed: int, counts: Mapping[str, int]) -> dict[str, list[Scene]]:
    """Sample scenes that all have different facts; exactly one scene of the test split is right for the query.

    Training scenes come in pairs that differ in one fact, so that no fact can be left out to tell all scenes apart.
    """
    rng = random.Random(f"{seed} scenes")
    seen: set[Facts] = set()
    splits: dict[str, list[Scene]] = {}
    for split in (split for split in SPLITS if split in counts):
        count = counts[split]
        answer = rng.randrange(count) if split == "test" and count else None
        splits[split] = []
        while len(splits[split]) < count:
            is_answer = len(splits[split]) == answer
            if split == "train" and len(splits[split]) % 2:
                scene = change_one_fact(splits[split][-1], rng)
            else:
                scene = sample_scene(rng, QUERY_PERSON if is_answer else None)
            facts = facts_of(scene)
            if facts in seen or (split == "test" and is_true(QUERY_FACTS, facts) != is_answer):
                continue
            seen.add(facts)
            splits[split].append(scene)
    return splits


def _read(stamp: Path) -> Any:
    try:
        return json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
