from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dpce_cli.core.models.dual_encoder import DualEncoder, SharedClassifier
from dpce_cli.core.presets import build_preset
from dpce_cli.core.seeding import generator_for

SMALL = ["image.backbone=resnet18", "model.embedding_dim=12", "model.text_width=0.05"]


def build(*settings: str) -> DualEncoder:
    config = build_preset("flickr8k").with_settings([*SMALL, *settings])
    model = DualEncoder(config, vocabulary_size=20, word_dim=5, instances=7)
    model.shared_classifier.reset_parameters(generator_for("classifier"))
    model.image_encoder.reset_parameters(generator_for("image"), None)
    model.text_encoder.reset_parameters(generator_for("text"))
    return model


def embeddings(count: int = 4) -> Tensor:
    return torch.randn(count, 12, generator=generator_for("embeddings"))


def test_the_plain_classifier_is_an_inner_product_with_a_bias() -> None:
    classifier = SharedClassifier(instances=5, embedding_dim=12, bias=True, scale=0).requires_grad_(False)
    classifier.reset_parameters(generator_for("classifier"))
    assert classifier.bias is not None
    assert not classifier.bias.any()
    classifier.bias.copy_(torch.arange(5))
    logits = classifier(embeddings())
    for row, embedding in zip(logits, embeddings(), strict=True):
        for instance, logit in enumerate(row):
            expected = float((embedding * classifier.weight[instance]).sum()) + instance
            assert float(logit) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("scale", [0.0, 16.0])
def test_a_classifier_without_bias_has_none(scale: float) -> None:
    classifier = SharedClassifier(instances=5, embedding_dim=12, bias=False, scale=scale)
    assert [name for name, _ in classifier.named_parameters()] == ["weight"]


def test_the_scaled_classifier_multiplies_the_cosine() -> None:
    classifier = SharedClassifier(instances=5, embedding_dim=12, bias=False, scale=16).requires_grad_(False)
    classifier.reset_parameters(generator_for("classifier"))
    expected = 16 * F.cosine_similarity(embeddings()[:, None], classifier.weight[None], dim=2)
    torch.testing.assert_close(classifier(embeddings()), expected)
    torch.testing.assert_close(classifier(100 * embeddings()), expected)
    assert classifier(torch.zeros(1, 12)).isfinite().all()


def test_the_classifier_is_drawn_with_a_tenth_of_the_usual_deviation() -> None:
    classifier = SharedClassifier(instances=500, embedding_dim=400, bias=True, scale=0).requires_grad_(False)
    classifier.reset_parameters(generator_for("classifier"))
    assert float(classifier.weight.std()) == pytest.approx(0.1 * math.sqrt(2 / 500), rel=0.02)


def test_classifying_is_relu_then_dropout_then_the_shared_classifier() -> None:
    model = build("model.relu=true").eval()
    assert model.classify(embeddings()).equal(model.shared_classifier(embeddings().relu()))
    assert model.classify(-embeddings().abs()).equal(model.shared_classifier(torch.zeros(4, 12)))
    assert model.comparable(embeddings()).equal(F.normalize(embeddings().relu(), dim=1))


def test_without_the_relu_the_losses_see_what_retrieval_compares() -> None:
    model = build("model.relu=false").eval()
    assert model.classify(embeddings()).equal(model.shared_classifier(embeddings()))
    assert model.comparable(embeddings()).equal(F.normalize(embeddings(), dim=1))


def test_a_classifier_of_cosines_begins_with_rows_of_length_1() -> None:
    classifier = SharedClassifier(instances=300, embedding_dim=400, bias=False, scale=16).requires_grad_(False)
    classifier.reset_parameters(generator_for("classifier"))
    assert float(classifier.weight.norm(dim=1).mean()) == pytest.approx(1, rel=0.02)


def test_dropout_works_in_training_alone() -> None:
    model = build("model.dropout=0.5", "model.classifier_scale=0")
    seen: list[Tensor] = []
    model.shared_classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ones = torch.ones(2000, 12)
    model.train().classify(ones)
    model.eval().classify(ones)
    assert set(seen[0].unique().tolist()) == {0.0, 2.0}
    assert float((seen[0] == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert seen[1].equal(ones)


def test_both_encoders_train_one_classifier() -> None:
    model = build().train()
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=generator_for("photos")).to(torch.uint8)
    token_ids = torch.randint(1, 21, (3, 8), generator=generator_for("captions"))
    own = torch.arange(3)
    gradients = []
    for embedding in (model.image_encoder(images), model.text_encoder(token_ids)):
        assert embedding.shape == (3, 12)
        model.zero_grad()
        F.cross_entropy(model.classify(embedding), own).backward()
        assert model.shared_classifier.weight.grad is not None
        gradients.append(model.shared_classifier.weight.grad.clone())
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert not gradients[0].equal(gradients[1])


def test_the_configuration_decides_the_parts() -> None:
    model = build("model.classifier_bias=true", "model.classifier_scale=3", "model.dropout=0.25")
    assert model.shared_classifier.weight.shape == (7, 12)
    assert model.shared_classifier.bias is not None
    assert model.shared_classifier.scale == 3
    assert model.dropout.p == 0.25
    assert model.text_encoder.words.weight.shape == (21, 5)
    assert len(model.text_encoder.blocks) == 3
    assert model.image_encoder.feature_dim == 512
