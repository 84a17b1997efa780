from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from dpce_cli.core.errors import DataError
from dpce_cli.core.scenes.captions import write_captions
from dpce_cli.core.scenes.dataset import sample_splits
from dpce_cli.core.text.details import read_details


def test_the_words_of_dpce_are_read() -> None:
    kinds = read_details("english")
    assert kinds["left or right"] == [["left", "right"]]
    assert kinds["man or woman"] == [["man", "woman"], ["men", "women"]]


def test_every_detail_of_the_scenes_is_a_word_of_their_captions() -> None:
    scenes = sample_splits(0, {"train": 300})["train"]
    captions = [caption.text for i, scene in enumerate(scenes) for caption in write_captions(scene, random.Random(i))]
    written = set(re.findall("[a-z]+", " ".join(captions)))
    assert {word for groups in read_details("scenes").values() for group in groups for word in group} <= written


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "cannot be read as TOML"),
        (b"colour = [", "cannot be read as TOML"),
        (b"\xff", "cannot be read as TOML"),
        (b'colour = "red blue"', "colour: give a list of strings"),
        (b"colour = [1, 2]", "colour: give a list of strings"),
        (b"[colour]\nred = 1", "colour: give a list of strings"),
        (b'colour = ["red"]', "colour: give at least two words"),
        (b'colour = ["red blue", "blue green"]', "each word once"),
    ],
)
def test_a_file_that_is_no_list_of_words_is_refused(tmp_path: Path, text: bytes | None, fault: str) -> None:
    path = tmp_path / "details.toml"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(DataError, match=f"details.toml: .*{fault}"):
        read_details(str(path))
