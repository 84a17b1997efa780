"""dpce galleries"""

from __future__ import annotations

from typing import Annotated

import typer

from dpce_cli.commands.options import DEFAULT_WORKSPACE, JsonOption, WorkspaceOption


def galleries(
    remove: Annotated[
        str | None, typer.Option("--remove", metavar="NAME", help="Delete a gallery; its photos and captions stay.")
    ] = None,
    as_json: JsonOption = False,
    workspace_path: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """List the galleries that index has made: what they hold, their size, and what could not be read.

    Example: dpce galleries --remove photos
    """
    from dataclasses import asdict
    from datetime import datetime

    from dpce_cli.commands.console import print_json, print_table
    from dpce_cli.core.galleries.overview import gallery_states, remove_gallery
    from dpce_cli.core.progress import visible
    from dpce_cli.core.workspace.workspace import Workspace, check_name

    workspace = Workspace(workspace_path)
    if remove is not None:
        remove_gallery(workspace.gallery_folder(check_name(remove)))
        typer.echo(f"gallery {remove} is removed")
        return
    states = gallery_states(workspace.gallery_folder(""))
    if as_json:
        print_json([asdict(state) for state in states])
        return
    rows = [
        (
            state.name,
            f"{state.items:,}",
            f"{state.pending:,}",
            f"{len(state.problems):,}",
            f"{state.size / 1e6:,.1f} MB",
            f"{datetime.fromtimestamp(state.changed):%Y-%m-%d %H:%M}",
            state.kind,
            state.model,
            ", ".join(state.roots),
        )
        for state in states
    ]
    columns = ("name", "items", "to embed", "problems", "size", "last change", "of", "model", "from")
    print_table(f"galleries in {workspace_path}", columns, rows, text_columns=3)
    for state in states:
        if state.problems:
            path, reason = state.problems[0]
            typer.echo(visible(f"{state.name}: {path}: {reason}"))
    if any(len(state.problems) > 1 for state in states):
        typer.echo("--json has all problems")
