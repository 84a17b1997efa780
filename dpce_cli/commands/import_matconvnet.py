"""dpce import-matconvnet"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpce_cli.commands.options import DEFAULT_WORKSPACE, WorkspaceOption


def import_matconvnet(
    file: Annotated[
        Path, typer.Argument(help="net-epoch-*.mat of the paper's authors, or vlfeat's ResNet-50, VGG-16 or VGG-19.")
    ],
    dictionary: Annotated[
        Path | None, typer.Option("--dictionary", help="The *_dictionary.mat with the words of the authors' network.")
    ] = None,
    stage: Annotated[
        int | None,
        typer.Option(
            "--stage", min=1, max=2, help="Stage whose best model the authors' network becomes.  \\[default: 2]"
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="File for the weights of vlfeat's CNN, for --backbone-weights.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace the stage's model that is there.")] = False,
    workspace_path: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Convert a network that was trained with MatConvNet.

    Example: dpce import-matconvnet net-epoch-60.mat --dictionary flickr30k_dictionary.mat
    """
    if (dictionary is None) == (output is None):
        raise typer.BadParameter("give --dictionary with a network of the authors, --output with a CNN of vlfeat's")
    if output and (stage or fresh):
        raise typer.BadParameter("--stage and --fresh go with --dictionary")
    from dpce_cli.core.errors import CheckpointError
    from dpce_cli.core.models.matconvnet.network import read_network
    from dpce_cli.core.sharing.importing import import_backbone, import_pair
    from dpce_cli.core.workspace.workspace import Workspace

    workspace = Workspace(workspace_path)
    dataset = workspace.load_dataset() if dictionary else None
    network = read_network(file)
    if network.is_trained_pair != (dictionary is not None):
        kind = "an image and a text network" if network.is_trained_pair else "an image CNN alone"
        raise CheckpointError(f"{file}: holds {kind}; give {'--dictionary' if network.is_trained_pair else '--output'}")
    if output:
        name = import_backbone(network, output)
        typer.echo(f"image CNN weights: {output}")
        typer.echo(f"next: dpce train-stage1 --backbone {name} --backbone-weights {output}")
        return
    assert dataset
    assert dictionary
    path, checkpoint = import_pair(workspace, dataset, network, dictionary, stage=stage or 2, fresh=fresh)
    typer.echo(
        f"Stage {checkpoint.stage} model for data set '{dataset.name}': {path} ({checkpoint.config.image.backbone}, "
        f"{len(checkpoint.vocabulary)} words, {checkpoint.config.text.max_words} of a caption, "
        f"{checkpoint.instances} classes)"
    )
    typer.echo("next: dpce extract-features")
