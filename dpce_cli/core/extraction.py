"""Embeddings of a whole split, written to a feature store."""

from __future__ import annotations

from pathlib import Path

import torch

from dpce_cli.core.checkpoint import (
    Checkpoint,
    check_belongs,
    load_checkpoint,
    restore_image_encoder,
    restore_text_encoder,
)
from dpce_cli.core.data.images import read_views
from dpce_cli.core.encoding import encode_images, encode_text
from dpce_cli.core.errors import CheckpointError, DataError, WorkspaceError
from dpce_cli.core.feature_cache import FixedViews
from dpce_cli.core.features import FeatureStore, load_feature_store, open_feature_store
from dpce_cli.core.progress import Reporter
from dpce_cli.core.store import read_meta
from dpce_cli.core.training.batches import pack_captions
from dpce_cli.core.workspace import PreparedDataset, Workspace

_IMAGES, _CAPTIONS = 16, 256


def load_best(workspace: Workspace, dataset: PreparedDataset | None, stage: int | None) -> Checkpoint:
    """The best checkpoint of `stage`, or of the last stage that was trained.

    Args:
        dataset: what it has to belong to, if that is to be checked.

    Raises:
        CheckpointError: there is none, or it does not belong to `dataset` or to the Stage I model at hand.
    """
    paths = {number: workspace.stage_folder(number) / "best.pt" for number in (1, 2)}
    if stage is None:
        stage = 2 if paths[2].is_file() else 1
    checkpoint = load_checkpoint(paths[stage], remedy=f"dpce train-stage{stage}")
    if dataset:
        check_belongs(checkpoint, dataset, paths[stage])
    if stage == 2 and paths[1].is_file():
        first = load_checkpoint(paths[1], remedy="dpce train-stage1")
        if checkpoint.parent != first.fingerprint:
            raise CheckpointError(
                f"{paths[2]}: was trained from another Stage I model than {paths[1]}; "
                "run 'dpce train-stage2 --fresh', or use the Stage I model: 'dpce extract-features --stage 1'"
            )
    return checkpoint


def extract_features(
    workspace: Workspace,
    dataset: PreparedDataset,
    checkpoint: Checkpoint,
    *,
    split: str,
    device: torch.device,
    workers: int,
    reporter: Reporter,
) -> Path:
    """Embed every photo and caption of a split; an interrupted extraction goes on where it stopped.

    Photos are averaged over themselves and their mirror image where the model was trained with mirror images,
    captions over all placements where it was trained with position shift (Zheng et al. 2020, section 5.1).

    Raises:
        DataError: no photo can be read.
        WorkspaceError: there is no such split, or the store cannot be written.
    """
    images, path, config = dataset.split(split), workspace.features_path(split), checkpoint.config
    meta = {
        "split": split,
        "stage": checkpoint.stage,
        "checkpoint": checkpoint.fingerprint,
        "dataset": dataset.fingerprint,
        "root": str(dataset.root),
        "config": config.to_dict(),
    }
    if read_meta(path) == meta:
        reporter.note(f"{path} holds these embeddings already")
        return path
    captions = pack_captions(images, dataset.vocabulary, checkpoint.vocabulary, config.text.max_words)
    if unknown := int((captions.token_ids[:, 0] == 0).sum()):
        reporter.warn(
            f"{unknown} of {len(captions.token_ids)} captions have no known word; they are embedded as blanks"
        )
    dim = config.model.embedding_dim
    with open_feature_store(path, images=images, dim=dim, meta=meta) as store:
        if (done := store.done("image_embeddings")) < len(images):
            encoder = restore_image_encoder(checkpoint).to(device)
            paths = [image.path for image in images[done:]]
            with reporter.track(f"embedding {split} photos", len(images), done) as advance:
                views = read_views(dataset.root, paths, FixedViews(config.image), batch_size=_IMAGES, workers=workers)
                for positions, batch, problems in views:
                    rows = torch.zeros(len(positions) + len(problems), dim)
                    if positions:
                        first = positions[0] // _IMAGES * _IMAGES
                        rows[torch.tensor(positions) - first] = encode_images(encoder, batch.to(device))
                    for problem in problems:
                        reporter.warn(f"{problem}: skipped")
                    store.append("image_embeddings", rows)
                    advance(len(rows))
        if (done := store.done("text_embeddings")) < len(captions.token_ids):
            text_encoder = restore_text_encoder(checkpoint).to(device)
            with reporter.track(f"embedding {split} captions", len(captions.token_ids), done) as advance:
                for token_ids in captions.token_ids[done:].split(_CAPTIONS):
                    placements = None if config.model.position_shift else 1
                    store.append("text_embeddings", encode_text(text_encoder, token_ids, placements=placements))
                    advance(len(token_ids))
        store.finish()
    unreadable = len(images) - len(load_feature_store(path).image_ids)
    if unreadable == len(images):
        path.unlink()
        raise DataError(
            f"{dataset.root}: none of the {unreadable} {split} photos can be read; put them there and run again"
        )
    if unreadable:
        reporter.warn(
            f"{unreadable} of {len(images)} {split} photos could not be read; they and their captions are left out of "
            f"results; to try them again, delete {path} and run again"
        )
    return path


def load_features(workspace: Workspace, split: str) -> tuple[FeatureStore, Checkpoint]:
    """The extracted embeddings of a split, and the checkpoint that made them.

    Raises:
        WorkspaceError: there is no such split, or it was not extracted, or with another checkpoint than the one at
            hand.
    """
    path = workspace.features_path(split)
    if not path.is_file():
        workspace.load_dataset().split(split)
        others = sorted(p.stem for p in path.parent.glob("*.h5"))
        hint = f"; extracted are: {', '.join(others)} (choose with --split)" if others else ""
        raise WorkspaceError(f"{path}: not found; run 'dpce extract-features --split {split}'{hint}")
    store = load_feature_store(path)
    checkpoint = load_best(workspace, None, store.meta["stage"])
    if store.meta["checkpoint"] != checkpoint.fingerprint:
        raise WorkspaceError(
            f"{path}: its embeddings were made by another checkpoint than {workspace.stage_folder(checkpoint.stage)}"
            f"/best.pt; run 'dpce extract-features --split {split}' again"
        )
    return store, checkpoint
