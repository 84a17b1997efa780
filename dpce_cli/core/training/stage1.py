"""Stage I: the instance loss on both encoders (Zheng et al. 2020, section 4.3)."""

from __future__ import annotations

import torch

from dpce_cli.core.config import Config
from dpce_cli.core.errors import ConfigError
from dpce_cli.core.models.backbones import load_backbone_weights
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.seeding import generator_for
from dpce_cli.core.text.word_vectors import WordVectors
from dpce_cli.core.training.opening import open_run
from dpce_cli.core.training.options import RunOptions, StageJob, StageResult, WordTable
from dpce_cli.core.training.run import StageRun
from dpce_cli.core.training.starting import model_to_continue, start_classes_at_photos
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.workspace import Workspace


def train_stage1(
    workspace: Workspace,
    dataset: PreparedDataset,
    config: Config,
    word_vectors: WordVectors | None,
    options: RunOptions,
    reporter: Reporter,
    *,
    start: Model | None = None,
) -> StageResult:
    """Train the image head, the text CNN and the shared classifier, and the image CNN if its learning rate is not 0.

    The paper freezes the image CNN in Stage I. In the released code, the batch norms of the frozen CNN use the
    statistics of the batch; here, a frozen CNN is in eval mode.

    Args:
        word_vectors: initial word vectors, or None for random ones over the whole prepared vocabulary.
        start: the model whose encoders the training begins with; see `starting.config_to_continue` for `config`.

    Raises:
        ConfigError: a frozen CNN without pretrained weights, or other sizes than `start` has.
        TrainingError: a loss is not finite.
        Interrupted: the user stopped the run.
    """
    if start:
        model, words = model_to_continue(start, dataset, config, word_vectors)
    else:
        model, words = build_model(dataset, config, word_vectors, stage=1)
    job = StageJob(
        workspace=workspace,
        dataset=dataset,
        config=config,
        number=1,
        words=words,
        parent=start.fingerprint if start else "",
        options=options,
        reporter=reporter,
    )
    with open_run(job, model) as run:
        if start and not run.state.step:
            start_classes_at_photos(model, run.training_set)
        return train(run)


def train(run: StageRun) -> StageResult:
    """Train the remaining epochs of Stage I."""
    model, stage = run.state.model, run.job.config.stage1
    for epoch in run.epochs():
        for batch in run.batches(epoch):
            for part in run.parts(batch):
                image, text = run.encode_images(part), run.encode_text(part)

                # losses.instance_loss of images and captions, for some classes at a time
                instance = model.instance_losses(
                    image, text, part.instance_ids, part.text_instance_ids, stage.label_smoothing
                ).of_part(part.image_share, part.text_share)
                loss = stage.image_weight * instance.image_loss + stage.text_weight * instance.text_loss

                run.backward(loss, part, **instance._asdict())
            run.step()
            run.log()
            run.save_if_due()
        run.evaluate()
        run.finish_epoch()
    return run.finish()


def build_model(
    dataset: PreparedDataset, config: Config, word_vectors: WordVectors | None, *, stage: int
) -> tuple[DualEncoder, WordTable]:
    """A dual encoder with initial weights, which depend on `config.seed`, and the words of its text encoder.

    Each of several processes has its share of the classes.

    Args:
        stage: the first stage to train, 1 or 2.

    Raises:
        ConfigError: a frozen CNN without pretrained weights.
    """
    multipliers = config.stage(stage).multipliers
    if config.image.backbone_weights == "none" and multipliers.backbone == 0:
        raise ConfigError(
            "an image CNN without pretrained weights cannot stay frozen; name weights with --set "
            f"image.backbone_weights=FILE, or train it with --set stage{stage}.multipliers.backbone=1"
        )
    if config.image.backbone_weights == "none" and config.image.frozen_until:
        raise ConfigError(
            "a part of the image CNN without pretrained weights cannot stay frozen; name weights with --set "
            "image.backbone_weights=FILE, or train the whole CNN with --set image.frozen_until="
        )
    words = word_table(dataset, config, word_vectors)
    weights = None
    if config.image.backbone_weights != "none":
        weights = load_backbone_weights(config.image.backbone, config.image.backbone_weights)
    generator = generator_for(config.seed, "weights")
    torch.manual_seed(config.seed)  # torchvision draws the weights of an untrained CNN from PyTorch's global generator
    model = DualEncoder(
        config,
        vocabulary_size=len(words.vocabulary),
        word_dim=words.word_dim,
        instances=dataset.instances,
    )
    model.shared_classifier.keep_share()
    model.image_encoder.reset_parameters(generator, weights)
    model.text_encoder.reset_parameters(generator)
    model.shared_classifier.reset_parameters(generator)
    if word_vectors:
        with torch.no_grad():
            model.text_encoder.words.weight[1:] = torch.from_numpy(word_vectors.matrix)
    return model, words


def word_table(dataset: PreparedDataset, config: Config, word_vectors: WordVectors | None) -> WordTable:
    """The words of `word_vectors`, or without word vectors the whole prepared vocabulary."""
    return WordTable(
        vocabulary=word_vectors.vocabulary if word_vectors else dataset.vocabulary,
        word_dim=word_vectors.matrix.shape[1] if word_vectors else config.model.word_dim,
        source=word_vectors.source if word_vectors else "random",
    )
