#!/usr/bin/env python3
"""Measured comparisons, each of like with like in one run: what the design saves, as a ratio.

    python examples/benchmarks.py embedding     the word look-up against the one-hot convolution it stands for
    python examples/benchmarks.py stage1        an epoch from cached features against one that runs the image CNN
    python examples/benchmarks.py feeding       training from cached features and from photos against tensors in memory
    python examples/benchmarks.py shards        reading photos from tar shards against reading the same ones from files
    python examples/benchmarks.py memory        evaluation in blocks against the whole similarity matrix
    python examples/benchmarks.py startup       how soon the command line answers
    python examples/benchmarks.py classifier    the shared classifier of up to a million classes, whole and in parts
    python examples/benchmarks.py plan          the memory that dpce plan estimates against what is measured
    python examples/benchmarks.py store         embeddings of a million photos, written and read with little memory
    python examples/benchmarks.py prepare       prepare-vocab on as many images and captions as MSCOCO has

`stage1`, `feeding`, `shards` and `startup` use the current data set of a workspace (--workspace); all run within
minutes, on the CPU but for `feeding --device cuda`, and want an otherwise idle machine. What is measured runs in
processes of its own; this one stays small, because the peak memory of a Linux process begins at that of the process
which started it.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from dpce_cli.core.progress import Advance, Reporter

P = ParamSpec("P")
T = TypeVar("T")


def in_own_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_after_imports() -> float:
    """With what torch's optimizers import when the first of them is made."""
    import torch

    value = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([value], lr=0.1, fused=True)
    value.square().sum().backward()
    optimizer.step()
    return peak_mib()


def embedding(options: argparse.Namespace) -> None:
    """Forward and backward through the text encoder's first layer: seconds a step and peak memory."""
    print(f"first layer: {options.batch} captions of {options.words} words, {options.vocabulary} words of 300 numbers")
    sizes = (options.batch, options.words, options.vocabulary, options.steps)
    results = [in_own_process(first_layer, one_hot, *sizes) for one_hot in (True, False)]
    (slow, large, expected), (fast, small, got) = results
    assert abs(got - expected) <= 1e-4 * abs(expected), "the two layers disagree"
    print(f"  one-hot convolution  {1000 * slow:9.2f} ms a step  {large:8.1f} MiB")
    print(f"  look-up              {1000 * fast:9.2f} ms a step  {small:8.1f} MiB")
    print(f"  ratio                {slow / fast:9.1f}            {large / small:8.1f}")


