"""Embeddings of a whole split, written to a feature store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from dpce_cli.core.data.contents import is_stored, meta_to_fill, photo_contents
from dpce_cli.core.data.loading import read_views, stop_without_launcher, warn_of_others
from dpce_cli.core.data.views import views_in_testing
from dpce_cli.core.errors import DataError
from dpce_cli.core.processes.collectives import rank, share
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.encoding import encode_images, encode_text, pack_captions
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.workspace.checkpoint import Checkpoint
from dpce_cli.core.workspace.feature_cache import cached_test_features
from dpce_cli.core.workspace.features import load_feature_store, open_feature_store
from dpce_cli.core.workspace.workspace import PreparedDataset, Workspace

_IMAGES, _CAPTIONS = 16, 256


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

    Photos are averaged over themselves and their mirror image where the model was trained with mirror images, and over
    all places of a crop on the whole photo where `image.test_view` is "full"; captions over all placements where it was
    trained with position shift (Zheng et al. 2020, section 5.1). Where training left the frozen CNN's features of these
    photos' crops in the cache, they are not computed again. Several processes take a share each.

    Raises:
        DataError: no photo can be read.
        WorkspaceError: there is no such split, or the store cannot be written.
    """
    images, path, config = dataset.split(split), workspace.features_path(split), checkpoint.config
    meta = {
        "split": split,
        "stage": checkpoint.stage,
        "checkpoint": checkpoint.fingerprint,
        "made_from": dataset.split_fingerprints[split],
        "config": config.to_dict(),
    }
    contents = photo_contents(dataset.root, images)
    if is_stored(path, meta, contents):
        reporter.note(f"{path} holds these embeddings already")
        return path
    captions = pack_captions(images, dataset.vocabulary, checkpoint.vocabulary, config.text.max_words)
    if unknown := int((captions.token_ids[:, 0] == 0).sum()):
        reporter.warn(
            f"{unknown} of {len(captions.token_ids)} captions have no known word; they are embedded as blanks"
        )
    model, dim = Model.of_checkpoint(checkpoint, device=device), config.model.embedding_dim
    own, texts, problems = images[share(len(images))], captions.token_ids[share(len(captions.token_ids))], list[str]()
    whole_meta = meta_to_fill(path, meta, contents)
    with open_feature_store(path, images=images, dim=dim, meta=whole_meta) as store:
        if (done := store.done("image_embeddings")) < len(own):
            encoder = model.image_encoder
            whole = config.image.test_view == "full"
            size = 1 if whole else _IMAGES  # whole photos differ in size
            view = views_in_testing(config.image)
            views = read_views(dataset.root, own[done:], view, batch_size=size, workers=workers)
            features = None if whole else cached_test_features(workspace, dataset, encoder, config.image, split=split)
            if features is not None:
                reporter.note("taking the image CNN's features from the cache")
                views = _from_cache(features[share(len(images))][done:])
            with reporter.track(f"embedding {split} photos", len(own), done) as advance:
                for positions, batch, unread in views:
                    rows = torch.zeros(len(positions) + len(unread), dim)
                    if positions:
                        first = positions[0] // size * size
                        rows[torch.tensor(positions) - first] = encode_images(encoder, batch.to(device))
                    for problem in unread:
                        reporter.warn(f"{problem}: skipped")
                    problems += unread
                    store.append("image_embeddings", rows)
                    advance(len(rows))
                    stop_without_launcher()
        if (done := store.done("text_embeddings")) < len(texts):
            text_encoder = model.text_encoder
            with reporter.track(f"embedding {split} captions", len(texts), done) as advance:
                for token_ids in texts[done:].split(_CAPTIONS):
                    placements = None if config.model.position_shift else 1
                    store.append("text_embeddings", encode_text(text_encoder, token_ids, placements=placements))
                    advance(len(token_ids))
                    stop_without_launcher()
        store.finish()
    warn_of_others(problems, reporter)
    if rank():
        return path
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


def _from_cache(features: Tensor) -> Iterator[tuple[list[int], Tensor, list[str]]]:
    """Cached features `(photos, views, feature_dim)` in the form in which `read_views` yields photos."""
    for start, batch in zip(range(0, len(features), _IMAGES), features.split(_IMAGES), strict=True):
        yield list(range(start, start + len(batch))), batch, []
