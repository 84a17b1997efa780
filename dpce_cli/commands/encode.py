"""dpce encode"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from dpce_cli.commands.options import DEFAULT_WORKSPACE, DeviceOption, ModelOption, WorkspaceOption


def encode(
    photos: Annotated[list[Path] | None, typer.Argument(help="Photos to embed.", show_default=False)] = None,
    query: Annotated[
        list[str] | None, typer.Option("--query", "-q", help="A sentence to embed; may be repeated.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="File.npy for the vectors, one per row; File.json gets the name of each row."),
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Print the embeddings of sentences or photos, one JSON object per line, or write them as a NumPy array.

    Embeddings are float32 with a length of 1, so the dot product of two is their cosine similarity. They come in the
    order of the arguments. A photo that cannot be read is named and has none.

    Example: dpce encode --query "two dogs"
    """
    if bool(photos) == bool(query):
        raise typer.BadParameter("give photos, or sentences with --query")
    if output and output.suffix != ".npy":
        raise typer.BadParameter(f"--output {output}: the name must end in .npy")
    from dpce_cli.commands.console import build_reporter
    from dpce_cli.core.retrieval.vectors import encode_photos, save_vectors, vector_line
    from dpce_cli.core.sharing.finding import find_model
    from dpce_cli.core.workspace.workspace import Workspace

    reporter, chosen = build_reporter(), None
    if photos or device != "auto":  # a few sentences need no GPU, and perhaps no torch
        from dpce_cli.core.processes.devices import choose_device

        chosen = choose_device(device)
    found = find_model(model, Workspace(workspace), device=chosen, reporter=reporter)
    if photos:
        read, embeddings = encode_photos(found, photos, reporter=reporter)
        kind, names = "photo", [os.fspath(path) for path in read]
    else:
        assert query
        kind, names, embeddings = "query", query, found.encode_text(query)
    if output:
        beside = save_vectors(output, names, embeddings, found)
        typer.echo(f"embeddings ({len(embeddings)}, {found.dim}): {output}; their names: {beside}", err=True)
    else:
        for name, embedding in zip(names, embeddings, strict=True):
            typer.echo(vector_line(kind, name, embedding))
