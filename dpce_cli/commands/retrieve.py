"""dpce retrieve"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dpce_cli.commands.options import DEFAULT_WORKSPACE, JsonOption, SplitOption, WorkspaceOption


def retrieve(
    query: Annotated[str | None, typer.Option("--query", "-q", help="A sentence; photos are ranked.")] = None,
    image: Annotated[Path | None, typer.Option("--image", "-i", help="A photo; captions are ranked.")] = None,
    split: SplitOption = "test",
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Results to show.")] = 10,
    as_json: JsonOption = False,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="PNG to draw the query and its results in.")] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Search an extracted split with a sentence or a photo.

    Example: dpce retrieve --query "a blonde woman in blue hailing a taxi" --sheet taxi.png
    """
    if (query is None) == (image is None):
        raise typer.BadParameter("give one of --query and --image")
    import torch

    from dpce_cli.commands.console import ConsoleReporter, print_json, print_table
    from dpce_cli.core.retrieval.model import Model
    from dpce_cli.core.retrieval.search import search_captions, search_images
    from dpce_cli.core.workspace.artefacts import load_features
    from dpce_cli.core.workspace.workspace import Workspace

    place, reporter = Workspace(workspace), ConsoleReporter()
    store, checkpoint = load_features(place, split, reporter)
    model = Model.of_checkpoint(checkpoint, reporter=reporter)
    if query is not None:
        hits = search_images(store, torch.from_numpy(model.encode_text([query])[0]), top_k)
    else:
        assert image is not None
        hits = search_captions(store, torch.from_numpy(model.encode_images([image])[0]), top_k)
    if as_json:
        print_json([asdict(hit) for hit in hits])
    else:
        rows = [(f"{hit.rank}", f"{hit.score:.3f}", hit.image_id, hit.path, hit.caption) for hit in hits]
        title = f"{checkpoint.dataset}, {split} split, Stage {checkpoint.stage}: {query or image}"
        print_table(title, ("rank", "score", "id", "path", "caption"), rows, text_columns=3)
    if sheet:
        from dpce_cli.core.retrieval.sheet import draw_caption_hits, draw_image_hits

        if query is not None:
            draw_image_hits(sheet, query, hits, Path(place.about()["root"]))
        else:
            assert image is not None
            draw_caption_hits(sheet, image, hits)
        typer.echo(f"contact sheet: {sheet}", err=True)
