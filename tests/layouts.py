"""Small data sets laid out as their publishers do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from dpce_cli.core.data.records import CaptionedImages

COUNTS = {"train": 4, "restval": 1, "val": 2, "test": 2}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def numbered(counts: Mapping[str, int] = COUNTS) -> Iterator[tuple[int, str]]:
    """Image numbers from 1, with their splits."""
    splits = [split for split, count in counts.items() for _ in range(count)]
    yield from enumerate(splits, start=1)


def texts(number: int) -> list[str]:
    return [f"Caption {k} of {number} ." for k in range(2)]


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def coco_name(number: int, split: str, year: str = "2014") -> str:
    """Folder and name of a photo; train images lie in the folder train, the others in val."""
    part = "train" if split == "train" else "val"
    return f"{part}{year}/" + (f"COCO_{part}2014_{number:012}.jpg" if year == "2014" else f"{number:012}.jpg")


def make_coco(root: Path, year: str = "2014") -> Path:
    karpathy = []
    official: dict[str, dict[str, list[Any]]] = {
        part: {"images": [], "annotations": [], "licenses": []} for part in ("train", "val")
    }
    for number, split in numbered():
        touch(root / coco_name(number, split, year))
        folder, name = coco_name(number, split).split("/")
        karpathy.append(
            {
                "filepath": folder,
                "filename": name,
                "cocoid": number,
                "split": split,
                "sentids": [10 * number, 10 * number + 1],
                "sentences": [{"raw": text, "tokens": text.split()} for text in texts(number)],
            }
        )
        part = official[folder.removesuffix("2014")]
        file_name = coco_name(number, split, year).partition("/")[2]
        part["images"].append({"id": number, "file_name": file_name, "height": 480, "flickr_url": "http://"})
        part["annotations"] += [
            {"id": 10 * number + k, "image_id": number, "caption": text} for k, text in enumerate(texts(number))
        ]
    write_json(root / "dataset_coco.json", {"dataset": "coco", "images": karpathy})
    for part_name, content in official.items():
        write_json(root / "annotations" / f"captions_{part_name}{year}.json", content)
    return root


def make_flickr30k(root: Path, photos: str = "flickr30k-images") -> Path:
    karpathy, tokens, table = [], [], ["image_name| comment_number| comment"]
    for number, split in numbered():
        if split == "restval":
            continue
        name = f"{number}.jpg"
        touch(root / photos / name)
        karpathy.append({"filename": name, "split": split, "sentences": [{"raw": text} for text in texts(number)]})
        for k, text in enumerate(texts(number)):
            tokens.append(f"{name}#{k}\t{text}")
            table.append(f"{name}| {k}| {text}")
    write_json(root / "dataset_flickr30k.json", {"dataset": "flickr30k", "images": karpathy})
    (root / "results_20130124.token").write_text("\n".join(tokens) + "\n")
    (root / "results.csv").write_text("\n".join(table) + "\n")
    (root / "Flickr_8k.devImages.txt").write_text("6_abc.jpg\n7_def.jpg\n")
    (root / "Flickr_8k.testImages.txt").write_text("8_0123.jpg\n9_4567.jpg\n")
    return root


def make_cuhk_pedes(root: Path) -> Path:
    """Two photos of each person."""
    records = []
    for number, split in numbered({"train": 4, "val": 2, "test": 2}):
        for camera in (1, 2):
            path = f"CUHK0{camera}/{number:04}.png"
            touch(root / "imgs" / path)
            records.append({"id": number, "file_path": path, "split": split, "captions": texts(10 * number + camera)})
    write_json(root / "reid_raw.json", records)
    return root


def lay_out_scenes(root: Path, scenes: CaptionedImages, dataset: str) -> None:
    """The pictures and captions of `scenes` as `dataset` is published; two neighbouring scenes are one person."""
    listed: list[dict[str, Any]] = []
    for number, image in enumerate(scenes.images, start=1):
        sentences = [{"raw": caption} for caption in image.captions]
        match dataset:
            case "coco":
                photo = coco_name(number, image.split)
                folder, name = photo.split("/")
                listed.append({"filepath": folder, "filename": name, "cocoid": number, "sentences": sentences})
            case "flickr30k":
                photo = f"flickr30k-images/{number}.jpg"
                listed.append({"filename": f"{number}.jpg", "sentences": sentences})
            case _:
                name, person = f"CUHK03/{number}.png", (number - 1) // 2
                photo = f"imgs/{name}"
                listed.append({"id": person, "file_path": name, "captions": image.captions})
        listed[-1]["split"] = image.split
        (root / photo).parent.mkdir(parents=True, exist_ok=True)
        if photo.endswith(".png"):
            shutil.copyfile(scenes.root / image.path, root / photo)
        else:
            Image.open(scenes.root / image.path).save(root / photo)
    if dataset == "cuhk-pedes":
        write_json(root / "reid_raw.json", listed)
    else:
        write_json(root / f"dataset_{dataset}.json", {"dataset": dataset, "images": listed})
