from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from dpce_cli.core.config import Config
from dpce_cli.core.data.loading import read_views
from dpce_cli.core.errors import DataError
from dpce_cli.core.models.image_encoder import ImageEncoder
from dpce_cli.core.presets import build_preset
from dpce_cli.core.retrieval.encoding import pack_captions
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.training.batches import Batch, TrainingSet
from dpce_cli.core.workspace.dataset import PreparedDataset, PreparedImage
from dpce_cli.core.workspace.feature_cache import FeatureCache
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.tiny import Recorder

POSITIONS = 6
VOCABULARY = Vocabulary(tuple(f"word{number}" for number in range(1, 100)), lowercase=True)
CAPTION_COUNTS = (1, 2, 3, 5, 5, 2, 1, 4, 3, 5, 2)
"""Of each training photo; the ids of photo i's caption j are 9 i + j + 1, twice."""


def identity(photo: int, caption: int) -> int:
    return 9 * photo + caption + 1


def shade(photo: int) -> int:
    return 20 + 20 * photo


def prepared(
    root: Path, captions: Sequence[Sequence[tuple[int, ...]]], *, broken: Sequence[int] = ()
) -> PreparedDataset:
    """Photo i is of one shade of grey that tells i; it has the captions `captions[i]`."""
    images = []
    for index, token_ids in enumerate(captions):
        path = root / f"{index}.png"
        if index in broken:
            path.write_bytes(b"no photo")
        else:
            Image.new("RGB", (36, 36), (shade(index),) * 3).save(path)
        words = tuple(" ".join(VOCABULARY.words[token_id - 1] for token_id in ids) or "?" for ids in token_ids)
        images.append(
            PreparedImage(
                image_id=str(index), path=path.name, split="train", captions=words, token_ids=tuple(token_ids)
            )
        )
    workspace = Workspace(root / "workspace")
    return workspace.save_dataset(name="grey", root=root, config=config(), vocabulary=VOCABULARY, images=images)


def of_identities(dataset: PreparedDataset, *identities: str | None) -> PreparedDataset:
    images = tuple(
        replace(image, identity=identity) for image, identity in zip(dataset.images, identities, strict=True)
    )
    return replace(dataset, images=images)


def usual_captions() -> list[list[tuple[int, ...]]]:
    return [[(identity(i, j), identity(i, j)) for j in range(count)] for i, count in enumerate(CAPTION_COUNTS)]


def config(*settings: str) -> Config:
    return build_preset("scenes").with_settings(
        [
            "image.resize=32",
            "image.crop=32",
            "image.cached_crops=1",
            f"text.max_words={POSITIONS}",
            "stage1.epochs=60",
            "stage1.batch_size=3",
            "stage2.batch_size=4",
            *settings,
        ]
    )


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(backbone="resnet18", embedding_dim=4).eval()


def training_set(
    dataset: PreparedDataset,
    encoder: ImageEncoder,
    *settings: str,
    stage: int = 1,
    cache: bool = False,
    vocabulary: Vocabulary = VOCABULARY,
    reporter: Recorder | None = None,
) -> TrainingSet:
    return TrainingSet(
        dataset,
        config(*settings),
        vocabulary,
        encoder,
        stage=stage,
        cache=FeatureCache(Workspace(dataset.root / "workspace")) if cache else None,
        workers=0,
        reporter=reporter or Recorder(),
    )


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return prepared(tmp_path, usual_captions())


def test_swapped_captions_follow_from_seed_and_step_and_change_nothing_else(
    dataset: PreparedDataset, encoder: ImageEncoder, tmp_path: Path
) -> None:
    (tmp_path / "words.toml").write_text(f'word = ["{" ".join(VOCABULARY.words)}"]')
    swapping = ["stage2.detail_weight=1", f"stage2.details={tmp_path / 'words.toml'}"]
    without = list(training_set(dataset, encoder, stage=2, cache=True).batches(1))
    with_swaps = training_set(dataset, encoder, *swapping, stage=2, cache=True)
    batches = list(with_swaps.batches(1))
    assert same(batches, list(training_set(dataset, encoder, *swapping, stage=2, cache=True).batches(1)))
    assert not batches[0].swapped_token_ids.equal(next(with_swaps.batches(2)).swapped_token_ids)
    for batch, plain in zip(batches, without, strict=True):
        assert batch.text_of_swap.equal(torch.arange(len(batch.token_ids)))
        assert not len(plain.text_of_swap)
        assert ((batch.swapped_token_ids != batch.token_ids).sum(1) == 1).all()
        assert same(
            [replace(batch, swapped_token_ids=plain.swapped_token_ids, text_of_swap=plain.text_of_swap)], [plain]
        )
    assert training_set(dataset, encoder, *swapping).swaps is None  # Stage I has none


