"""Stage II: ranking loss and instance losses together, from Stage I's weights (Zheng et al. 2020, section 4.3)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dpce_cli.core.config import Config
from dpce_cli.core.errors import CheckpointError
from dpce_cli.core.losses import detail_loss, ranking_loss
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.negatives import hardest_in_batch, hardest_in_pool, random_in_batch
from dpce_cli.core.processes.collectives import share
from dpce_cli.core.progress import Reporter
from dpce_cli.core.text.word_vectors import WordVectors
from dpce_cli.core.training.batches import Batch
from dpce_cli.core.training.opening import open_run
from dpce_cli.core.training.options import RunOptions, StageJob, StageResult, WordTable
from dpce_cli.core.training.run import StageRun
from dpce_cli.core.training.stage1 import build_model
from dpce_cli.core.workspace.checkpoint import Checkpoint
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.workspace import Workspace


def train_stage2(
    workspace: Workspace,
    dataset: PreparedDataset,
    config: Config,
    first: Checkpoint,
    options: RunOptions,
    reporter: Reporter,
) -> StageResult:
    """Train with ranking and instance losses everything whose learning rate is not 0.

    In the released code, the script for Flickr30k has a ranking weight of 0, unlike the paper; the presets follow the
    paper.

    Args:
        first: Stage I's best checkpoint.

    Raises:
        CheckpointError: Stage I was imported, so its classes are other images.
        TrainingError: a loss is not finite.
        Interrupted: the user stopped the run.
    """
    if first.step == 0:
        raise CheckpointError(
            f"the Stage I model is imported ({first.word_vectors}): its {first.instances} classes are not the training "
            f"images of data set '{dataset.name}'; run 'dpce train-stage1 --fresh' first"
        )
    model = DualEncoder(
        config, vocabulary_size=len(first.vocabulary), word_dim=first.word_dim, instances=first.instances
    )
    model.shared_classifier.keep_share()
    model.load_state_dict(
        {
            key: value[share(first.instances)] if key.startswith("shared_classifier.") else value
            for key, value in first.model.items()
        }
    )
    job = StageJob(
        workspace=workspace,
        dataset=dataset,
        config=config,
        number=2,
        words=word_table(first),
        parent=first.fingerprint,
        options=options,
        reporter=reporter,
    )
    with open_run(job, model) as run:
        return train(run)


def train_in_one_stage(
    workspace: Workspace,
    dataset: PreparedDataset,
    config: Config,
    word_vectors: WordVectors | None,
    options: RunOptions,
    reporter: Reporter,
) -> StageResult:
    """Stage II from untrained encoders, for comparison: the paper trains in two stages (Zheng et al. 2020, 4.3).

    Args:
        word_vectors: as in `train_stage1`.

    Raises:
        ConfigError: a frozen CNN without pretrained weights.
        TrainingError: a loss is not finite.
        Interrupted: the user stopped the run.
    """
    model, words = build_model(dataset, config, word_vectors, stage=2)
    job = StageJob(
        workspace=workspace, dataset=dataset, config=config, number=2, words=words, options=options, reporter=reporter
    )
    with open_run(job, model) as run:
        return train(run)


def train(run: StageRun) -> StageResult:
    """Train the remaining epochs of Stage II."""
    model, stage = run.state.model, run.job.config.stage2
    triplets = _TRIPLETS[stage.negatives]
    for epoch in run.epochs():
        for batch in run.batches(epoch):
            for part in run.parts(batch):
                image = run.encode_images(part)
                if stage.negatives == "hardest_in_pool":
                    part = _with_pool_negatives(part, image, run, stage.negative_pool)
                text, swapped = run.encode_text(part).split([len(part.token_ids), len(part.text_of_swap)])

                image_embeddings, text_embeddings = map(model.ranking_embeddings, (image, text))
                similarities = triplets(image_embeddings, text_embeddings, part)
                rank_loss = part.text_share * ranking_loss(*similarities, stage.margin)
                # losses.instance_loss of images and captions, for some classes at a time
                instance = model.instance_losses(
                    image, text, part.instance_ids, part.text_instance_ids, stage.label_smoothing
                ).of_part(part.image_share, part.text_share)
                values = {"ranking_loss": rank_loss, **instance._asdict()}
                loss = (
                    stage.ranking_weight * rank_loss
                    + stage.image_weight * instance.image_loss
                    + stage.text_weight * instance.text_loss
                )

                if stage.detail_weight:
                    pairs = _detail_pairs(image_embeddings, text_embeddings, model.ranking_embeddings(swapped), part)
                    values["detail_loss"] = part.text_share * detail_loss(*pairs, stage.detail_margin)
                    loss = loss + stage.detail_weight * values["detail_loss"]

                run.backward(loss, part, **values)
            run.step()
            run.log()
            run.save_if_due()
        run.evaluate()
        run.finish_epoch()
    return run.finish()


def _with_pool_negatives(batch: Batch, image: Tensor, run: StageRun, size: int) -> Batch:
    """Keep the captions of the first half of the photos, the queries, and add each query's hardest caption of the pool.

    The second half of the photos are the negative images. The pool is embedded in eval mode, without gradients.
    """
    half = len(batch.instance_ids) // 2
    batch = batch.with_texts(batch.image_of_text < half)
    token_ids, instance_ids = run.training_set.caption_pool(
        size, batch.instance_ids[:half].cpu(), run.state.step, batch.part
    )
    token_ids, instance_ids = token_ids.to(batch.token_ids.device), instance_ids.to(batch.token_ids.device)
    pool = run.state.model.ranking_embeddings(run.encode_pool(token_ids))
    hardest = hardest_in_pool(run.state.model.ranking_embeddings(image[:half]).detach(), pool)
    return replace(
        batch,
        token_ids=torch.cat([batch.token_ids, token_ids[hardest]]),
        text_instance_ids=torch.cat([batch.text_instance_ids, instance_ids[hardest]]),
        image_of_text=torch.cat([batch.image_of_text, torch.full_like(hardest, -1)]),
        text_share=batch.query_share,
    )


def _pool_triplets(image: Tensor, text: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities of the positive pairs, to the pool's captions, and to the photos of the other half.

    A photo of the query's identity is not a negative: with a similarity of -inf, its hinge is 0.
    """
    half = len(image) // 2
    same = batch.instance_ids[:half] == batch.instance_ids[half : 2 * half]
    query, other = image[:half], image[half : 2 * half]
    own, hardest = text[:half], text[half:]
    return (query * own).sum(1), (query * hardest).sum(1), (other * own).sum(1).masked_fill(same, -torch.inf)


