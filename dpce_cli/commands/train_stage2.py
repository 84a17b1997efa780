"""dpce train-stage2"""

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
    SetOption,
    ShowConfigOption,
    WorkersOption,
    WorkspaceOption,
)


def train_stage2(
    epochs: EpochsOption = None,
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Begin with untrained encoders, not Stage I's: one stage."),
    ] = False,
    feature_cache: FeatureCacheOption = True,
    settings: SetOption = [],  # noqa: B006 - Typer copies it
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
    """Stage II: add the ranking loss, from Stage I's best model. Interrupted, the same command continues.

    Encoders and seed are Stage I's; only stage2.* can be set, unless --from-scratch.

    Example: dpce train-stage2 --set stage2.margin=0.1
    """
    from dpce_cli.commands.console import build_reporter
    from dpce_cli.commands.training import print_plan, print_result
    from dpce_cli.core.config import stage2_config
    from dpce_cli.core.processes.collectives import process_group
    from dpce_cli.core.processes.environment import is_main_process
    from dpce_cli.core.training import stage1, stage2
    from dpce_cli.core.training.options import RunOptions
    from dpce_cli.core.training.plan import plan_stage
    from dpce_cli.core.workspace.artefacts import load_best
    from dpce_cli.core.workspace.initial_vectors import load_initial_vectors
    from dpce_cli.core.workspace.workspace import Workspace
    from dpce_cli.launch import launch

    if not show_config:
        device = launch(gpus, processes, device)
    place = Workspace(workspace)
    dataset = place.load_dataset()
    if epochs is not None:
        settings = [*settings, f"stage2.epochs={epochs}"]
    first = None if from_scratch else load_best(place, dataset, 1)
    vectors = load_initial_vectors(place, dataset) if from_scratch else None
    if first:
        config = stage2_config(first.config, dataset.config, settings)
        words, classes = stage2.word_table(first), first.instances
    else:
        config = dataset.config.with_settings(settings)
        words, classes = stage1.word_table(dataset, config, vectors), dataset.instances
    if show_config:
        plan = plan_stage(
            dataset, config, words, stage=2, feature_cache=feature_cache, classes=classes,
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
        if first:
            result = stage2.train_stage2(place, dataset, config, first, options, build_reporter())
        else:
            result = stage2.train_in_one_stage(place, dataset, config, vectors, options, build_reporter())
    if is_main_process():
        print_result(result, then="dpce extract-features")