def same(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.as_tensor(getattr(a, field.name)).equal(torch.as_tensor(getattr(b, field.name)))
        for a, b in zip(first, second, strict=True)
        for field in fields(Batch)
    )


def check_captions(batch: Batch, captions_per_image: int) -> None:
    """Each photo has its own captions, as many as asked for or as there are, none twice."""
    seen = set()
    assert batch.text_instance_ids.equal(batch.instance_ids[batch.image_of_text])
    for row, photo in zip(batch.token_ids.tolist(), batch.text_instance_ids.tolist(), strict=True):
        words = [token_id for token_id in row if token_id]
        assert len(words) == 2
        assert words[0] == words[1]
        assert words[0] in {identity(photo, caption) for caption in range(CAPTION_COUNTS[photo])}
        assert words[0] not in seen
        seen.add(words[0])
    drawn = torch.bincount(batch.image_of_text, minlength=len(batch.instance_ids)).tolist()
    assert drawn == [min(captions_per_image, CAPTION_COUNTS[photo]) for photo in batch.instance_ids.tolist()]


@pytest.mark.parametrize("cache", [False, True])
def test_an_epoch_visits_each_photo_at_most_once_in_full_batches(
    dataset: PreparedDataset, encoder: ImageEncoder, cache: bool
) -> None:
    photos = training_set(dataset, encoder, cache=cache)
    assert photos.steps_per_epoch == 3
    orders = []
    for epoch in range(3):
        visited = [batch.instance_ids.tolist() for batch in photos.batches(epoch)]
        assert [len(batch) for batch in visited] == [3, 3, 3]
        order = list(itertools.chain(*visited))
        assert len(set(order)) == 9
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]
    assert len(set(itertools.chain(*orders))) == len(CAPTION_COUNTS)  # what one epoch leaves out, others visit


def test_photos_are_those_of_their_instances(dataset: PreparedDataset, encoder: ImageEncoder) -> None:
    for batch in training_set(dataset, encoder).batches(0):
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (3, 3, 32, 32)
        for image, instance in zip(batch.images, batch.instance_ids.tolist(), strict=True):
            assert set(image.unique().tolist()) == {shade(instance)}


