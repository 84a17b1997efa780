from __future__ import annotations

import torch

from dpce_cli.core.galleries.gallery import Gallery
from dpce_cli.core.retrieval.hubness import Bank
from dpce_cli.core.teaching.suggestions import sentence_galleries, suggest_captions
from tests.core.galleries.conftest import ColourModel, Place


def test_the_nearest_sentences_and_own_captions_are_suggested(place: Place) -> None:
    text = place.photos / "labels.txt"
    text.write_text("a red car\na blue car\na green car\n")
    blue = place.add("blue.png", (60, 0, 255))
    folder = place.gallery.parent
    for name, maker in (("labels", place.model), ("others", ColourModel("another"))):
        place.gallery = folder / name
        place.index(text, model=maker)
    place.gallery = folder / "photos"
    place.index()

    sentences = sentence_galleries(folder, place.model.as_model())
    assert [gallery.folder.name for gallery in sentences] == ["labels"]
    written = ["rex is red", "rex is blue", "my blue and red rex", "rex is blue", "no colour"]
    model = place.model.as_model()
    assert suggest_captions(blue, model, sentences, written) == ["rex is blue", "a blue car", "my blue and red rex"]
    assert suggest_captions(blue, model, sentences, [], top_k=1) == ["a blue car"]
    assert suggest_captions(blue, model, [], ["no colour"]) == []


def test_suggestions_are_corrected_for_hubs(place: Place) -> None:
    purple = place.add("purple.png", (200, 0, 210))
    bank = Bank(image_embeddings=torch.eye(3)[2:], text_embeddings=torch.eye(3)[2:])
    written = ["red", "blue"]
    assert suggest_captions(purple, ColourModel().as_model(), [], written) == ["blue", "red"]
    of_bank = ColourModel(bank=bank)
    text = place.photos / "labels.txt"
    text.write_text("green\nred and blue\n")
    place.index(text, model=of_bank)
    sentences: list[Gallery] = sentence_galleries(place.gallery.parent, of_bank.as_model())
    assert suggest_captions(purple, of_bank.as_model(), sentences, written) == ["red", "red and blue", "blue"]
