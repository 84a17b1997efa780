"""dpce teach"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpce_cli.commands.options import DEFAULT_WORKSPACE, WorkspaceOption

_SHOWN = 10
"""Rare words that are named."""


def teach(
    gallery: Annotated[str, typer.Argument(metavar="GALLERY", help="Gallery of photos, made by index.")],
    table: Annotated[
        Path | None,
        typer.Option(
            "--captions",
            help="Add the captions of this table first: .csv, .tsv, .jsonl or .parquet with the columns image and "
            "caption; images are paths, or relative to the gallery's folder.",
        ),
    ] = None,
    workspace_path: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Teach a gallery's model the new words of your captions, such as a dog's name.

    A word is learnt if the model does not know it yet and the captions of at least 3 photos have it. All else that the
    model knows stays exactly as it is, and no photo is embedded again. One captioned photo of five is kept for 'dpce
    eval --gallery'. The captions are in WORKSPACE/teaching/GALLERY/captions.csv, a file for 'dpce prepare-vocab folder
    --captions'; after it, 'dpce train-stage1 --from MODEL' trains on them.

    Example: dpce teach photos --captions rex.csv
    """
    from dpce_cli.commands.console import ConsoleReporter
    from dpce_cli.core.galleries.gallery import about_gallery
    from dpce_cli.core.teaching.captions import CaptionsOfGallery, import_captions
    from dpce_cli.core.teaching.teaching import teach_gallery
    from dpce_cli.core.workspace.workspace import Workspace, check_name

    workspace, reporter = Workspace(workspace_path), ConsoleReporter()
    if table:
        folder = workspace.gallery_folder(check_name(gallery))
        captions = CaptionsOfGallery(workspace.teaching_folder(gallery))
        added = import_captions(captions, folder, table, about_gallery(folder).fingerprint)
        reporter.note(f"{added:,} captions added to {captions.path}")
    result = teach_gallery(workspace, check_name(gallery), reporter)
    learnt = ", ".join(f"{word} ({count} photos)" for word, count in result.words.enough.items())
    typer.echo(f"{result.captions:,} captions of {result.photos:,} photos; learnt: {learnt or 'nothing'}")
    if rare := list(result.words.too_few):
        more = f" and {len(rare) - _SHOWN:,} more" if len(rare) > _SHOWN else ""
        typer.echo(f"in captions of too few photos to be learnt: {', '.join(rare[:_SHOWN])}{more}")
    typer.echo(f"gallery {gallery} uses {result.model}")
