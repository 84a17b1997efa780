from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dpce_cli.core.config import Config
from dpce_cli.core.data.records import CaptionedImage, CaptionedImages
from dpce_cli.core.errors import DataError, VocabularyError
from dpce_cli.core.presets import build_preset
from dpce_cli.core.progress import Reporter
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.preparation import SplitSummary, prepare_dataset
from dpce_cli.core.workspace.workspace import Workspace


def _config(*settings: str) -> Config:
    return build_preset("scenes").with_settings(["model.word_dim=5", *settings])


def _image(name: str, split: str, *captions: str) -> CaptionedImage:
    return CaptionedImage(image_id=name, path=f"{name}.png", split=split, captions=captions)


IMAGES = (
    _image("a", "train", "A red dog.", "the RED dog"),
    _image("b", "train", "a dog and a cat"),
    _image("c", "val", "a red zebra, a dog"),
)


def prepare_own(
    folder: Path, images: Sequence[CaptionedImage] = IMAGES, config: Config | None = None
) -> tuple[PreparedDataset, list[SplitSummary]]:
    captioned = CaptionedImages(name="own", root=folder / "photos", images=tuple(images))
    return prepare_dataset(Workspace(folder), captioned, config or _config(), Reporter())


def test_the_vocabulary_is_of_training_words_alone(tmp_path: Path) -> None:
    dataset, _ = prepare_own(tmp_path)

    assert dataset.vocabulary.words == ("a", "dog", "red", "and", "cat", "the")
    assert [image.token_ids for image in dataset.images] == [
        ((1, 3, 2), (6, 3, 2)),
        ((1, 2, 4, 1, 5),),
        ((1, 3, 1, 2),),
    ]


def test_what_is_prepared_is_what_is_loaded(tmp_path: Path) -> None:
    dataset, _ = prepare_own(tmp_path)

    assert Workspace(tmp_path).load_dataset() == dataset


def test_words_can_be_case_sensitive_and_must_not_be_rare(tmp_path: Path) -> None:
    dataset, _ = prepare_own(tmp_path, config=_config("text.lowercase=false", "text.min_count=2"))

    assert dataset.vocabulary.words == ("dog", "a")


def test_summaries_count_cut_captions_and_unknown_words(tmp_path: Path) -> None:
    _, summaries = prepare_own(tmp_path, config=_config("text.max_words=4"))

    assert summaries == [
        SplitSummary(split="train", images=2, captions=3, cut_captions=1, unknown_words=0.0),
        SplitSummary(split="val", images=1, captions=1, cut_captions=0, unknown_words=1 - 4 / 5),
    ]


def test_a_split_without_a_word_has_no_unknown_ones(tmp_path: Path) -> None:
    _, summaries = prepare_own(tmp_path, [*IMAGES[:2], _image("c", "test", "?!")])

    assert summaries[-1] == SplitSummary(split="test", images=1, captions=1, cut_captions=0, unknown_words=0.0)


def test_training_images_are_required(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"photos: no image is in the train split; assign some to it"):
        prepare_own(tmp_path, [_image("c", "val", "a dog")])
    assert list(tmp_path.iterdir()) == []


def test_training_words_are_required(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="occurs at least 9 times"):
        prepare_own(tmp_path, config=_config("text.min_count=9"))
    assert list(tmp_path.iterdir()) == []
