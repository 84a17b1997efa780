from __future__ import annotations

from dpce_cli.core.data.records import CaptionedImage, instance_ids


def image(identity: str | None) -> CaptionedImage:
    return CaptionedImage(image_id="a", path="a", split="train", captions=("a",), identity=identity)


def test_each_image_without_an_identity_is_an_instance() -> None:
    assert instance_ids([image(None)] * 3) == [0, 1, 2]


def test_images_of_one_identity_are_one_instance_numbered_by_first_appearance() -> None:
    identities = ("b", None, "a", "b", "1", None, "a")
    assert instance_ids([image(identity) for identity in identities]) == [0, 1, 2, 0, 3, 4, 2]
