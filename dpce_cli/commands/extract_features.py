"""dpce extract-features"""

from __future__ import annotations

import typer

from dpce_cli.commands.options import (
    DEFAULT_WORKSPACE,
    DeviceOption,
    GpusOption,
    Precision,
    PrecisionOption,
    ProcessesOption,
    SplitOption,
    StageOption,
    WorkersOption,
    WorkspaceOption,
    number_of_workers,
)


def extract_features(
    split: SplitOption = "test",
    stage: StageOption = None,
    device: DeviceOption = "auto",
    gpus: GpusOption = None,
    processes: ProcessesOption = None,
    workers: WorkersOption = None,
    precision: PrecisionOption = Precision.fp32,
    workspace_path: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Embed the photos and captions of a split. If interrupted, run it again to continue.

    Example: dpce extract-features --split val
    """
    from dpce_cli.commands.console import build_reporter
    from dpce_cli.core.processes.collectives import process_group
    from dpce_cli.core.processes.environment import is_main_process
    from dpce_cli.core.retrieval.extraction import extract_features as extract
    from dpce_cli.core.training.precision import TYPES
    from dpce_cli.core.workspace.artefacts import load_best
    from dpce_cli.core.workspace.workspace import Workspace
    from dpce_cli.launch import launch

    device = launch(gpus, processes, device)
    workspace = Workspace(workspace_path)
    dataset = workspace.load_dataset()
    dataset.split(split)
    checkpoint = load_best(workspace, dataset, stage)
    with process_group(device) as chosen:
        path = extract(
            workspace,
            dataset,
            checkpoint,
            split=split,
            device=chosen,
            workers=number_of_workers(workers),
            reporter=build_reporter(),
            computed_in=TYPES[precision.value],
        )
    if is_main_process():
        typer.echo(f"embeddings of the {split} split, Stage {checkpoint.stage} model: {path}")
