"""The batches of a training stage: photos or their cached features, with captions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dpce_cli.core.config import Config, ImageConfig, RankingStageConfig
from dpce_cli.core.data.loading import read_ahead, read_views
from dpce_cli.core.data.position_shift import shift_randomly
from dpce_cli.core.data.records import instance_ids
from dpce_cli.core.data.shards import shard_name
from dpce_cli.core.data.views import random_crop
from dpce_cli.core.data.word_dropout import drop_words
from dpce_cli.core.errors import DataError
from dpce_cli.core.models.image_encoder import ImageEncoder
from dpce_cli.core.processes.collectives import gather_objects, lengths, share, world_size
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.encoding import pack_captions
from dpce_cli.core.seeding import generator_for
from dpce_cli.core.text.details import read_details
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.training.details import DetailSwaps
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.feature_cache import FeatureCache, cached_features, readable_photos

# Largest number of tar shards from which photos are mixed. With more, the order is more random, but reading is slower.
SHARDS_READ_TOGETHER = 16


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The photos and captions of one step, or a part of them; on the CPU, or after `to` on the device.

    Each process holds its own photos, but the whole batch's ids and captions.
    """

    rows: Tensor
    """`(images,)` positions of the photos in the training set."""
    images: Tensor
    """This process's uint8 photos `(own images, 3, height, width)`, or their cached features `(own images, ...)`."""
    counts: tuple[int, ...]
    """Number of photos of each process."""
    instance_ids: Tensor
    """`(images,)`, the classes of the instance loss."""
    token_ids: Tensor
    """`(texts, words)`, after word dropout and position shift."""
    text_instance_ids: Tensor
    """`(texts,)`"""
    image_of_text: Tensor
    """`(texts,)` position in `rows` of each caption's photo; -1 for a caption of a photo that is not in the batch."""
    swapped_token_ids: Tensor
    """`(swaps, words)` captions with one detail swapped; none without `stage2.detail_weight`."""
    text_of_swap: Tensor
    """`(swaps,)` position in `token_ids` of the true caption."""
    part: int = 0
    """Number of this part of its step."""
    image_share: float = 1.0
    """This part's share of the step's photos: the weight of a mean over photos."""
    text_share: float = 1.0
    """This part's share of the step's captions: the weight of a mean over captions or their triplets."""
    query_share: float = 1.0
    """This part's share of the step's queries with "hardest_in_pool": the first half of each part's photos."""

    def to(self, device: torch.device) -> Batch:
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def parts(self, count: int) -> list[Batch]:
        """Split the photos with their captions into `count` parts of about the same size, or fewer.

        A part has at least 2 photos. A mean over the batch is the sum of the parts' means times their shares.
        """
        count = min(count, len(self.rows) // 2, *self.counts)
        if count < 2:
            return [self]
        parts = [self._part(number, count) for number in range(count)]
        queries = sum(len(part.rows) // 2 for part in parts)
        return [replace(part, query_share=len(part.rows) // 2 / queries) for part in parts]

    def _part(self, number: int, count: int) -> Batch:
        """Every `count`-th photo of each process; equal for every number of processes that divides the batch evenly."""
        starts = accumulate(self.counts, initial=0)
        kept = torch.cat([torch.arange(first + number, end, count) for first, end in pairwise(starts)])
        position = torch.full((len(self.rows),), -1)
        position[kept] = torch.arange(len(kept))
        texts = position[self.image_of_text] >= 0
        part = self.with_texts(texts)
        return replace(
            part,
            rows=self.rows[kept],
            images=self.images[number::count],
            counts=tuple(len(range(number, photos, count)) for photos in self.counts),
            instance_ids=self.instance_ids[kept],
            image_of_text=position[part.image_of_text],
            part=number,
            image_share=len(kept) / len(self.rows),
            text_share=len(part.image_of_text) / len(self.image_of_text),
        )

    def with_texts(self, kept: Tensor) -> Batch:
        """The batch with only the captions where `kept`, bool `(texts,)`, is true, and with their swapped captions."""
        swaps = kept[self.text_of_swap]
        return replace(
            self,
            token_ids=self.token_ids[kept],
            text_instance_ids=self.text_instance_ids[kept],
            image_of_text=self.image_of_text[kept],
            swapped_token_ids=self.swapped_token_ids[swaps],
            text_of_swap=(kept.cumsum(0) - 1)[self.text_of_swap[swaps]],
        )


class TrainingSet:
    """The training photos and captions, in batches that depend only on seed, epoch and step.

    Captions without a known word and photos without a caption are left out. Each photo is one class of the instance
    loss; photos of the same identity are one class together. An epoch passes over all photos in random order. Photos in
    tar shards are in random order within a group of `SHARDS_READ_TOGETHER` random shards, one group after another.

    Args:
        encoder: its CNN computes the cached features; it is on the device for the batches.
        cache: has the features of the frozen CNN or of its lower part; with None, photos are read.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        config: Config,
        vocabulary: Vocabulary,
        encoder: ImageEncoder,
        *,
        stage: int,
        cache: FeatureCache | None,
        workers: int,
        reporter: Reporter,
    ) -> None:
        self.name, self.root, self.config, self.seed = dataset.name, dataset.root, config, (config.seed, stage)
        self.stage = config.stage(stage)
        self.workers, self.reporter = workers, reporter
        self.on_gpu = next(encoder.parameters()).device.type == "cuda"
        self.unreadable = set[str]()
        self.images = dataset.split("train")
        self.instance_of_image = torch.tensor(instance_ids(self.images))
        self.instances = dataset.instances
        captions = pack_captions(self.images, dataset.vocabulary, vocabulary, config.text.max_words)
        known = captions.token_ids[:, 0] != 0
        self.token_ids, self.image_of_text = captions.token_ids[known].long(), captions.image_of_text[known]
        self.instance_of_text = self.instance_of_image[self.image_of_text]
        self.caption_counts = torch.bincount(self.image_of_text, minlength=len(self.images))
        self.first_caption = self.caption_counts.cumsum(0) - self.caption_counts
        self.swaps = None
        if isinstance(self.stage, RankingStageConfig) and self.stage.detail_weight:
            self.swaps = DetailSwaps(
                read_details(self.stage.details),
                vocabulary,
                self.token_ids,
                self.instance_of_text,
                self.instances,
                swap_in_named=self.stage.swap_in_named,
            )
        self.features = (
            cached_features(cache, dataset, encoder, config.image, split="train", workers=workers, reporter=reporter)
            if cache
            else None
        )
        usable = self.caption_counts > 0
        if self.features is None:
            dataset.check_root()
        else:
            usable &= readable_photos(self.features)
        self.usable = usable.nonzero().squeeze(1)
        self._shards = self._shard_of_usable() if self.features is None else None
        self.steps_per_epoch = max(1, len(self.usable) // self.stage.batch_size)
        if left_out := len(known) - int(known.sum()):
            reporter.warn(f"{left_out} training captions have no known word and are left out")
        if len(self.usable) < max(2, world_size()):
            raise DataError(
                f"data set '{dataset.name}' has {len(self.usable)} usable training images; training needs at least 2, "
                "and one for each process"
            )
        self._next_step = -1

    @property
    def usable_fingerprint(self) -> str:
        """SHA-256, in hex, of the list of usable photos, which decides their order together with the seed."""
        return hashlib.sha256(self.usable.numpy().tobytes()).hexdigest()

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (from 0) from step `first_step` on; photos that do not fill a batch are skipped."""
        batches = self._batches(epoch, first_step)
        return batches if self.features is None else read_ahead(batches)

    def _batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        start = epoch * self.steps_per_epoch
        if self._next_step != start + first_step:
            self._images_of_steps = self._read(start + first_step)
        for step in range(first_step, self.steps_per_epoch):
            rows, counts, images = next(self._images_of_steps)
            self._next_step = start + step + 1
            generator = generator_for(*self.seed, epoch, step)
            texts, owner = self._draw_captions(rows, generator)
            if self.features is not None:
                own = share(len(rows))
                views = torch.randint(self.features.shape[1], (len(rows),), generator=generator)
                images = self.features[rows[own], views[own]]
                if self.on_gpu:
                    images = images.pin_memory()  # from there, a GPU copies while it computes
            token_ids, text_instance_ids = (
                self._augmented(self.token_ids[texts], generator),
                self.instance_of_text[texts],
            )
            swapped, text_of_swap = token_ids[:0], owner[:0]
            if self.swaps:
                details = generator_for(*self.seed, "details", epoch, step)
                swapped, text_of_swap = self.swaps.draw(token_ids, text_instance_ids, details)
            yield Batch(
                rows=rows,
                images=images,
                counts=counts,
                instance_ids=self.instance_of_image[rows],
                token_ids=token_ids,
                text_instance_ids=text_instance_ids,
                image_of_text=owner,
                swapped_token_ids=swapped,
                text_of_swap=text_of_swap,
            )

    def _permutation(self, generator: torch.Generator) -> Tensor:
        """A random order of the usable photos; photos in shards are ordered by groups of random shards."""
        shuffled = torch.randperm(len(self.usable), generator=generator)
        if self._shards is None:
            return shuffled
        count, shards = self._shards
        window = torch.randperm(count, generator=generator) % -(-count // SHARDS_READ_TOGETHER)
        return shuffled[window[shards[shuffled]].argsort(stable=True)]

    def _shard_of_usable(self) -> tuple[int, Tensor] | None:
        """The number of shards, and the shard of each usable photo; None if photos are single files."""
        if any(image.extent is None for image in self.images):
            return None
        numbers = dict[str, int]()
        shards = [numbers.setdefault(shard_name(image.path), len(numbers)) for image in self.images]
        return len(numbers), torch.tensor(shards)[self.usable]

    def caption_pool(self, size: int, without: Tensor, step: int, part: int) -> tuple[Tensor, Tensor]:
        """Token ids and instance ids of `size` random captions of other instances than `without`.

        Args:
            without: `(classes,)` instance ids.
            step: the captions depend on step and part.

        Raises:
            DataError: there are no such captions.
        """
        generator = generator_for(*self.seed, "pool", step, *[f"part {part}"] * bool(part))
        chosen = self._draw_pool(size, without, generator)
        if not len(chosen):
            raise DataError(
                f"data set '{self.name}' has no captions of other instances than those of a batch, so there are no "
                "negatives; set stage2.negatives=hardest_in_batch, or a smaller stage2.batch_size"
            )
        return self._augmented(self.token_ids[chosen], generator), self.instance_of_text[chosen]

    def _draw_pool(self, size: int, without: Tensor, generator: torch.Generator) -> Tensor:
        """Positions of `size` different captions of other instances than `without`.

        Most captions are allowed, so it draws some and rejects the others. To permute all allowed captions takes 30 ms
        per step on the 567,000 captions of MSCOCO.
        """
        captions = len(self.instance_of_text)
        if captions >= 8 * size:
            drawn = torch.randint(captions, (4 * size,), generator=generator)
            first = torch.tensor(list(dict.fromkeys(drawn.tolist())))
            found = first[~torch.isin(self.instance_of_text[first], without)][:size]
            if len(found) == size:
                return found
        candidates = (~torch.isin(self.instance_of_text, without)).nonzero().squeeze(1)
        return candidates[torch.randperm(len(candidates), generator=generator)[:size]]

    def _augmented(self, token_ids: Tensor, generator: torch.Generator) -> Tensor:
        model = self.config.model
        token_ids = drop_words(token_ids, model.word_dropout, generator)
        return shift_randomly(token_ids, generator) if model.position_shift else token_ids

    def _order(self, first: int) -> Iterator[Tensor]:
        """The photos of each step, from step `first` to the last."""
        for epoch in range(first // self.steps_per_epoch, self.stage.epochs):
            order = self.usable[self._permutation(generator_for(*self.seed, epoch))]
            done = max(0, first - epoch * self.steps_per_epoch)
            yield from order.split(self.stage.batch_size)[done : self.steps_per_epoch]

    def _read(self, first: int) -> Iterator[tuple[Tensor, tuple[int, ...], Tensor]]:
        """Per step: the photos of all processes, their number per process, and this process's pixels, if not cached.

        Reading ahead does not stop at the end of an epoch.
        """
        if self.features is not None:
            for rows in self._order(first):
                yield rows, lengths(len(rows)), torch.empty(0)
            return
        size = min(self.stage.batch_size, len(self.usable))
        own = share(size)
        length = own.stop - own.start
        view = _TrainingViews(
            self.config.image, self.seed, first=first, steps=self.steps_per_epoch, start=own.start, length=length,
            size=size,
        )  # fmt: skip
        views = read_views(
            self.root, self.images, view, batch_size=length, workers=self.workers, pinned=self.on_gpu,
            order=(row for rows in self._order(first) for row in rows[own].tolist()),
        )  # fmt: skip
        for rows, (positions, pixels, problems) in zip(self._order(first), views, strict=True):
            readable, unreadable = zip(
                *gather_objects(([own.start + position % length for position in positions], problems)), strict=True
            )
            for problem in dict.fromkeys(problem for problems in unreadable for problem in problems):
                if problem not in self.unreadable:
                    self.reporter.warn(f"{problem}: skipped")
                self.unreadable.add(problem)
            kept = torch.tensor([position for positions in readable for position in positions], dtype=torch.long)
            yield rows[kept], tuple(map(len, readable)), pixels

    def _draw_captions(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random different captions per photo: their positions, and the position in `rows` of the photo of each."""
        available = self.caption_counts[rows]
        most = int(self.caption_counts.max())
        draw = torch.rand(len(rows), most, generator=generator)
        draw[torch.arange(most) >= available[:, None]] = torch.inf
        chosen = draw.argsort(1)[:, : self.stage.captions_per_image]
        owner, drawn = (torch.arange(chosen.shape[1]) < available[:, None]).nonzero(as_tuple=True)
        return self.first_caption[rows[owner]] + chosen[owner, drawn], owner


@dataclass(frozen=True)
class _TrainingViews:
    """Random crops that depend on the photo's position in the epoch.

    This process computes `length` of the `size` photos per step.
    """

    config: ImageConfig
    seed: tuple[int, int]
    first: int
    """Step of position 0."""
    steps: int
    """Steps per epoch."""
    start: int
    """Position of this process's first photo in a step."""
    length: int
    size: int

    def __call__(self, image: Image.Image, position: int) -> Tensor:
        later, number = divmod(position, self.length)
        epoch, step = divmod(self.first + later, self.steps)
        return random_crop(self.config, image, "crop", *self.seed, epoch, step * self.size + self.start + number)
