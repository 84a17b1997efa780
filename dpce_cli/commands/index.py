"""dpce index"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpce_cli.commands.options import (
    DEFAULT_WORKSPACE,
    DeviceOption,
    GpusOption,
    ModelOption,
    ProcessesOption,
    WorkersOption,
    WorkspaceOption,
    number_of_workers,
)


def index(
    roots: Annotated[
        list[Path],
        typer.Argument(
            metavar="ROOT...",
            help="Folders of photos, at any depth; or files of sentences: .txt with one per line, or a captions table.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Of the gallery.  \\[default: that of the first folder or file]")
    ] = None,
    model: ModelOption = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude", metavar="GLOB", help="Names or paths to leave out, such as 'thumb*'; may be repeated."
        ),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Drop the items of a folder even if the whole folder is empty or missing.")
    ] = False,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Embed everything again, such as with another model; meanwhile, searches use the old state.",
        ),
    ] = False,
    device: DeviceOption = "auto",
    gpus: GpusOption = None,
    processes: ProcessesOption = None,
    workers: WorkersOption = None,
    workspace_path: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Make a gallery of photos or sentences that retrieve can search. Run again, it embeds only what is new.

    Hidden files and folders are left out, and links are not followed. If interrupted, run it again to continue.

    Example: dpce index ~/photos --exclude thumbnails
    """
    from dpce_cli.commands.console import build_reporter
    from dpce_cli.core.galleries.gallery import recorded_model
    from dpce_cli.core.galleries.indexing import index_gallery
    from dpce_cli.core.processes.collectives import process_group
    from dpce_cli.core.processes.environment import is_main_process
    from dpce_cli.core.sharing.finding import HUB, find_model
    from dpce_cli.core.workspace.workspace import Workspace, check_name
    from dpce_cli.launch import launch

    device = launch(gpus, processes, device)
    workspace = Workspace(workspace_path)
    first = roots[0].expanduser().resolve()
    folder = workspace.gallery_folder(check_name(name or (first.stem if first.is_file() else first.name)))
    if model is not None and not model.startswith(HUB):
        model = str(Path(model).expanduser().resolve())
    source = model if model is not None else recorded_model(folder)
    with process_group(device) as chosen:
        result = index_gallery(
            folder,
            roots,
            find_model(source, workspace, device=chosen),
            model_source=source,
            is_named=name is not None,
            exclude=exclude or (),
            prune=prune,
            rebuild=rebuild,
            workers=number_of_workers(workers),
            reporter=build_reporter(),
        )
    if is_main_process():
        counts = ", ".join(f"{count:,} {event}" for event, count in result.counts.items() if count)
        typer.echo(f"gallery {folder.name}: {result.items:,} {result.kind} ({counts or 'nothing changed'})")
