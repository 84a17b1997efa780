from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from dpce_cli.core.data.readers.annotations import ListedImage, found_images, read_json
from dpce_cli.core.data.readers.reading import Skips
from dpce_cli.core.errors import DataError


def test_only_the_keys_that_are_asked_for_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('\ufeff{"a": [{"b": 1, "c": 2}], "c": {}}', encoding="utf-8")
    assert read_json(tmp_path / "a.json", frozenset("ab")) == {"a": [{"b": 1}]}


def test_a_large_file_takes_little_more_memory_than_its_text(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    image = {"raw": "A dog .", "tokens": ["a", "dog"] * 50, "flickr_url": "http://" + "x" * 500}
    path.write_text(json.dumps({"images": [image] * 8000}))
    size = path.stat().st_size
    assert size > 8e6
    tracemalloc.start()
    data = read_json(path, frozenset({"images", "raw"}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data["images"]) == 8000
    assert peak < 2.5 * size  # bytes and text of the file, while it is decoded


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n"b', r"a\.json:2: incomplete or damaged JSON .*; fix the file or download it again"),
        ("", r"a\.json:1: incomplete or damaged JSON"),
        ("[" * 50_000, r"a\.json: not usable JSON"),
        ("9" * 10_000, r"a\.json: not usable JSON"),
        ("[" + "[]," * 60_000 + "{}]", r"a\.json: holds more than 60,000 lists and objects; restore"),
    ],
)
def test_what_is_no_usable_json_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setattr("dpce_cli.core.data.readers.annotations._MOST_RECORDS", 60_000)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_json(tmp_path / "a.json", frozenset())


def test_images_keep_the_order_of_the_list(tmp_path: Path) -> None:
    listed = [
        ListedImage(image_id=name, path=f"{name}.jpg", split="test", captions=("x",), where=f"f:{name}")
        for name in ("c", "a", "b")
    ]
    files = {"a.jpg", "b.jpg", "c.jpg", "unlisted.jpg"}
    data = found_images("x", tmp_path, listed, files=files, place="here", skips=Skips())
    assert [image.image_id for image in data.images] == ["c", "a", "b"]
    assert data.skipped == ()
