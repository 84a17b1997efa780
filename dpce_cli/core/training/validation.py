"""Retrieval on the validation split while a model trains."""

from __future__ import annotations

from dataclasses import replace

import torch

from dpce_cli.core.config import Config
from dpce_cli.core.data.loading import read_views
from dpce_cli.core.data.records import instance_ids
from dpce_cli.core.data.views import FixedViews
from dpce_cli.core.errors import DataError
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.models.image_encoder import ImageEncoder
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.encoding import encode_images, encode_text, pack_captions
from dpce_cli.core.retrieval.metrics import RetrievalMetrics, evaluate, evaluate_by_identity
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.feature_cache import FeatureCache, cached_features, in_chunks, readable_photos

# Placements per caption. The test protocol averages over all of them, about 20, and takes five times as long.
_PLACEMENTS = 4
_BATCH = 32


class ValidationSet:
    """The photos and captions of the validation split; false if the split is empty.

    Uses central crops, whatever `image.test_view` is: they are several times as fast as whole photos.

    Args:
        encoder: its CNN computes the cached features.
        cache: has the features of the frozen CNN or of its lower part; with None, photos are read.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        config: Config,
        vocabulary: Vocabulary,
        encoder: ImageEncoder,
        *,
        cache: FeatureCache | None,
        workers: int,
        reporter: Reporter,
    ) -> None:
        self.dataset, self.config, self.workers, self.reporter = dataset, config, workers, reporter
        self.images = [image for image in dataset.images if image.split == "val"]
        self.captions = pack_captions(self.images, dataset.vocabulary, vocabulary, config.text.max_words)
        self.features = None
        self.unreadable = set[str]()
        if self.images and cache:
            self.features = cached_features(
                cache, dataset, encoder, config.image, split="val", workers=workers, reporter=reporter
            )
        if not self.images:
            reporter.warn("no validation split: the model of the last epoch is taken as the best")

    def __bool__(self) -> bool:
        return bool(self.images)

    @torch.inference_mode()
    def evaluate(self, model: DualEncoder) -> RetrievalMetrics:
        """Retrieval among the validation photos that can be read and their captions.

        If photos have identities, every photo of the caption's identity is a hit in text-to-image, as in testing; in
        image-to-text, only the photo's own captions are.

        Raises:
            DataError: no photo can be read.
        """
        model.eval()
        device = next(model.parameters()).device
        if self.features is not None:
            readable = readable_photos(self.features)
            embeddings = [
                encode_images(model.image_encoder, features.to(device)) for features in in_chunks(self.features)
            ]
            embeddings = [torch.cat(embeddings)[readable]]
        else:
            readable = torch.zeros(len(self.images), dtype=torch.bool)
            embeddings = []
            view = FixedViews(self.config.image)
            for positions, views, problems in read_views(
                self.dataset.root, self.images, view, batch_size=_BATCH, workers=self.workers
            ):
                for problem in set(problems) - self.unreadable:
                    self.reporter.warn(f"{problem}: skipped")
                self.unreadable.update(problems)
                if positions:
                    readable[positions] = True
                    embeddings.append(encode_images(model.image_encoder, views.to(device)))
            if not embeddings:
                raise DataError(
                    f"{self.dataset.root}: none of the {len(self.images)} validation photos can be read; "
                    "put them there and run again"
                )
        kept = readable[self.captions.image_of_text]
        texts = encode_text(
            model.text_encoder,
            self.captions.token_ids[kept],
            placements=_PLACEMENTS if self.config.model.position_shift else 1,
        )
        image_of_text = (readable.cumsum(0) - 1)[self.captions.image_of_text[kept]]
        photos = torch.cat(embeddings)
        metrics = evaluate(photos, texts, image_of_text)
        if any(image.identity for image in self.images):
            identities = torch.tensor(instance_ids(self.images))[readable]
            metrics = replace(metrics, text_to_image=evaluate_by_identity(photos, texts, image_of_text, identities))
        return metrics
