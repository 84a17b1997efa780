from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dpce_cli.core.models.dual_encoder import DualEncoder
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


def test_the_classifier_is_given_embeddings_after_a_relu_and_dropout() -> None:
    model = build("model.relu=true").eval()
    assert model.classifier_input(embeddings()).equal(embeddings().relu())
    assert model.ranking_embeddings(embeddings()).equal(F.normalize(embeddings().relu(), dim=1))


def test_without_the_relu_the_losses_see_what_retrieval_compares() -> None:
    model = build("model.relu=false").eval()
    assert model.classifier_input(embeddings()).equal(embeddings())
    assert model.ranking_embeddings(embeddings()).equal(F.normalize(embeddings(), dim=1))


def test_dropout_works_in_training_alone() -> None:
    model = build("model.dropout=0.5", "model.classifier_scale=0")
    ones = torch.ones(2000, 12)
    seen = model.train().classifier_input(ones), model.eval().classifier_input(ones)
    assert set(seen[0].unique().tolist()) == {0.0, 2.0}
    assert float((seen[0] == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert seen[1].equal(ones)


def test_both_encoders_train_one_classifier() -> None:
    model = build().train()
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=generator_for("photos")).to(torch.uint8)
    token_ids = torch.randint(1, 21, (3, 8), generator=generator_for("captions"))
    own = torch.arange(3)
    gradients = []
    for part in ("image_loss", "text_loss"):
        model.zero_grad()
        losses = model.instance_losses(model.image_encoder(images), model.text_encoder(token_ids), own, own, 0.0)
        getattr(losses, part).backward()
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