def _batch_triplets(image: Tensor, text: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """For every caption: similarities of the positive pair, to the hardest caption, and to the hardest photo."""
    similarity = image @ text.T
    return _triplets(similarity, hardest_in_batch(similarity, batch.instance_ids, batch.text_instance_ids), batch)


def _random_triplets(image: Tensor, text: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """For every caption: similarities of the positive pair, to a random caption, and to a random photo."""
    return _triplets(image @ text.T, random_in_batch(batch.instance_ids, batch.text_instance_ids), batch)


def _triplets(similarity: Tensor, chosen: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities of each caption's pair and negatives; -inf if there is no negative, so that the hinge is 0."""
    negative_text, negative_image = chosen
    owner, column = batch.image_of_text, torch.arange(similarity.shape[1], device=similarity.device)
    wrong = similarity.masked_fill(batch.instance_ids[:, None] == batch.text_instance_ids, -torch.inf)
    return similarity[owner, column], wrong[owner, negative_text[owner]], wrong[negative_image, column]


def _detail_pairs(image: Tensor, text: Tensor, swapped: Tensor, batch: Batch) -> tuple[Tensor, Tensor, int]:
    """For every swapped caption: similarities of its photo to the true caption and to it; and the number of captions.

    That number includes captions without a detail.
    """
    photo = image[batch.image_of_text[batch.text_of_swap]]
    true, false = (photo * text[batch.text_of_swap]).sum(1), (photo * swapped).sum(1)
    return true, false, int((batch.image_of_text >= 0).sum())


_TRIPLETS = {"hardest_in_batch": _batch_triplets, "hardest_in_pool": _pool_triplets, "random": _random_triplets}


def word_table(first: Checkpoint) -> WordTable:
    """The words of the Stage I model; Stage II keeps them."""
    return WordTable(vocabulary=first.vocabulary, word_dim=first.word_dim, source=first.word_vectors)
