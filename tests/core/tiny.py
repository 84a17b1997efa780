"""Data sets, configurations and runs so small that a stage of training takes about a second."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models

from dpce_cli.core.config import Config
from dpce_cli.core.data.records import CaptionedImage
from dpce_cli.core.models import backbones
from dpce_cli.core.presets import build_preset
from dpce_cli.core.progress import Reporter
from dpce_cli.core.text.vocabulary import build_vocabulary
from dpce_cli.core.training.batches import Batch
from dpce_cli.core.training.options import RunOptions, StageResult
from dpce_cli.core.training.run import StageRun
from dpce_cli.core.training.stage1 import train_stage1
from dpce_cli.core.training.stage2 import train_stage2
from dpce_cli.core.workspace.checkpoint import Checkpoint, fingerprint, load_checkpoint
from dpce_cli.core.workspace.dataset import PreparedDataset, PreparedImage
from dpce_cli.core.workspace.workspace import Workspace

BATCH = 4
TRAIN = 12
STEPS = TRAIN // BATCH
"""Steps per epoch."""
EPOCHS = 3


BY_HEART = [
    *(f"{stage}.{setting}" for stage in ("stage1", "stage2") for setting in ("epochs=50", "batch_size=8")),
    "stage1.learning_rate=0.02",
    "stage2.learning_rate=0.02",
    "model.embedding_dim=64",
    "model.text_blocks=[1]",
    "model.text_width=0.2",
    "model.dropout=0",
    "model.feature_dropout=0",
    "model.word_dropout=0",
    "model.classifier_scale=5",
    "image.min_crop_scale=1",
]
"""Settings that overfit."""


def dataset_file(folder: Path, name: str) -> Path:
    """The file of a prepared data set that has this `name`, such as `images.jsonl`, and a hash in it."""
    if name == "dataset.json":
        return folder / name
    stem, _, suffix = name.partition(".")
    (path,) = folder.glob(f"{stem}-*.{suffix}")
    return path


class TinyCNN(models.ResNet):  # type: ignore[misc]  # torchvision has no types
    """Replaces a ResNet in tests for which its size does not matter."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.conv1 = nn.Conv2d(3, 16, 2, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 2, stride=2, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.avgpool = nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(images))))))
        pooled: Tensor = self.fc(self.avgpool(maps).flatten(1))
        return pooled


@contextmanager
def tiny_cnn() -> Iterator[None]:
    """Put `TinyCNN` in the place of ResNet-34, and compute in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with _tiny_resnet34():
        yield
    torch.set_num_threads(threads)


def _tiny_resnet34() -> AbstractContextManager[object]:
    return patch.dict(backbones.VARIANTS, {"resnet34": TinyCNN})


class Recorder(Reporter):
    """Keeps all notes and warnings."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def tiny_config(weights: Path | None, *settings: str) -> Config:
    """With `weights`, the image CNN is frozen in both stages; without, it learns from scratch."""
    stages = [
        f"{stage}.{setting}"
        for stage in ("stage1", "stage2")
        for setting in (
            f"epochs={EPOCHS}",
            f"batch_size={BATCH}",
            "learning_rate=0.003",
            f"multipliers.backbone={0 if weights else 1}",
        )
    ]
    return build_preset("scenes").with_settings(
        [
            "image.backbone=resnet34",
            f"image.backbone_weights={weights or 'none'}",
            "image.resize=40",
            "image.crop=32",
            "image.cached_crops=1",
            "image.pooling=[1,1]",
            "text.max_words=10",
            "model.embedding_dim=16",
            "model.word_dim=12",
            "model.text_width=0.05",
            "model.text_blocks=[1,1,1]",
            "stage2.detail_weight=0",
            *stages,
            *settings,
        ]
    )


def save_weights(path: Path, cnn: nn.Module) -> Path:
    """Random weights and, unlike those of a new network, random batch norm statistics."""
    generator = torch.Generator().manual_seed(1)
    state = cnn.state_dict()
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.normal_(0, 0.1, generator=generator)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.is_floating_point():
            value += 0.01 * torch.randn(value.shape, generator=generator)
    torch.save(state, path)
    return path


