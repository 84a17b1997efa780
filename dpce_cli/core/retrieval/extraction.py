"""Embeddings of a whole split, written to a feature store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpce_cli.core.data.contents import UNREADABLE, is_stored, meta_to_fill, photo_contents
from dpce_cli.core.data.loading import read_views, stop_without_launcher, warn_of_others
from dpce_cli.core.data.views import views_in_testing
from dpce_cli.core.errors import DataError
from dpce_cli.core.processes.collectives import rank, share
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.calibration import fit_relevance
from dpce_cli.core.retrieval.encoding import encode_images, encode_text, pack_captions
from dpce_cli.core.retrieval.hubness import BANK_PHOTOS, NEAREST, Bank, has_hubness, load_bank
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.retrieval.relevance import load_relevances
from dpce_cli.core.storage.files import write_json
from dpce_cli.core.workspace.checkpoint import Checkpoint
from dpce_cli.core.workspace.dataset import PreparedDataset, PreparedImage
from dpce_cli.core.workspace.feature_cache import cached_test_features
from dpce_cli.core.workspace.features import FeatureStore, load_feature_store, open_feature_store
from dpce_cli.core.workspace.workspace import Workspace

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
    computed_in: torch.dtype = torch.float32,
) -> Path:
    """Embed every photo and caption of a split; if it was interrupted, continue.

    Photos are averaged over themselves and their mirror image where the model was trained with mirror images, and over
    all places of a crop on the whole photo where `image.test_view` is "full"; captions over all placements where it was
    trained with position shift (Zheng et al. 2020, section 5.1). Features of the frozen CNN that training has cached
    are not computed again. Each of several processes embeds its part.

    The hubness of each photo and caption is stored too. For it, some training photos and their captions are embedded
    first, once per model. Where none of these photos can be read, it is 0. The val split fits the relevance of results.

    Args:
        computed_in: precision of the image encoder.

    Raises:
        DataError: no photo can be read.
        WorkspaceError: there is no such split, or the store cannot be written.
    """
    images, path = dataset.split(split), workspace.features_path(split)
    model = Model.of_checkpoint(checkpoint, device=device)
    embedding = _Embedding(workspace, dataset, checkpoint, model, workers, reporter, computed_in)
    bank = _bank(embedding)
    meta = {
        **embedding.meta(split),
        "made_from": dataset.split_fingerprints[split],
        "bank": None if bank is None else [NEAREST, len(bank.image_embeddings), len(bank.text_embeddings)],
    }
    contents = photo_contents(dataset.root, images)
    if is_stored(path, meta, contents):
        reporter.note(f"{path} holds these embeddings already")
        known = load_relevances(workspace.relevance_path(checkpoint.stage), checkpoint.fingerprint)
        if split == "val" and known is None and not rank():
            _fit_relevance(workspace, checkpoint, load_feature_store(path))
        return path
    embedding.fill(path, images, meta, contents, bank=bank)
    if rank():
        return path
    store = load_feature_store(path)
    unreadable = len(images) - len(store.image_ids)
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
    if split == "val":
        _fit_relevance(workspace, checkpoint, store)
    return path


def _fit_relevance(workspace: Workspace, checkpoint: Checkpoint, store: FeatureStore) -> None:
    """Fit the curves from score to relevance and save them, if the store has what that needs."""
    if has_hubness(store) and (relevances := fit_relevance(store)):
        curves = {"checkpoint": checkpoint.fingerprint, **relevances.to_dict()}
        write_json(workspace.relevance_path(checkpoint.stage), curves)


def _bank(embedding: _Embedding) -> Bank | None:
    """Embeddings of some training photos and their captions; None, with a warning, if no photo can be read."""
    train, root = embedding.dataset.split("train"), embedding.dataset.root
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:BANK_PHOTOS].sort().values
    images = [train[index] for index in chosen.tolist()]
    path = embedding.workspace.bank_path(embedding.checkpoint.stage)
    meta, contents = embedding.meta("train"), photo_contents(root, images)
    if not is_stored(path, meta, contents):
        if set(contents) == {UNREADABLE}:
            embedding.reporter.warn(f"{root}: no training photo can be read; results are not corrected for hubs")
            return None
        embedding.fill(path, images, meta, contents, chosen=chosen)
    return load_bank(path)


@dataclass(frozen=True)
class _Embedding:
    """A model, and the data set whose photos and captions it embeds."""

    workspace: Workspace
    dataset: PreparedDataset
    checkpoint: Checkpoint
    model: Model
    workers: int
    reporter: Reporter
    computed_in: torch.dtype

    def meta(self, split: str) -> dict[str, Any]:
        """What the embeddings of a split depend on, besides its photos and captions."""
        config, stage = self.checkpoint.config.to_dict(), self.checkpoint.stage
        meta = {"split": split, "stage": stage, "checkpoint": self.checkpoint.fingerprint, "config": config}
        return meta if self.computed_in == torch.float32 else {**meta, "computed_in": str(self.computed_in)}

    def fill(
        self,
        path: Path,
        images: Sequence[PreparedImage],
        meta: Mapping[str, Any],
        contents: Sequence[str],
        *,
        chosen: Tensor | None = None,
        bank: Bank | None = None,
    ) -> None:
        """Make the feature store of `images` at `path`, or continue the one that an earlier process began.

        Args:
            contents: of the photos.
            chosen: indices of the images in their split; None: all of it.
            bank: gives the hubness of each photo and caption; None: their hubness is 0.
        """
        dataset, config, split, reporter = self.dataset, self.checkpoint.config, meta["split"], self.reporter
        captions = pack_captions(images, dataset.vocabulary, self.checkpoint.vocabulary, config.text.max_words)
        if unknown := int((captions.token_ids[:, 0] == 0).sum()):
            reporter.warn(
                f"{unknown} of {len(captions.token_ids)} {split} captions have no known word; they are "
                "embedded as blanks"
            )
        own, texts, problems = (
            images[share(len(images))],
            captions.token_ids[share(len(captions.token_ids))],
            list[str](),
        )
        whole_meta = meta_to_fill(path, meta, contents)
        with open_feature_store(path, images=images, dim=self.model.dim, meta=whole_meta) as store:
            if (done := store.done("image_embeddings")) < len(own):
                with reporter.track(f"embedding {split} photos", len(own), done) as advance:
                    for rows, unread in self._image_rows(own, done, split, chosen):
                        for problem in unread:
                            reporter.warn(f"{problem}: skipped")
                        problems += unread
                        hubness = torch.zeros(len(rows)) if bank is None else bank.hubness_of_images(rows)
                        store.append(image_embeddings=rows, image_hubness=hubness)
                        advance(len(rows))
                        stop_without_launcher()
            if (done := store.done("text_embeddings")) < len(texts):
                with reporter.track(f"embedding {split} captions", len(texts), done) as advance:
                    for token_ids in texts[done:].split(_CAPTIONS):
                        placements = None if config.model.position_shift else 1
                        rows = encode_text(self.model.text_encoder, token_ids, placements=placements)
                        hubness = torch.zeros(len(rows)) if bank is None else bank.hubness_of_texts(rows)
                        store.append(text_embeddings=rows, text_hubness=hubness)
                        advance(len(rows))
                        stop_without_launcher()
            store.finish()
        warn_of_others(problems, reporter)

    def _image_rows(
        self, own: Sequence[PreparedImage], done: int, split: str, chosen: Tensor | None
    ) -> Iterator[tuple[Tensor, list[str]]]:
        """Embeddings of this process's photos from number `done` on, batch by batch, zeros where one cannot be read.

        With each batch come messages about its photos that cannot be read.
        """
        config = self.checkpoint.config.image
        whole = config.test_view == "full"
        size = 1 if whole else _IMAGES  # whole photos differ in size
        cached = None if whole else self._cached(split)
        if cached is not None:
            self.reporter.note("taking the image CNN's features from the cache")
            features = cached if chosen is None else cached[chosen]
            for batch in features[share(len(features))][done:].split(_IMAGES):
                yield self._encode(batch), []
            return
        self.dataset.check_root()
        views = read_views(
            self.dataset.root, own[done:], views_in_testing(config), batch_size=size, workers=self.workers
        )
        for positions, batch, unread in views:
            rows = torch.zeros(len(positions) + len(unread), self.model.dim)
            if positions:
                first = positions[0] // size * size
                rows[torch.tensor(positions) - first] = self._encode(batch)
            yield rows, unread

    def _cached(self, split: str) -> Tensor | None:
        return cached_test_features(
            self.workspace, self.dataset, self.model.image_encoder, self.checkpoint.config.image, split=split,
            computed_in=self.computed_in,
        )  # fmt: skip

    def _encode(self, views: Tensor) -> Tensor:
        """Embeddings of photos, by their views `(photos, views, 3, height, width)` or cached features."""
        device, lower = self.model.device or torch.device("cpu"), self.computed_in != torch.float32
        with torch.autocast(device.type, self.computed_in, enabled=lower):
            return encode_images(self.model.image_encoder, views.to(device))
