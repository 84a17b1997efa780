"""Train a stage on a part of a prepared data set, and return the times and records."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from dpce_cli.core.progress import Advance, Reporter


class EpochClock(Reporter):
    """Records when each tracked part begins and ends."""

    def __init__(self) -> None:
        self.spans: dict[str, tuple[float, float]] = {}

    @contextmanager
    def track(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        start = time.time()
        with super().track(label, total, done) as advance:
            yield advance
        self.spans[label] = start, time.time()


class KeptBatches:
    """A training set whose batches of the first epoch are kept in the main memory and used again."""

    def __init__(self, training_set: Any) -> None:
        self.training_set, self.kept = training_set, list[Any]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.training_set, name)

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Any]:
        if not self.kept:
            self.kept.extend(self.training_set.batches(epoch, first_step))
        return iter(self.kept)


def train(
    root: Path,
    images: int,
    workers: int,
    *,
    feature_cache: bool,
    device: str = "cpu",
    epochs: int = 2,
    in_memory: bool = False,
    stage: int = 1,
    preset: str | None = None,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    steps: int | None = None,
) -> tuple[dict[str, tuple[float, float]], list[dict[str, float]]]:
    """Train a stage from scratch in a temporary workspace; returns the start and end of each part, and its records.

    Stage I has a frozen CNN with every preset.

    Args:
        images: number of photos, which are the classes; if the data set has fewer, photos are repeated.
        in_memory: keep the batches of the first epoch in memory, and use them in all epochs.
        steps: the most steps per epoch.
    """
    import torch
    from torchvision.models import get_model

    from dpce_cli.core.presets import build_preset
    from dpce_cli.core.training import stage1, stage2
    from dpce_cli.core.training.batches import TrainingSet
    from dpce_cli.core.training.opening import open_run
    from dpce_cli.core.training.options import RunOptions, StageJob
    from dpce_cli.core.workspace.workspace import Workspace

    dataset = Workspace(root).load_dataset()
    config, train_split = build_preset(preset) if preset else dataset.config, dataset.split("train")
    settings = [f"stage{stage}.epochs={epochs}"]
    if stage == 1:
        settings += ["stage1.multipliers.backbone=0", "stage1.multipliers.backbone_bias=0"]
    clock = EpochClock()
    with tempfile.TemporaryDirectory() as folder:
        cnn = get_model(config.image.backbone.removesuffix("-v1"))
        torch.save(cnn.state_dict(), f"{folder}/weights.pt")  # random weights take the same time as trained ones
        settings.append(f"image.backbone_weights={folder}/weights.pt")
        workspace = Workspace(Path(folder))
        subset = workspace.save_dataset(
            name=dataset.name,
            root=dataset.root,
            config=config.with_settings(settings),
            vocabulary=dataset.vocabulary,
            images=(replace(train_split[i % len(train_split)], image_id=str(i)) for i in range(images)),
        )
        options = RunOptions(
            device=torch.device(device), workers=workers, feature_cache=feature_cache, fresh=True, precision=precision
        )
        model, words = stage1.build_model(subset, subset.config, None, stage=stage)
        job = StageJob(
            workspace=workspace,
            dataset=subset,
            config=subset.config,
            number=stage,
            words=words,
            options=options,
            reporter=clock,
        )
        with open_run(job, model) as run:
            run.training_set.steps_per_epoch = min(run.training_set.steps_per_epoch, steps or images)
            if in_memory:
                run.training_set = cast(TrainingSet, KeptBatches(run.training_set))
            (stage1 if stage == 1 else stage2).train(run)
        lines = (workspace.stage_folder(stage) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return clock.spans, [json.loads(line) for line in lines]
