"""Networks trained with MatConvNet as this project's checkpoints and image CNN weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dpce_cli.core.config import Config, TextConfig
from dpce_cli.core.errors import CheckpointError, ConfigError, VocabularyError, WorkspaceError
from dpce_cli.core.models.backbones import build_backbone
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.models.matconvnet.names import (
    backbone_of,
    take_backbone,
    take_classifier,
    take_image_head,
    take_text_encoder,
    text_blocks,
    with_dense_head,
)
from dpce_cli.core.models.matconvnet.network import Network, read_dictionary
from dpce_cli.core.models.matconvnet.weights import Conversion
from dpce_cli.core.storage.files import replacing
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.workspace.checkpoint import Checkpoint, save_checkpoint
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.workspace import Workspace

# Channels that leave the text network's first stage at width 1.
_FIRST_STAGE_CHANNELS = 256


def import_backbone(network: Network, output: Path) -> str:
    """Write an ImageNet CNN of vlfeat's as the state dict that `--backbone-weights` takes; returns the CNN's name.

    The average image, where it differs from pixel to pixel, becomes its mean colour.

    Raises:
        CheckpointError: parameters are missing, unknown or of another shape.
        WorkspaceError: `output` exists or cannot be written.
    """
    if output.exists():
        raise WorkspaceError(f"{output}: exists already; choose another --output, or remove it")
    name = backbone_of(network.params)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in build_backbone(name).state_dict().items()}
    conversion = Conversion(network, shapes)
    take_backbone(conversion, name, "")
    state = conversion.finish()
    with replacing(output) as temporary:
        torch.save(state, temporary)
    return name


def import_pair(
    workspace: Workspace, dataset: PreparedDataset, network: Network, dictionary: Path, *, stage: int, fresh: bool
) -> tuple[Path, Checkpoint]:
    """Make an image and a text network of the paper's authors the best model of a stage, for the current data set.

    The model was not trained on the data set; it is used on it. Photos are read as in the authors' tests: whole, with a
    short side of 256, or squashed where the configuration of the data set says so.

    Args:
        fresh: replace the model that is there.

    Raises:
        CheckpointError: parameters are missing, unknown or of another shape, or there is a model already.
        DataError: `dictionary` is missing or damaged.
        VocabularyError: it holds no words, or another number of them than the network knows.
        WorkspaceError: the workspace cannot be written.
    """
    folder = workspace.stage_folder(stage)
    path, last = folder / "best.pt", folder / "last.pt"
    if not fresh and (path.is_file() or last.is_file()):
        raise CheckpointError(
            f"{path if path.is_file() else last}: a Stage {stage} model is there already; add --fresh to replace it, "
            f"or choose --stage {3 - stage} or another --workspace"
        )
    words = read_dictionary(dictionary)
    rows, dim = _sides(network, "fc2f")
    if rows != len(words):
        raise VocabularyError(
            f"{dictionary}: holds {len(words)} words, but the network in {network.path} knows {rows}; "
            "name the dictionary that it was trained with"
        )
    vocabulary = Vocabulary(words, lowercase=False)
    config = _config(network, dataset.config)
    instances = _sides(network, "fcsharef")[1]
    with torch.device("meta"):
        model = DualEncoder(config, vocabulary_size=rows, word_dim=dim, instances=instances)
    network = replace(network, params=with_dense_head(network.params, model.image_encoder.feature_dim))
    conversion = Conversion(network, {key: value.shape for key, value in model.state_dict().items()})
    take_backbone(conversion, config.image.backbone, "image_encoder.backbone.")
    take_image_head(conversion, "image_encoder.head.")
    take_text_encoder(conversion, config.model.text_blocks, "text_encoder.")
    take_classifier(conversion, "shared_classifier.")
    checkpoint = Checkpoint(
        stage=stage,
        config=config,
        vocabulary=vocabulary,
        word_dim=dim,
        word_vectors=f"MatConvNet network {network.path.name}",
        instances=instances,
        dataset=dataset.name,
        dataset_fingerprint=dataset.training_fingerprint,
        parent="",
        prepared_vocabulary=dataset.vocabulary.fingerprint,
        step=0,
        steps_per_epoch=0,
        best={},
        unlogged={},
        model=conversion.finish(),
        optimizer={},
    )
    save_checkpoint(path, checkpoint)
    last.unlink(missing_ok=True)
    return path, checkpoint


def _config(network: Network, config: Config) -> Config:
    """The data set's configuration with the sizes of the network, which is trained and tested as in the paper."""
    if network.max_words is None:
        raise CheckpointError(f"{network.path}: has no layer 'fc5_1', the pooling of the authors' text network")
    _, channels = _sides(network, "fc2_1bf")
    dim, embedding_dim = _sides(network, "fc2f")[1], _sides(network, "fc5_2f")[1]
    text = TextConfig(max_words=network.max_words, lowercase=False, min_count=1)
    model = replace(
        config.model,
        embedding_dim=embedding_dim,
        text_blocks=text_blocks(network.params),
        text_width=channels / _FIRST_STAGE_CHANNELS,
        word_dim=dim,
        position_shift=True,
        relu=True,
        classifier_bias="fcshareb" in network.params,
        classifier_scale=0.0,
    )
    image = replace(
        config.image,
        backbone=backbone_of(network.params),
        backbone_weights="none",
        resize=256,
        crop=224,
        mirror=True,
        test_view="full",
        pooling=(1, 1),
    )
    try:
        return replace(config, text=text, image=image, model=model)
    except ConfigError as error:
        raise CheckpointError(
            f"{network.path}: has sizes that no text network of the authors' has; download it again"
        ) from error


def _sides(network: Network, name: str) -> tuple[int, int]:
    """Input and output channels of a filter that decides a size of the network."""
    shape = np.shape(network.params.get(name, ()))
    if len(shape) < 2:
        raise CheckpointError(
            f"{network.path}: has no filters '{name}'; only the networks of the paper's authors can be imported"
        )
    return shape[-2], shape[-1]