def test_cached_features_are_those_of_their_instances(dataset: PreparedDataset, encoder: ImageEncoder) -> None:
    photos = torch.stack([torch.full((3, 32, 32), shade(i), dtype=torch.uint8) for i in range(len(CAPTION_COUNTS))])
    with torch.inference_mode():
        expected = encoder.pooled_features(photos)
    for batch in training_set(dataset, encoder, cache=True).batches(0):
        assert batch.images.shape == (3, 512)
        torch.testing.assert_close(batch.images.float(), expected[batch.instance_ids], rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cached_features_for_a_gpu_are_pinned(dataset: PreparedDataset, encoder: ImageEncoder) -> None:
    batch = next(training_set(dataset, deepcopy(encoder).cuda(), cache=True).batches(0))
    assert batch.images.is_pinned()


def test_all_cached_views_are_used(dataset: PreparedDataset, encoder: ImageEncoder) -> None:
    photos = training_set(dataset, encoder, "image.mirror=true", "image.cached_crops=2", cache=True)
    assert photos.features is not None
    assert photos.features.shape[:2] == (len(CAPTION_COUNTS), 4)
    photos.features = torch.arange(4.0).repeat(len(CAPTION_COUNTS), 1)[:, :, None]
    used = {float(view) for epoch in range(4) for batch in photos.batches(epoch) for view in batch.images}
    assert used == {0.0, 1.0, 2.0, 3.0}


@pytest.mark.parametrize("captions_per_image", [1, 3, 5, 9])
@pytest.mark.parametrize("cache", [False, True])
def test_captions_belong_to_their_photos(
    dataset: PreparedDataset, encoder: ImageEncoder, captions_per_image: int, cache: bool
) -> None:
    photos = training_set(dataset, encoder, f"stage1.captions_per_image={captions_per_image}", cache=cache)
    for epoch in range(3):
        for batch in photos.batches(epoch):
            check_captions(batch, captions_per_image)


def test_every_caption_has_its_turn(dataset: PreparedDataset, encoder: ImageEncoder) -> None:
    photos = training_set(dataset, encoder, "stage1.captions_per_image=1", cache=True)
    drawn = {
        int(token_ids.max()) for epoch in range(60) for batch in photos.batches(epoch) for token_ids in batch.token_ids
    }
    assert drawn == {identity(i, j) for i, count in enumerate(CAPTION_COUNTS) for j in range(count)}


@pytest.mark.parametrize("cache", [False, True])
def test_batches_depend_on_seed_stage_epoch_and_step_alone(
    dataset: PreparedDataset, encoder: ImageEncoder, cache: bool
) -> None:
    before = torch.get_rng_state()
    photos = training_set(dataset, encoder, "stage2.batch_size=3", cache=cache)
    first = list(photos.batches(1))
    list(photos.batches(0))
    assert same(first, list(photos.batches(1)))
    torch.manual_seed(99)
    assert same(first, list(training_set(dataset, encoder, "stage2.batch_size=3", cache=cache).batches(1)))
    assert not same(first, list(photos.batches(2)))
    assert not same(first, list(training_set(dataset, encoder, "seed=1", cache=cache).batches(1)))
    assert not same(first, list(training_set(dataset, encoder, "stage2.batch_size=3", stage=2, cache=cache).batches(1)))
    torch.set_rng_state(before)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("first_step", [0, 1, 2])
def test_continuing_at_a_step_gives_the_remaining_batches(
    tmp_path: Path, encoder: ImageEncoder, first_step: int, cache: bool
) -> None:
    dataset = prepared(tmp_path, usual_captions(), broken=[4])
    for index in set(range(len(CAPTION_COUNTS))) - {4}:  # crops must differ to be told apart
        noise = torch.randint(0, 256, (36, 36, 3), generator=torch.Generator().manual_seed(index)).to(torch.uint8)
        Image.fromarray(noise.numpy()).save(tmp_path / f"{index}.png")
    photos = training_set(dataset, encoder, "image.mirror=true", cache=cache)
    whole = list(photos.batches(0))
    assert len(whole) == 3
    assert same(list(photos.batches(0, first_step)), whole[first_step:])


def test_crops_are_new_in_every_epoch(tmp_path: Path, encoder: ImageEncoder) -> None:
    dataset = prepared(tmp_path, [[(1,)], [(2,)]])
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "0.png")
    photos = training_set(dataset, encoder, "image.min_crop_scale=0.5")
    crops = [batch.images[batch.instance_ids == 0] for epoch in range(2) for batch in photos.batches(epoch)]
    assert not crops[0].equal(crops[1])


def test_captions_lose_words_at_random(dataset: PreparedDataset, encoder: ImageEncoder) -> None:
    photos = training_set(dataset, encoder, "model.word_dropout=0.5", cache=True)
    lengths = {int(length) for epoch in range(5) for b in photos.batches(epoch) for length in (b.token_ids != 0).sum(1)}
    assert lengths == {0, 1, 2}


def test_captions_are_placed_anywhere_or_left_aligned(dataset: PreparedDataset, encoder: ImageEncoder) -> None:
    starts: dict[bool, set[int]] = {}
    for shift in (True, False):
        photos = training_set(dataset, encoder, f"model.position_shift={str(shift).lower()}", cache=True)
        rows = [row for epoch in range(20) for batch in photos.batches(epoch) for row in batch.token_ids]
        rows += list(photos.caption_pool(256, torch.tensor([0]), step=0, part=0)[0])
        starts[shift] = {int(row.nonzero()[0]) for row in rows}
    assert starts == {True: set(range(POSITIONS - 1)), False: {0}}


@pytest.mark.parametrize("cache", [False, True])
def test_captions_without_a_known_word_and_photos_without_captions_are_left_out(
    tmp_path: Path, encoder: ImageEncoder, cache: bool
) -> None:
    captions: list[list[tuple[int, ...]]] = [[(1,), ()], [(), ()], [(2, 3)], [(9,)], [(4,)], [(5, 9), (9,)]]
    vocabulary = VOCABULARY.restricted_to(VOCABULARY.words[:8])  # word 9 has no vector
    reporter = Recorder()
    dataset = prepared(tmp_path, captions)
    photos = training_set(
        dataset, encoder, "stage1.batch_size=4", cache=cache, vocabulary=vocabulary, reporter=reporter
    )
    assert reporter.warnings == ["5 training captions have no known word and are left out"]
    for epoch in range(5):
        (batch,) = photos.batches(epoch)
        assert sorted(batch.instance_ids.tolist()) == [0, 2, 4, 5]
        words = {
            instance: [token_id for token_id in row if token_id]
            for instance, row in zip(batch.text_instance_ids.tolist(), batch.token_ids.tolist(), strict=True)
        }
        assert words == {0: [1], 2: [2, 3], 4: [4], 5: [5]}


