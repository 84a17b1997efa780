from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dpce_cli.core.data.images import mirrored
from dpce_cli.core.models.image_encoder import ImageEncoder
from dpce_cli.core.models.text_encoder import TextEncoder, build_text_encoder
from dpce_cli.core.presets import build_preset
from dpce_cli.core.retrieval import encoding
from dpce_cli.core.retrieval.encoding import encode_images, encode_text
from dpce_cli.core.seeding import generator_for
from dpce_cli.core.text.vocabulary import pack_token_ids

POSITIONS = 9
CAPTIONS = [[3, 1, 4, 1, 5], [9], [], [2, 6, 5, 3, 5, 8, 9, 7, 9], [3, 2]]


@pytest.fixture(scope="module")
def text_encoder() -> TextEncoder:
    model = replace(build_preset("flickr8k").model, text_width=0.05, embedding_dim=12)
    encoder = build_text_encoder(model, vocabulary_size=9, word_dim=6)
    encoder.reset_parameters(generator_for("text"))
    encoder.word_bias.data.normal_(generator=generator_for("bias"))
    return encoder.eval()


@pytest.fixture(scope="module")
def image_encoder() -> ImageEncoder:
    torch.manual_seed(0)
    encoder = ImageEncoder(backbone="resnet18", embedding_dim=12)
    encoder.reset_parameters(generator_for("image"), None)
    return encoder.eval()


def token_ids(captions: list[list[int]] = CAPTIONS) -> Tensor:
    return torch.from_numpy(pack_token_ids(captions, POSITIONS)[0])


def one_at_a_time(encoder: TextEncoder, caption: list[int], starts: list[int]) -> Tensor:
    """The normalised sum over placements, from the definition."""
    total = torch.zeros(12)
    for start in starts:
        row = [0] * start + caption + [0] * (POSITIONS - start - len(caption))
        with torch.no_grad():
            total += encoder(torch.tensor([row]))[0]
    return total / total.square().sum().sqrt()


def test_a_caption_is_summed_over_all_its_placements(text_encoder: TextEncoder) -> None:
    embeddings = encode_text(text_encoder, token_ids(), placements=None)
    expected = [one_at_a_time(text_encoder, words, list(range(POSITIONS - len(words) + 1))) for words in CAPTIONS]
    torch.testing.assert_close(embeddings, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_one_placement_is_the_left_aligned_one(text_encoder: TextEncoder) -> None:
    embeddings = encode_text(text_encoder, token_ids(), placements=1)
    expected = [one_at_a_time(text_encoder, words, [0]) for words in CAPTIONS]
    torch.testing.assert_close(embeddings, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_placements_matter(text_encoder: TextEncoder) -> None:
    some, one = (encode_text(text_encoder, token_ids(), placements=count) for count in (None, 1))
    assert not torch.allclose(some[0], one[0], atol=1e-3)
    torch.testing.assert_close(some[3], one[3])  # fills all positions


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_embeddings_do_not_depend_on_what_shares_a_pass(
    text_encoder: TextEncoder, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = encode_text(text_encoder, token_ids(), placements=None)
    alone = torch.cat([encode_text(text_encoder, token_ids([words]), placements=None) for words in CAPTIONS])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(encoding, "_ROWS", rows)
    torch.testing.assert_close(encode_text(text_encoder, token_ids(), placements=None), together, rtol=1e-5, atol=1e-5)


def test_text_embeddings_have_length_1_and_no_graph(text_encoder: TextEncoder) -> None:
    embeddings = encode_text(text_encoder, token_ids(), placements=None)
    assert embeddings.dtype == torch.float32
    assert not embeddings.requires_grad
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(CAPTIONS)))


def test_no_captions_and_no_photos_give_no_embeddings(text_encoder: TextEncoder, image_encoder: ImageEncoder) -> None:
    assert encode_text(text_encoder, token_ids([]), placements=None).shape == (0, 12)
    assert encode_images(image_encoder, torch.zeros(0, 2, 512)).shape == (0, 12)


def test_photos_are_summed_with_their_mirror_images(image_encoder: ImageEncoder) -> None:
    photos = torch.randint(0, 256, (3, 3, 32, 32), generator=generator_for("photos")).to(torch.uint8)
    embeddings = encode_images(image_encoder, torch.stack([photos, mirrored(photos)], dim=1))
    for photo, embedding in zip(photos, embeddings, strict=True):
        with torch.no_grad():
            total = image_encoder(photo[None])[0] + image_encoder(photo.flip(2)[None])[0]
        torch.testing.assert_close(embedding, total / total.square().sum().sqrt(), rtol=1e-4, atol=1e-4)


def test_a_photo_and_its_mirror_image_have_one_embedding(image_encoder: ImageEncoder) -> None:
    photo = torch.randint(0, 256, (3, 32, 32), generator=generator_for("photo")).to(torch.uint8)
    views = torch.stack([photo, mirrored(photo)])
    pair = encode_images(image_encoder, torch.stack([views, mirrored(views)]))
    torch.testing.assert_close(pair[0], pair[1], rtol=1e-4, atol=1e-4)


def test_cached_features_give_the_embeddings_of_their_photos(image_encoder: ImageEncoder) -> None:
    views = torch.randint(0, 256, (3, 2, 3, 32, 32), generator=generator_for("views")).to(torch.uint8)
    with torch.no_grad():
        features = image_encoder.pooled_features(views.flatten(0, 1)).unflatten(0, (3, 2))
    embeddings = encode_images(image_encoder, views)
    torch.testing.assert_close(encode_images(image_encoder, features), embeddings)
    torch.testing.assert_close(encode_images(image_encoder, features.half()), embeddings, rtol=0, atol=1e-2)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))


def test_embeddings_keep_their_sign(image_encoder: ImageEncoder) -> None:
    features = torch.rand(4, 1, 512, generator=generator_for("features"))
    embeddings = encode_images(image_encoder, features)
    assert (embeddings < 0).any()
    with torch.no_grad():
        torch.testing.assert_close(embeddings, F.normalize(image_encoder(features[:, 0]), dim=1))
