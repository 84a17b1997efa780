"""dpce train-stage2"""

from __future__ import annotations

from typing import Annotated

import typer

from dpce_cli.commands.training import (
    TrainingOptions,
    print_result,
    refuse_unused,
    show_config,
    with_training_options,
)


@with_training_options
def train_stage2(
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Begin with untrained encoders, not with those of Stage I."),
    ] = False,
    *,
    options: TrainingOptions,
) -> None:
    """Stage II: add the ranking loss, from Stage I's best model. If interrupted, run it again to continue.

    Encoders and seed are those of Stage I. Only stage2.* and image.frozen_until can be set, except with --from-scratch.

    Example: dpce train-stage2 --set stage2.margin=0.1
    """
    from dpce_cli.commands.console import build_reporter
    from dpce_cli.core.config import stage2_config
    from dpce_cli.core.processes.collectives import process_group
    from dpce_cli.core.processes.environment import is_main_process
    from dpce_cli.core.training import stage1, stage2
    from dpce_cli.core.workspace.artefacts import load_best
    from dpce_cli.core.workspace.initial_vectors import load_initial_vectors
    from dpce_cli.core.workspace.workspace import Workspace

    device = options.launch()
    workspace = Workspace(options.workspace)
    dataset = workspace.load_dataset()
    settings = [*options.settings, *([f"stage2.epochs={options.epochs}"] if options.epochs else [])]
    first = None if from_scratch else load_best(workspace, dataset, 1)
    vectors = load_initial_vectors(workspace, dataset) if from_scratch else None
    if first:
        config = stage2_config(first.config, dataset.config, settings)
        words, classes = stage2.word_table(first), first.instances
    else:
        refuse_unused(settings, 1, instead="leave the setting out")
        config = dataset.config.with_settings(settings)
        words, classes = stage1.word_table(dataset, config, vectors), dataset.instances
    if options.show_config:
        show_config(options, dataset, config, words, stage=2, classes=classes)
        return
    with process_group(device) as chosen:
        run_options, reporter = options.run_options(chosen), build_reporter()
        if first:
            result = stage2.train_stage2(workspace, dataset, config, first, run_options, reporter)
        else:
            result = stage2.train_in_one_stage(workspace, dataset, config, vectors, run_options, reporter)
    if is_main_process():
        print_result(result, then="dpce extract-features")