def first_layer(one_hot: bool, batch: int, words: int, vocabulary: int, steps: int) -> tuple[float, float, float]:
    """Median seconds of a step, peak memory in MiB above the imports, and the output's norm."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(0)
    before = peak_mib()
    table = torch.randn(vocabulary + 1, 300, generator=generator)  # row 0 is the blank
    weight = nn.Parameter(table.T.unsqueeze(2).contiguous() if one_hot else table)
    bias = nn.Parameter(torch.full((300,), 0.1))
    del table

    def forward(token_ids: Tensor) -> Tensor:
        if one_hot:
            marks = torch.zeros(batch, vocabulary + 1, words).scatter_(1, token_ids[:, None], 1.0)
            return F.conv1d(marks, weight, bias)
        return (F.embedding(token_ids, weight, padding_idx=0) + bias).transpose(1, 2)

    seconds = []
    for _ in range(steps + 1):
        token_ids = torch.randint(1, vocabulary + 1, (batch, words), generator=generator)
        weight.grad = bias.grad = None
        start = time.perf_counter()
        output = forward(token_ids)
        output.square().sum().backward()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), peak_mib() - before, output.norm().item()


class EpochClock(Reporter):
    """Notes when whatever is tracked begins and ends."""

    def __init__(self) -> None:
        self.spans: dict[str, tuple[float, float]] = {}

    @contextmanager
    def track(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        start = time.time()
        with super().track(label, total, done) as advance:
            yield advance
        self.spans[label] = start, time.time()


def stage1(options: argparse.Namespace) -> None:
    """The second epoch of Stage I over the same photos with the same frozen image CNN."""
    runs = [
        in_own_process(train, options.workspace, options.images, options.workers, feature_cache=cache)
        for cache in (True, False)
    ]
    cached, fresh = ({label: end - start for label, (start, end) in spans.items()} for spans, _ in runs)
    epoch, cache = "stage 1 epoch 2/2", "features of train photos"
    print(f"Stage I over {options.images} photos of {options.workspace}, {options.workers} workers")
    print(f"  image CNN each epoch   {fresh[epoch]:9.2f} s an epoch")
    print(f"  cached features        {cached[epoch]:9.2f} s an epoch, after {cached[cache]:.2f} s once")
    print(f"  ratio                  {fresh[epoch] / cached[epoch]:9.1f}")


def feeding(options: argparse.Namespace) -> None:
    """Photos a second after the first epoch, and the share of the time without data to work on."""
    print(
        f"Stage {options.stage} over {options.images} photos of {options.workspace} on {options.device} in "
        f"{options.precision}, {options.workers} workers"
    )
    for name, cache in [("cached features", True)] * (options.stage == 1) + [("photos", False)]:
        epochs = 15 if cache else 3
        for fed, in_memory in (("in memory", True), (name, False)):
            samples: list[tuple[float, int]] = []
            with sampled_utilisation(samples) if options.device == "cuda" else nullcontext():
                spans, records = in_own_process(
                    train,
                    options.workspace,
                    options.images,
                    options.workers,
                    feature_cache=cache,
                    device=options.device,
                    epochs=epochs,
                    in_memory=in_memory,
                    stage=options.stage,
                    preset=options.preset,
                    precision=options.precision,
                    steps=options.steps,
                )
            later = [record for record in records if record["step"] > records[-1]["step"] / epochs]
            speed = statistics.harmonic_mean(record["images_per_second"] for record in later)
            line = f"  {fed:<16}{speed:10.1f} photos a second"
            if in_memory:
                most = speed
            else:
                waited = statistics.mean(record["data_wait"] for record in later)
                line += f", ratio {speed / most:.2f}, {waited:.1%} of the time waiting for data"
            if options.device == "cuda":
                line += f"; {later[-1]['device_memory'] / 2**20:,.0f} MiB at most"
                measured = [spans[f"stage {options.stage} epoch {epoch}/{epochs}"] for epoch in range(2, epochs + 1)]
                busy = [share for when, share in samples if any(start < when < end for start, end in measured)]
                if busy:
                    line += f", GPU at work {statistics.mean(busy):.0f}% of the time"
            print(line)


@contextmanager
def sampled_utilisation(samples: list[tuple[float, int]]) -> Iterator[None]:
    """Fill `samples` with times and the percentage of the moments before in which the first GPU computes."""
    fields = "--query-gpu=timestamp,utilization.gpu"
    query = ("nvidia-smi", "--id=0", fields, "--format=csv,noheader,nounits", "--loop-ms=250")
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield
        finally:
            process.terminate()
        for line in process.communicate()[0].splitlines():
            when, share = line.split(", ")
            if share.isdecimal():  # not so on a part of a GPU
                samples.append((datetime.strptime(when, "%Y/%m/%d %H:%M:%S.%f").timestamp(), int(share)))


def shards(options: argparse.Namespace) -> None:
    """Photos a second that are read in random order and scaled, medians of five passes."""
    files, tars = in_own_process(read_photos, options.workspace, options.images)
    print(f"{options.images} photos of {options.workspace}")
    print(f"  files   {files:8.1f} photos a second")
    print(f"  shards  {tars:8.1f}, ratio {tars / files:.2f}")


def read_photos(root: Path, images: int) -> tuple[float, float]:
    """Photos a second, from the files of a workspace's data set and from tars of 100 of them."""
    import torch

    from dpce_cli.core.data.loading import read_views
    from dpce_cli.core.data.readers.webdataset import read_webdataset
    from dpce_cli.core.data.records import CaptionedImage
    from dpce_cli.core.data.views import FixedViews
    from dpce_cli.core.workspace.workspace import Workspace

    torch.set_num_threads(1)
    dataset = Workspace(root).load_dataset()
    files = dataset.split("train")[:images]

    view = FixedViews(dataset.config.image)

    def speed(root: Path, photos: list[CaptionedImage]) -> float:
        start = time.perf_counter()
        assert not any(bad for _, _, bad in read_views(root, photos, view, batch_size=32, workers=0))
        return len(photos) / (time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder:
        for number, photo in enumerate(files):
            with tarfile.open(f"{folder}/{number // 100:04}.tar", "a") as tar:
                path = Path(photo.path)
                tar.add(dataset.root / path, f"{number:06}{path.suffix}")
                caption = tarfile.TarInfo(f"{number:06}.txt")
                caption.size = 1
                tar.addfile(caption, io.BytesIO(b"x"))
        stored = read_webdataset(Path(folder), val_fraction=0, test_fraction=0, seed=0, reporter=Reporter()).images
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
        speeds = [
            (speed(dataset.root, [files[i] for i in order]), speed(Path(folder), [stored[i] for i in order]))
            for _ in range(6)
        ]
    from_files, from_tars = zip(*speeds[1:], strict=True)
    return statistics.median(from_files), statistics.median(from_tars)


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
    """When each part of a stage from scratch began and ended, in a workspace of its own, and the records of its steps.

    Stage I has a frozen CNN whatever the preset.

    Args:
        images: photos and classes; where there are fewer, they come again as others.
        in_memory: the batches of the first epoch are kept on the device and used again.
        steps: of an epoch, at most.
    """
    import torch
    from torchvision.models import get_model

    from dpce_cli.core.presets import build_preset
    from dpce_cli.core.training.batches import Batch, TrainingSet
    from dpce_cli.core.training.options import RunOptions
    from dpce_cli.core.training.stage1 import train_stage1
    from dpce_cli.core.training.stage2 import train_in_one_stage
    from dpce_cli.core.workspace.workspace import Workspace

    dataset = Workspace(root).load_dataset()
    config, train_split = build_preset(preset) if preset else dataset.config, dataset.split("train")
    settings = [f"stage{stage}.epochs={epochs}"]
    if stage == 1:
        settings += ["stage1.multipliers.backbone=0", "stage1.multipliers.backbone_bias=0"]
    clock, count = EpochClock(), TrainingSet.__init__

    def counted(self: TrainingSet, *args: Any, **kwargs: Any) -> None:
        count(self, *args, **kwargs)
        self.steps_per_epoch = min(self.steps_per_epoch, steps or self.steps_per_epoch)

    TrainingSet.__init__ = counted  # type: ignore[method-assign]
    if in_memory:
        kept, read = list[Batch](), TrainingSet.batches

        def batches(self: TrainingSet, epoch: int, first_step: int = 0) -> Iterator[Batch]:
            if not kept:
                kept.extend(batch.to(torch.device(device)) for batch in read(self, epoch, first_step))
            return iter(kept)

        TrainingSet.batches = batches  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        cnn = get_model(config.image.backbone.removesuffix("-v1"))
        torch.save(cnn.state_dict(), f"{folder}/weights.pt")  # random: their values cost no time
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
        (train_stage1 if stage == 1 else train_in_one_stage)(workspace, subset, subset.config, None, options, clock)
        lines = (workspace.stage_folder(stage) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return clock.spans, [json.loads(line) for line in lines]


def memory(options: argparse.Namespace) -> None:
    """Peak memory of ranking captions and images both ways, above the embeddings themselves."""
    for dim in options.dims:
        blocks, matrix = (in_own_process(rank, options.texts, options.images, dim, whole) for whole in (False, True))
        print(f"evaluation of {options.texts} texts x {options.images} images, {dim}-d")
        print(f"  whole similarity matrix  {matrix[0]:8.1f} MiB  {matrix[1]:7.2f} s")
        print(f"  blocks, as in dpce eval  {blocks[0]:8.1f} MiB  {blocks[1]:7.2f} s")
        print(f"  ratio                    {matrix[0] / blocks[0]:8.1f}      {matrix[1] / blocks[1]:7.2f}")


def rank(texts: int, images: int, dim: int, whole_matrix: bool) -> tuple[float, float]:
    """Peak memory in MiB above imports and embeddings, and seconds."""
    import torch

    from dpce_cli.core.retrieval.ranks import rank_embeddings, rank_similarity

    generator = torch.Generator().manual_seed(0)
    image_embeddings = torch.randn(images, dim, generator=generator)
    text_embeddings = torch.randn(texts, dim, generator=generator)
    for embeddings in (image_embeddings, text_embeddings):
        embeddings /= embeddings.norm(dim=1, keepdim=True)
    image_of_text = torch.arange(texts) * images // texts
    before, start = peak_mib(), time.perf_counter()
    if whole_matrix:
        rank_similarity(image_embeddings @ text_embeddings.T, image_of_text)
    else:
        rank_embeddings(image_embeddings, text_embeddings, image_of_text)
    return peak_mib() - before, time.perf_counter() - start


def startup(options: argparse.Namespace) -> None:
    """Median wall time of five runs."""
    dpce = (sys.executable, "-m", "dpce_cli")
    query = ("retrieve", "--query", options.query, "--workspace", str(options.workspace))
    imports = seconds_of(sys.executable, "-c", "import torch, torchvision")
    for name, seconds in (
        ("import torch, torchvision", imports),
        ("dpce --help", seconds_of(*dpce, "--help")),
        ("dpce retrieve --help", seconds_of(*dpce, "retrieve", "--help")),
        ("dpce retrieve --query ...", seconds_of(*dpce, *query)),
    ):
        print(f"{name:<28}{seconds:7.2f} s  {seconds / imports:5.2f} of importing torch")


def seconds_of(*command: str) -> float:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def prepare(options: argparse.Namespace) -> None:
    """Wall time and peak memory of prepare-vocab on made-up annotations of MSCOCO's size and form."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        in_own_process(write_coco, root / "coco", images=options.images, captions=options.captions)
        sizes = ", ".join(
            f"{path.name} {path.stat().st_size / 1e6:.0f} MB" for path in sorted((root / "coco").rglob("*.json"))
        )
        print(f"{options.images:,} images, {options.captions:,} captions; {sizes}")
        for splits in ("karpathy", "paper"):
            seconds, mib = in_own_process(prepare_coco, root / "coco", root / splits, splits)
            print(f"  --splits {splits:<10}{seconds:8.1f} s  {mib:8.0f} MiB")


def prepare_coco(root: Path, workspace: Path, splits: str) -> tuple[float, float]:
    """Seconds and peak memory in MiB of the whole process, imports included."""
    from dpce_cli.commands.prepare_vocab import Dataset, prepare_vocab

    start = time.perf_counter()
    prepare_vocab(Dataset.coco, root=root, splits=splits, workspace=workspace)
    return time.perf_counter() - start, peak_mib()


def write_coco(root: Path, *, images: int, captions: int) -> None:
    """Karpathy's file, the official annotations, and empty photos; words are as unevenly frequent as in English."""
    rng = random.Random(0)
    words = ["".join(rng.choices("aeinorstlcdmpug", k=rng.randint(2, 9))) for _ in range(30_000)]
    frequencies = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))
    test, train = images * 5_000 // 123_287, images * 82_783 // 123_287
    karpathy = []
    official: dict[str, dict[str, list[object]]] = {
        part: {"images": [], "annotations": []} for part in ("train", "val")
    }
    for number in range(images):
        part = "train" if number < train else "val"
        name = f"COCO_{part}2014_{number:012}.jpg"
        photo = root / f"{part}2014" / name
        photo.parent.mkdir(parents=True, exist_ok=True)
        if number % 10_000 == 0 or number == train:  # file systems limit the links to a file
            empty = photo
            empty.touch()
        else:
            os.link(empty, photo)
        texts = [
            f"{' '.join(rng.choices(words, cum_weights=frequencies, k=rng.randint(8, 13))).capitalize()}."
            for _ in range(captions * (number + 1) // images - captions * number // images)
        ]
        ids = range(10 * number, 10 * number + len(texts))
        split = "test" if number >= images - test else "val" if number >= images - 2 * test else "restval"
        karpathy.append(
            {
                "filepath": f"{part}2014",
                "sentids": list(ids),
                "filename": name,
                "imgid": number,
                "split": "train" if part == "train" else split,
                "sentences": [
                    {"tokens": text[:-1].lower().split(), "raw": text, "imgid": number, "sentid": sentence}
                    for sentence, text in zip(ids, texts, strict=True)
                ],
                "cocoid": number,
            }
        )
        official[part]["images"].append(
            {
                "license": 5,
                "file_name": name,
                "coco_url": f"http://images.cocodataset.org/{part}2014/{name}",
                "height": 480,
                "width": 640,
                "date_captured": "2013-11-14 11:18:45",
                "flickr_url": f"http://farm9.staticflickr.com/8186/{number}_76f0fae304_z.jpg",
                "id": number,
            }
        )
        official[part]["annotations"] += [
            {"image_id": number, "id": sentence, "caption": text} for sentence, text in zip(ids, texts, strict=True)
        ]
    (root / "annotations").mkdir()
    for part, content in official.items():
        (root / "annotations" / f"captions_{part}2014.json").write_text(json.dumps(content))
    (root / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": karpathy}))


def classifier(options: argparse.Namespace) -> None:
    """Step time and peak memory of the shared classifier, forward, backward and SGD, as it grows."""
    print(f"shared classifier, {options.dim}-d, {options.batch} photos and as many captions, {os.cpu_count()} cores")
    for classes in options.classes:
        sizes = (classes, options.dim, options.batch, options.steps)
        dense = in_own_process(classifier_step, "all logits", *sizes)
        parts = in_own_process(classifier_step, "parts", *sizes)
        shared = in_two_processes(classifier_step, "shared", *sizes)
        assert abs(dense[2] - parts[2]) <= 1e-4 * dense[2], "the losses differ"
        print(f"{classes:,} classes")
        for name, (seconds, mib, _) in (
            ("all logits at once", dense),
            ("in parts, as in dpce", parts),
            ("2 processes, a tenth sampled", shared),
        ):
            faster, smaller = dense[0] / seconds, dense[1] / mib
            print(f"  {name:<30}{seconds:7.2f} s a step {faster:6.1f}x  {mib:8,.0f} MiB {smaller:5.1f}x")


def classifier_step(kind: str, classes: int, dim: int, batch: int, steps: int) -> tuple[float, float, float]:
    """Median seconds of a step, peak memory in MiB above the imports, and the last loss."""
    import torch
    from torch.nn import functional as F

    from dpce_cli.core.models.shared_classifier import SharedClassifier

    before = peak_after_imports()
    rate = 0.1 if kind == "shared" else 1.0
    model = SharedClassifier(instances=classes, embedding_dim=dim, bias=False, scale=0.0, sample_rate=rate)
    model.keep_share()
    model.reset_parameters(torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True)
    model.attach_to(optimizer)
    generator, seconds = torch.Generator().manual_seed(1), []
    for _ in range(steps + 1):
        embeddings = torch.randn(2 * batch, dim, generator=generator, requires_grad=True)
        ids = torch.randint(classes, (batch,), generator=generator).repeat(2)
        start = time.perf_counter()
        if kind == "all logits":
            loss = F.cross_entropy(model(embeddings[:batch]), ids[:batch])
            loss = loss + F.cross_entropy(model(embeddings[batch:]), ids[batch:])
        else:
            loss = 2 * model.instance_losses(embeddings, ids, 0.0)[0].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), peak_mib() - before, loss.item()


def in_two_processes(function: Callable[..., T], *args: object) -> T:
    """What the first of two processes returns that Gloo joins."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        first, _ = [pool.submit(join, number, port, function, args) for number in range(2)]
        return first.result()


def join(number: int, port: str, function: Callable[..., T], args: tuple[object, ...]) -> T:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    from dpce_cli.core.processes.collectives import process_group

    with process_group("cpu"):
        return function(*args)


def plan(options: argparse.Namespace) -> None:
    """The memory that dpce plan estimates, against the peak of three steps, above the imports."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # so that what is freed leaves the process
    for name, preset, stage, classes, settings in PLANNED:
        estimate, measured = in_own_process(plan_and_measure, preset, stage, classes, settings)
        error = 100 * (estimate / measured - 1)
        print(f"{name:<62}{estimate:8,.0f} MiB planned {measured:8,.0f} MiB measured {error:+6.1f} %")


PLANNED: tuple[tuple[str, str, int, int, list[str]], ...] = (
    ("paper-coco, stage 1, cached features, 113,287 classes", "paper-coco", 1, 113_287, []),
    (
        "paper-flickr30k, stage 2, 16 photos a step, 29,783 classes",
        "paper-flickr30k",
        2,
        29_783,
        ["stage2.batch_size=16"],
    ),
    (
        "flickr8k, stage 1, 512-d, 1,000,000 classes, a tenth sampled",
        "flickr8k",
        1,
        1_000_000,
        ["model.embedding_dim=512", "model.classifier_sample_rate=0.1"],
    ),
)


def plan_and_measure(preset: str, stage: int, classes: int, settings: list[str]) -> tuple[float, float]:
    """MiB."""
    import torch

    from dpce_cli.core.models.dual_encoder import DualEncoder
    from dpce_cli.core.presets import build_preset
    from dpce_cli.core.training.memory import take_step, training_memory
    from dpce_cli.core.training.optimisation import backbone_is_frozen, build_optimizer, parameter_groups

    config = build_preset(preset).with_settings(settings)
    sizes = {"vocabulary": 20_000, "word_dim": config.model.word_dim}
    planned = training_memory(config, stage=stage, classes=classes, feature_cache=True, **sizes)
    before = peak_after_imports()
    chosen = config.stage(stage)
    model = DualEncoder(
        config, vocabulary_size=sizes["vocabulary"], word_dim=sizes["word_dim"], instances=classes
    ).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.01)
    groups = parameter_groups(model, chosen.multipliers)
    optimizer = build_optimizer(groups, chosen)
    model.shared_classifier.attach_to(optimizer)
    cached = backbone_is_frozen(groups)
    if cached:
        model.image_encoder.backbone.eval()
    photos = chosen.batch_size
    for _ in range(3):
        take_step(model, config, chosen, photos, photos * chosen.captions_per_image, 1, cached=cached)
        optimizer.step()
        optimizer.zero_grad()
    return sum(planned.values()) / 2**20, peak_mib() - before


