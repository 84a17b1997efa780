"""dpce extract-features"""

from __future__ import annotations

import typer

from dpce_cli.commands.options import (
    DEFAULT_WORKSPACE,
    DeviceOption,
    SplitOption,
    StageOption,
    WorkersOption,
    WorkspaceOption,
)


def extract_features(
    split: SplitOption = "test",
    stage: StageOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = 2,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Embed the photos and captions of a split. Interrupted, the same command continues.

    Example: dpce extract-features --split val
    """
    from dpce_cli.commands.console import ConsoleReporter
    from dpce_cli.core.artefacts import load_best
    from dpce_cli.core.devices import choose_device
    from dpce_cli.core.extraction import extract_features as extract
    from dpce_cli.core.workspace import Workspace

    place = Workspace(workspace)
    dataset = place.load_dataset()
    dataset.split(split)
    checkpoint = load_best(place, dataset, stage)
    path = extract(
        place,
        dataset,
        checkpoint,
        split=split,
        device=choose_device(device),
        workers=workers,
        reporter=ConsoleReporter(),
    )
    typer.echo(f"embeddings of the {split} split, Stage {checkpoint.stage} model: {path}")