@pytest.mark.parametrize("cache", [False, True])
def test_unreadable_photos_are_left_out_and_named(tmp_path: Path, encoder: ImageEncoder, cache: bool) -> None:
    dataset, reporter = prepared(tmp_path, usual_captions(), broken=[2, 7]), Recorder()
    photos = training_set(dataset, encoder, "stage1.captions_per_image=5", cache=cache, reporter=reporter)
    batches = [batch for epoch in range(4) for batch in photos.batches(epoch)]
    assert len(batches) == 4 * 3
    visited = {photo for batch in batches for photo in batch.instance_ids.tolist()}
    assert visited == set(range(len(CAPTION_COUNTS))) - {2, 7}
    for batch in batches:
        assert len(batch.images) == len(batch.instance_ids)
        check_captions(batch, 5)
        if not cache:
            assert batch.images[:, 0, 0, 0].tolist() == [shade(i) for i in batch.instance_ids.tolist()]
    for name in ("2.png", "7.png"):
        assert any(name in warning and warning.endswith(": skipped") for warning in reporter.warnings)


def test_a_step_without_a_readable_photo_has_an_empty_batch(tmp_path: Path, encoder: ImageEncoder) -> None:
    """It is not left out, because steps are counted; training refuses it."""
    dataset = prepared(tmp_path, usual_captions(), broken=range(3, len(CAPTION_COUNTS)))
    photos = training_set(dataset, encoder, "stage1.batch_size=2")
    batches = [batch for epoch in range(3) for batch in photos.batches(epoch)]
    assert len(batches) == 3 * 5
    empty = [batch for batch in batches if not len(batch.images)]
    assert empty
    for batch in empty:
        assert len(batch.instance_ids) == len(batch.token_ids) == len(batch.image_of_text) == 0
    for batch in batches:
        check_captions(batch, 5)


def test_fewer_photos_than_a_batch_are_one_batch(tmp_path: Path, encoder: ImageEncoder) -> None:
    photos = training_set(prepared(tmp_path, [[(1,)], [(2,)]]), encoder, "stage1.batch_size=64")
    assert photos.steps_per_epoch == 1
    assert [sorted(batch.instance_ids.tolist()) for batch in photos.batches(0)] == [[0, 1]]


