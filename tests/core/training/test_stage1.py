from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import models

from dpce_cli.core.errors import ConfigError
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.text.word_vectors import WordVectors
from dpce_cli.core.training.stage1 import build_model
from dpce_cli.core.workspace.checkpoint import fingerprint
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.tiny import BY_HEART, checkpoint, prepare_eight_pairs, records, save_weights, tiny_config, train


@pytest.mark.parametrize("frozen", [True, False], ids=["cache", "photos"])
def test_eight_pairs_are_learnt_perfectly(tmp_path: Path, weights: Path, frozen: bool, tiny_cnn: None) -> None:
    workspace, config = Workspace(tmp_path), tiny_config(weights if frozen else None, *BY_HEART)
    prepare_eight_pairs(workspace, config)
    result = train(workspace, 1, config)
    assert result.validation["rsum"] == 600
    final = records(workspace, 1, "train")[-1]
    assert (final["image_accuracy"], final["text_accuracy"]) == (1, 1)
    assert final["loss"] < 0.1 * records(workspace, 1, "train")[0]["loss"]


def backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "image_encoder.backbone."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "photos"])
def test_a_frozen_resnet_keeps_every_weight_and_batch_norm_statistic(
    tmp_path: Path, workspace: Workspace, cache: bool
) -> None:
    pretrained = save_weights(tmp_path / "resnet18.pt", models.resnet18())
    config = tiny_config(pretrained, "image.backbone=resnet18", "stage1.epochs=1")
    train(workspace, 1, config, cache=cache)
    before = torch.load(pretrained, weights_only=True)
    after = backbone(checkpoint(workspace, 1, "last").model)
    assert after.keys() == {key for key in before if not key.startswith("fc.")}
    assert [key for key, value in after.items() if not torch.equal(value, before[key])] == []


def test_a_resnet_with_a_learning_rate_changes_weights_and_batch_norm_statistics(
    tmp_path: Path, workspace: Workspace
) -> None:
    pretrained = save_weights(tmp_path / "resnet18.pt", models.resnet18())
    config = tiny_config(pretrained, "image.backbone=resnet18", "stage1.epochs=1", "stage1.multipliers.backbone=0.1")
    train(workspace, 1, config)
    before = torch.load(pretrained, weights_only=True)
    after = backbone(checkpoint(workspace, 1, "last").model)
    assert [key for key, value in after.items() if torch.equal(value, before[key])] == []
    assert not list(workspace.folder.glob("cache/*"))


def test_a_frozen_cnn_without_pretrained_weights_is_refused(workspace: Workspace) -> None:
    config = tiny_config(None, "stage1.multipliers.backbone=0")
    with pytest.raises(ConfigError, match=r"cannot stay frozen; name weights with --set image\.backbone_weights=FILE"):
        train(workspace, 1, config)


def test_a_frozen_part_without_pretrained_weights_is_refused(workspace: Workspace) -> None:
    config = tiny_config(None, "image.frozen_until=bn1")
    with pytest.raises(ConfigError, match=r"a part of .* cannot stay frozen; .*or train the whole CNN"):
        train(workspace, 1, config)


def test_the_initial_weights_depend_on_the_seed_alone(workspace: Workspace) -> None:
    dataset = workspace.load_dataset()

    def initial(*settings: str) -> str:
        torch.rand(3)
        return fingerprint(build_model(dataset, tiny_config(None, *settings), None, stage=1)[0].state_dict())

    assert initial() == initial("stage1.epochs=9")
    assert initial() != initial("seed=1")


def test_word_vectors_are_where_the_word_table_begins(workspace: Workspace) -> None:
    dataset = workspace.load_dataset()
    vocabulary = Vocabulary(dataset.vocabulary.words[3:7], lowercase=True)
    vectors = WordVectors(
        vocabulary=vocabulary,
        matrix=np.arange(20, dtype=np.float32).reshape(4, 5),
        coverage=1.0,
        token_coverage=None,
        source="a test",
        oov="drop",
    )
    model, words = build_model(dataset, tiny_config(None), vectors, stage=1)
    assert (words.vocabulary, words.word_dim, words.source) == (vocabulary, 5, "a test")
    assert model.text_encoder.words.weight.tolist() == [[0.0] * 5, *vectors.matrix.tolist()]
