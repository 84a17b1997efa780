"""dpce export"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpce_cli.commands.options import DEFAULT_WORKSPACE, StageOption, WorkspaceOption


def export(
    folder: Annotated[Path, typer.Argument(help="Folder to write; an older model in it is replaced.")],
    half: Annotated[bool, typer.Option("--half", help="Store weights as float16: half the size.")] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write ONNX graphs of both encoders, too: sentences then need no torch.")
    ] = False,
    licence: Annotated[
        str, typer.Option("--licence", help="Licence for the model card, such as cc-by-4.0.")
    ] = "unknown",
    vectors: Annotated[
        Path | None,
        typer.Option(
            "--vectors",
            help="Add words that no caption held, from a word2vec or GloVe file, the one of build-word2vec or another.",
        ),
    ] = None,
    words: Annotated[
        int,
        typer.Option(
            "--words", min=1, help="With --vectors: the number of words to take, from the beginning of the file."
        ),
    ] = 50000,
    stage: StageOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Write the best model as a folder that anyone can use, with a model card.

    Example: dpce export dogs-model

    Example: dpce export dogs-model --vectors glove.6B.300d.txt
    """
    from dpce_cli.commands.console import build_reporter
    from dpce_cli.core.sharing.exporting import export_model
    from dpce_cli.core.workspace.workspace import Workspace

    checkpoint = export_model(
        Workspace(workspace),
        folder,
        stage=stage,
        half=half,
        onnx=onnx,
        licence=licence,
        vectors=vectors,
        words=words,
        reporter=build_reporter(),
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    typer.echo(
        f"Stage {checkpoint.stage} model of data set '{checkpoint.dataset}': {folder} ({size / 1e6:,.1f} MB, "
        f"{checkpoint.config.image.backbone}, {len(checkpoint.vocabulary):,} words)"
    )