def test_photos_are_read_ahead_past_the_ends_of_epochs(
    dataset: PreparedDataset, encoder: ImageEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers start once, and again only where training goes on elsewhere."""
    started = list[int]()

    def read(*args: Any, **kwargs: Any) -> Iterator[tuple[list[int], Tensor, list[str]]]:
        started.append(kwargs["batch_size"])
        return read_views(*args, **kwargs)

    monkeypatch.setattr("dpce_cli.core.training.batches.read_views", read)
    photos = training_set(dataset, encoder)
    ahead = [list(photos.batches(epoch)) for epoch in range(1, 4)]
    assert len(started) == 1
    list(photos.batches(2))
    list(photos.batches(3, 1))
    assert len(started) == 3
    for epoch, batches in enumerate(ahead, start=1):
        assert same(batches, list(training_set(dataset, encoder).batches(epoch)))


def test_a_single_usable_photo_is_too_few(tmp_path: Path, encoder: ImageEncoder) -> None:
    with pytest.raises(DataError, match="'grey' has 1 usable training images; training needs at least 2"):
        training_set(prepared(tmp_path, [[(1,)], [()]]), encoder)


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_the_caption_pool_never_holds_an_excluded_photo(
    dataset: PreparedDataset, encoder: ImageEncoder, size: int
) -> None:
    photos = training_set(dataset, encoder, stage=2, cache=True)
    without = torch.tensor([3, 0, 7])
    available = sum(CAPTION_COUNTS) - 5 - 1 - 4
    for step in range(20):
        token_ids, instances = photos.caption_pool(size, without, step, 0)
        assert len(token_ids) == len(instances) == min(size, available)
        assert not set(instances.tolist()) & {3, 0, 7}
        owners = [(int(row.max()) - 1) // 9 for row in token_ids]
        assert owners == instances.tolist()
        assert len({int(row.max()) for row in token_ids}) == len(token_ids)


def test_the_caption_pool_depends_on_the_step_and_its_part(dataset: PreparedDataset, encoder: ImageEncoder) -> None:
    photos = training_set(dataset, encoder, stage=2, cache=True)
    without = torch.tensor([1])
    places = ((0, 0), (0, 0), (1, 0), (0, 1))
    first, again, *others = (photos.caption_pool(5, without, step, part) for step, part in places)
    assert first[0].equal(again[0])
    assert first[1].equal(again[1])
    assert not any(first[0].equal(other[0]) for other in others)


@pytest.mark.parametrize("without", [[3], list(range(40)), list(range(49))])
def test_a_pool_that_is_small_beside_all_captions_is_random_and_without_repetition(
    tmp_path: Path, encoder: ImageEncoder, without: list[int]
) -> None:
    dataset = prepared(tmp_path, [[(1, 1 + photo % 8)] * 5 for photo in range(50)])
    photos = training_set(dataset, encoder, stage=2, cache=True)
    drawn = set[int]()
    for step in range(40):
        _, instances = photos.caption_pool(5, torch.tensor(without), step, 0)
        assert len(instances) == 5
        assert not set(instances.tolist()) & set(without)
        drawn |= set(instances.tolist())
    assert drawn == set(range(50)) - set(without)


PERSONS = ("ann", None, "bob", "ann", None, "bob", "ann", None, None, "carl", "ann")
INSTANCES = (0, 1, 2, 0, 3, 2, 0, 4, 5, 6, 0)
"""Of the photos of `PERSONS`."""


@pytest.mark.parametrize("cache", [False, True])
def test_photos_of_one_identity_are_one_instance_and_an_epoch_still_visits_each(
    dataset: PreparedDataset, encoder: ImageEncoder, cache: bool
) -> None:
    photos = training_set(of_identities(dataset, *PERSONS), encoder, "stage1.batch_size=11", cache=cache)
    assert photos.instances == 7
    (batch,) = photos.batches(0)
    assert sorted(batch.instance_ids.tolist()) == sorted(INSTANCES)
    assert batch.text_instance_ids.equal(batch.instance_ids[batch.image_of_text])
    owners = [(int(row.max()) - 1) // 9 for row in batch.token_ids]
    assert batch.text_instance_ids.tolist() == [INSTANCES[photo] for photo in owners]


def test_the_caption_pool_holds_no_other_photo_of_an_excluded_identity(
    dataset: PreparedDataset, encoder: ImageEncoder
) -> None:
    photos = training_set(of_identities(dataset, *PERSONS), encoder, stage=2, cache=True)
    token_ids, instances = photos.caption_pool(1000, torch.tensor([0, 2]), 0, 0)
    owners = [(int(row.max()) - 1) // 9 for row in token_ids]
    assert set(owners) == {1, 4, 7, 8, 9}
    assert instances.tolist() == [INSTANCES[photo] for photo in owners]


def test_a_caption_pool_that_would_be_empty_is_a_data_error(dataset: PreparedDataset, encoder: ImageEncoder) -> None:
    photos = training_set(of_identities(dataset, *["ann"] * 11), encoder, stage=2, cache=True)
    with pytest.raises(DataError, match=r"'grey' has no captions of other instances .* stage2\.negatives=hardest_in_b"):
        photos.caption_pool(5, torch.tensor([0]), 0, 0)


def test_the_stage_decides_the_batch_size(dataset: PreparedDataset, encoder: ImageEncoder) -> None:
    assert training_set(dataset, encoder, stage=1).steps_per_epoch == 3
    assert training_set(dataset, encoder, stage=2).steps_per_epoch == 2


def test_packed_captions_are_in_the_ids_of_the_smaller_vocabulary() -> None:
    vocabulary = VOCABULARY.restricted_to({"word2", "word4", "word5"})
    image = PreparedImage(
        image_id="a",
        path="a.png",
        split="train",
        captions=("x", "y", "z"),
        token_ids=((5, 1, 2, 4), (3,), (4, 4, 4, 5)),
    )
    captions = pack_captions([image, replace(image, captions=("x",), token_ids=((2,),))], VOCABULARY, vocabulary, 3)
    assert captions.token_ids.tolist() == [[3, 1, 2], [0, 0, 0], [2, 2, 2], [1, 0, 0]]
    assert captions.image_of_text.tolist() == [0, 0, 0, 1]


def test_a_batch_moves_to_a_device_whole(dataset: PreparedDataset, encoder: ImageEncoder) -> None:
    batch = next(training_set(dataset, encoder).batches(0)).to(torch.device("meta"))
    tensors = [value for value in vars(batch).values() if isinstance(value, Tensor)]
    assert {value.device.type for value in tensors} == {"meta"}
    assert len(tensors) == sum(field.type == "Tensor" for field in fields(Batch))
