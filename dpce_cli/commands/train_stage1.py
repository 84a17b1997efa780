"""dpce train-stage1"""

from __future__ import annotations

from typing import Annotated

import typer

from dpce_cli.commands.options import (
    DEFAULT_WORKSPACE,
    CheckpointMinutesOption,
    CompileOption,
    DeviceOption,
    EpochsOption,
    FeatureCacheOption,
    FreshOption,
    GpusOption,
    KeepOption,
    Precision,
    PrecisionOption,
    ProcessesOption,
    SeedOption,
    SetOption,
    ShowConfigOption,
    WorkersOption,
    WorkspaceOption,
)


def train_stage1(
    epochs: EpochsOption = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            help="resnet18/34/50/101/152, resnet50-v1/-caffe, vgg16/19 or vgg16/19-caffe.  \\[default: the preset's]",
        ),
    ] = None,
    backbone_weights: Annotated[
        str | None,
        typer.Option(
            "--backbone-weights", help="A state dict file, imagenet (torchvision's) or none.  \\[default: the preset's]"
        ),
    ] = None,
    word_vectors: Annotated[
        bool,
        typer.Option("--word-vectors/--no-word-vectors", help="Begin with build-word2vec's vectors or random ones."),
    ] = True,
    position_shift: Annotated[
        bool | None,
        typer.Option(
            "--position-shift/--no-position-shift",
            help="Place captions at random, or left-aligned.  \\[default: the preset's]",
        ),
    ] = None,
    feature_cache: FeatureCacheOption = True,
    settings: SetOption = [],  # noqa: B006 - Typer copies it
    seed: SeedOption = None,
    fresh: FreshOption = False,
    checkpoint_minutes: CheckpointMinutesOption = 10.0,
    keep: KeepOption = 1,
    show_config: ShowConfigOption = False,
    precision: PrecisionOption = Precision.fp32,
    compiled: CompileOption = False,
    device: DeviceOption = "auto",
    gpus: GpusOption = None,
    processes: ProcessesOption = None,
    workers: WorkersOption = 2,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Stage I: train with the instance loss. Interrupted, the same command continues.

    Example: dpce train-stage1 --backbone resnet50-v1 --backbone-weights resnet50-imagenet-v1.pth
    """
    from dpce_cli.commands.console import build_reporter
    from dpce_cli.commands.training import print_plan, print_result
    from dpce_cli.core.processes.collectives import process_group
    from dpce_cli.core.processes.environment import is_main_process
    from dpce_cli.core.training.options import RunOptions
    from dpce_cli.core.training.plan import plan_stage
    from dpce_cli.core.training.stage1 import train_stage1 as train
    from dpce_cli.core.training.stage1 import word_table
    from dpce_cli.core.workspace.initial_vectors import load_initial_vectors
    from dpce_cli.core.workspace.workspace import Workspace
    from dpce_cli.launch import launch

    if not show_config:
        device = launch(gpus, processes, device)
    place = Workspace(workspace)
    dataset = place.load_dataset()
    named = {
        "stage1.epochs": epochs,
        "image.backbone": backbone,
        "image.backbone_weights": backbone_weights,
        "seed": seed,
        "model.position_shift": None if position_shift is None else str(position_shift).lower(),
    }
    config = dataset.config.with_settings(
        [*settings, *(f"{key}={value}" for key, value in named.items() if value is not None)]
    )
    vectors = (
        load_initial_vectors(place, dataset, otherwise=", or train with --no-word-vectors") if word_vectors else None
    )
    if show_config:
        words = word_table(dataset, config, vectors)
        plan = plan_stage(
            dataset, config, words, stage=1, feature_cache=feature_cache, classes=dataset.instances,
            processes=gpus or processes or 1,
        )  # fmt: skip
        print_plan(plan, config)
        return
    with process_group(device) as chosen:
        options = RunOptions(
            device=chosen,
            workers=workers,
            feature_cache=feature_cache,
            fresh=fresh,
            checkpoint_minutes=checkpoint_minutes,
            keep=keep,
            precision=precision.value,
            compiled=compiled,
        )
        result = train(place, dataset, config, vectors, options, build_reporter())
    if is_main_process():
        print_result(result, then="dpce train-stage2")