def write_photo(path: Path, seed: int) -> None:
    """A 40 x 40 mosaic of 16 random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours).resize((40, 40), Image.Resampling.NEAREST).save(path)


def tiny_images(root: Path, *, train: int = TRAIN, val: int = 6) -> list[CaptionedImage]:
    """Photos with two captions each; those of the test split are missing on the disk, so that reading one fails."""
    images: list[CaptionedImage] = []
    for split, count in (("train", train), ("val", val), ("test", 2)):
        for index in range(count):
            path = f"{split}{index}.png"
            if split != "test":
                write_photo(root / path, seed=len(images))
            captions = (f"a mosaic of x{index} y{index} z{index}", f"many x{index} with z{index}")
            images.append(CaptionedImage(image_id=f"{split}/{index}", path=path, split=split, captions=captions))
    return images


def prepare(workspace: Workspace, root: Path, images: Sequence[CaptionedImage], config: Config) -> PreparedDataset:
    words = [caption.split() for image in images if image.split == "train" for caption in image.captions]
    vocabulary = build_vocabulary(words, lowercase=True, min_count=1)
    return workspace.save_dataset(
        name="tiny",
        root=root,
        config=config,
        vocabulary=vocabulary,
        images=[
            PreparedImage(
                image_id=image.image_id,
                path=image.path,
                split=image.split,
                captions=image.captions,
                identity=image.identity,
                extent=image.extent,
                token_ids=tuple(tuple(vocabulary.token_ids(text.split())) for text in image.captions),
            )
            for image in images
        ],
    )


def prepare_eight_pairs(workspace: Workspace, config: Config) -> None:
    """The validation split holds the training pairs."""
    root = workspace.root / "photos"
    pairs = [
        replace(image, captions=image.captions[:1])
        for image in tiny_images(root, train=8, val=0)
        if image.split == "train"
    ]
    again = [replace(pair, split="val", image_id=f"again {pair.image_id}") for pair in pairs]
    prepare(workspace, root, [*pairs, *again], config)


def train(
    workspace: Workspace,
    stage: int,
    config: Config,
    *,
    fresh: bool = False,
    cache: bool = True,
    reporter: Reporter | None = None,
    **how: Any,
) -> StageResult:
    """Begin or continue a stage; Stage II begins from Stage I's best.pt. `how` is passed to `RunOptions`."""
    options = RunOptions(device=torch.device("cpu"), workers=0, feature_cache=cache, fresh=fresh, **how)
    dataset, reporter = workspace.load_dataset(), reporter or Reporter()
    if stage == 1:
        return train_stage1(workspace, dataset, config, None, options, reporter)
    return train_stage2(workspace, dataset, config, checkpoint(workspace, 1, "best"), options, reporter)


def checkpoint(workspace: Workspace, stage: int, name: str) -> Checkpoint:
    with _tiny_resnet34():  # the sizes of the weights are checked, also where other processes have trained
        return load_checkpoint(workspace.stage_folder(stage) / f"{name}.pt", remedy="train")


def records(workspace: Workspace, stage: int, kind: str | None = None) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the machine's speed."""
    lines = (workspace.stage_folder(stage) / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    for record in found:
        for name in ("images_per_second", "data_wait"):
            record.pop(name, None)
    return [record for record in found if kind in (None, record["kind"])]


def outcome(workspace: Workspace, stage: int) -> dict[str, Any]:
    """All results of a run; they are equal only for bit-identical runs."""
    last, best = checkpoint(workspace, stage, "last"), checkpoint(workspace, stage, "best")
    moments = {
        f"{index} {name}": value for index, state in last.optimizer["state"].items() for name, value in state.items()
    }
    return {
        "records": records(workspace, stage),
        "last": fingerprint(last.model),
        "best": fingerprint(best.model),
        "optimizer": fingerprint(moments),
        "steps": (last.step, best.step),
        "validation": (last.best, best.best),
    }


def copy(workspace: Workspace, root: Path) -> Workspace:
    shutil.copytree(workspace.root, root)
    return Workspace(root)


def send_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT) -> None:
    """Send the signal during this step (from 0)."""
    batches = StageRun.batches

    def signalling(self: StageRun, epoch: int) -> Iterator[Batch]:
        for batch in batches(self, epoch):
            if self.state.step == step:
                os.kill(os.getpid(), number)
            yield batch

    monkeypatch.setattr(StageRun, "batches", signalling)