def store(options: argparse.Namespace) -> None:
    """Embeddings of many photos and a caption each, written by two processes and read again: memory and time."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "store.h5"
        print(f"{options.images:,} photos and as many captions, {options.dim}-d")
        seconds, mib = in_two_processes(write_store, path, options.images, options.dim)
        print(
            f"  written, {path.stat().st_size / 2**20:,.0f} MiB  {seconds:7.1f} s  {mib:6.0f} MiB of memory a process"
        )
        seconds, mib = in_own_process(read_whole_store, path)
        print(f"  read in blocks        {seconds:7.1f} s  {mib:6.0f} MiB of memory that is not the file's")


def write_store(path: Path, images: int, dim: int) -> tuple[float, float]:
    """Seconds, and MiB above the imports."""
    import torch

    from dpce_cli.core.processes.collectives import lengths, rank
    from dpce_cli.core.storage.rows import open_or_resume

    before, start, size = peak_mib(), time.perf_counter(), 1024
    arrays = dict.fromkeys(("image_embeddings", "text_embeddings"), ((images, dim), "float32"))
    with open_or_resume(path, arrays=arrays, constants={}, meta={}) as writer:
        for name in arrays:
            for first in range(0, lengths(images)[rank()], size):
                writer.append(name, torch.randn(min(size, lengths(images)[rank()] - first), dim))
        writer.finish()
    return time.perf_counter() - start, peak_mib() - before


def read_whole_store(path: Path) -> tuple[float, float]:
    """Seconds, and MiB above the imports."""
    import torch

    from dpce_cli.core.storage.rows import read_store

    def anonymous() -> float:
        return int(re.findall(r"RssAnon:\s*(\d+)", Path("/proc/self/status").read_text())[0]) / 1024

    before, start, most = anonymous(), time.perf_counter(), 0.0
    for rows in read_store(path, remedy="store").arrays.values():
        for block in torch.from_numpy(rows).split(2**14):
            assert bool(block.isfinite().all())
            most = max(most, anonymous() - before)
    return time.perf_counter() - start, most


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("embedding", help=embedding.__doc__)
    command.set_defaults(run=embedding)
    command.add_argument("--batch", type=int, default=32)
    command.add_argument("--words", type=int, default=32)
    command.add_argument("--vocabulary", type=int, default=30_000)
    command.add_argument("--steps", type=int, default=20)

    command = commands.add_parser("stage1", help=stage1.__doc__)
    command.set_defaults(run=stage1)
    command.add_argument("--workspace", type=Path, default=Path("dpce-workspace"))
    command.add_argument("--images", type=int, default=256)
    command.add_argument("--workers", type=int, default=2)

    command = commands.add_parser("feeding", help=feeding.__doc__)
    command.set_defaults(run=feeding)
    command.add_argument("--workspace", type=Path, default=Path("dpce-workspace"))
    command.add_argument("--images", type=int, default=512)
    command.add_argument("--workers", type=int, default=2)
    command.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    command.add_argument("--stage", type=int, choices=[1, 2], default=1)
    command.add_argument("--preset", help="default: the settings of the data set")
    command.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    command.add_argument("--steps", type=int, help="of an epoch, at most")

    command = commands.add_parser("shards", help=shards.__doc__)
    command.set_defaults(run=shards)
    command.add_argument("--workspace", type=Path, default=Path("dpce-workspace"))
    command.add_argument("--images", type=int, default=1000)

    command = commands.add_parser("memory", help=memory.__doc__)
    command.set_defaults(run=memory)
    command.add_argument("--texts", type=int, default=25_000)
    command.add_argument("--images", type=int, default=5_000)
    command.add_argument("--dims", type=int, nargs="+", default=[512, 2048])

    command = commands.add_parser("startup", help=startup.__doc__)
    command.set_defaults(run=startup)
    command.add_argument("--workspace", type=Path, default=Path("dpce-workspace"))
    command.add_argument("--query", default="a woman in blue")

    command = commands.add_parser("prepare", help=prepare.__doc__)
    command.set_defaults(run=prepare)
    command.add_argument("--images", type=int, default=123_287)
    command.add_argument("--captions", type=int, default=616_767)

    command = commands.add_parser("classifier", help=classifier.__doc__)
    command.set_defaults(run=classifier)
    command.add_argument("--classes", type=int, nargs="+", default=[10_000, 113_287, 1_000_000])
    command.add_argument("--dim", type=int, default=512)
    command.add_argument("--batch", type=int, default=64)
    command.add_argument("--steps", type=int, default=3)

    command = commands.add_parser("plan", help=plan.__doc__)
    command.set_defaults(run=plan)

    command = commands.add_parser("store", help=store.__doc__)
    command.set_defaults(run=store)
    command.add_argument("--images", type=int, default=1_000_000)
    command.add_argument("--dim", type=int, default=512)
    command.add_argument("--folder", type=Path, help="where there is room for 16 GB")

    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
