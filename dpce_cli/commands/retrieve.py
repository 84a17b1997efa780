"""dpce retrieve"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpce_cli.commands.answers import chosen_form, give_answers
from dpce_cli.commands.options import DEFAULT_WORKSPACE, JsonOption, ModelOption, WorkspaceOption

if TYPE_CHECKING:
    from dpce_cli.core.retrieval.hits import Searchable


def retrieve(
    query: Annotated[str | None, typer.Option("--query", "-q", help="A sentence to search with.")] = None,
    image: Annotated[Path | None, typer.Option("--image", "-i", help="A photo to search with.")] = None,
    plus: Annotated[
        list[str] | None,
        typer.Option("--plus", metavar="TERM", help="What results should show, too: 'in the snow', image:rex.jpg."),
    ] = None,
    minus: Annotated[
        list[str] | None,
        typer.Option("--minus", metavar="TERM", help="What results should not show; a weight comes first: 2:people."),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Extracted split to search: train, val or test.  \\[default: test]")
    ] = None,
    gallery: Annotated[
        str | None, typer.Option("--gallery", "-g", metavar="NAME", help="Gallery to search, made by index.")
    ] = None,
    model: ModelOption = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Results to show.")] = 10,
    under: Annotated[
        Path | None, typer.Option("--under", metavar="FOLDER", help="Only photos below this folder of the gallery.")
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option("--since", formats=["%Y-%m-%d"], help="Only photos of the gallery taken on this day or later."),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option("--until", formats=["%Y-%m-%d"], help="Only photos of the gallery taken on this day or earlier."),
    ] = None,
    unique: Annotated[bool, typer.Option("--unique", help="Show near duplicates in the gallery once.")] = False,
    min_relevance: Annotated[
        float | None,
        typer.Option("--min-relevance", min=0, max=1, help="Leave out results of a lower relevance, such as 0.3."),
    ] = None,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    paths: Annotated[bool, typer.Option("--paths", help="Print the photos' paths alone, one per line.")] = False,
    null: Annotated[bool, typer.Option("--null", "-0", help="End each path with NUL, for xargs -0.")] = False,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="PNG to draw the query and its results in.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="HTML page to write the query and its results to, photos included.")
    ] = None,
    workspace_path: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Search an extracted split or a gallery with a sentence or a photo.

    In a split, a sentence ranks photos and a photo ranks captions. A gallery is of photos or of sentences.

    The relevance of a result says how much people's captions of such a photo agree with the sentence. 100 % is the
    agreement of the captions that other people wrote for the same photo.

    Any number of terms can be added to a query and taken away from it. A term is a sentence or image:PATH. Its weight
    is relative to the query's: 1, 2 for a sentence that is added to a photo, and 0.5 for --minus. Another weight comes
    first, as in 2:people; before a digit, a number and a colon are no weight, as in 7:30.

    With terms, too, a photo ranks captions in a split, and photos in a gallery of photos.

    Example: dpce retrieve --query "a blonde woman in blue hailing a taxi" --sheet taxi.png

    Example: dpce retrieve --gallery photos --image rex.jpg --plus "in the snow" --minus people
    """
    if (query is None) == (image is None):
        raise typer.BadParameter("give one of --query and --image")
    if gallery is None and (model or under or since or until or unique):
        raise typer.BadParameter("--model, --under, --since, --until and --unique go with --gallery")
    if gallery is not None and split is not None:
        raise typer.BadParameter("give one of --split and --gallery")
    from dpce_cli.core.retrieval.combining import parse_term

    terms = [parse_term(term, is_minus=False) for term in plus or []]
    terms += [parse_term(term, is_minus=True) for term in minus or []]
    form = chosen_form(as_json=as_json, as_csv=as_csv, paths=paths, null=null, sheet=sheet, html=html)
    from dpce_cli.commands.console import ConsoleReporter
    from dpce_cli.core.retrieval.hits import Answers, at_least
    from dpce_cli.core.workspace.workspace import Workspace

    asked, workspace, reporter = query if image is None else image, Workspace(workspace_path), ConsoleReporter()
    assert asked is not None
    searched: Searchable
    if gallery is not None:
        from dpce_cli.core.galleries.gallery import load_gallery
        from dpce_cli.core.retrieval.hits import Filters

        filters = Filters(
            under=under, since=since.date() if since else None, until=until.date() if until else None, unique=unique
        )
        searched = load_gallery(workspace, gallery, reporter, model=model, filters=filters)
    else:
        from dpce_cli.core.retrieval.search import ExtractedSplit

        searched = ExtractedSplit(workspace, split or "test", reporter=reporter)
    hits = searched.search(asked, top_k, terms)
    if min_relevance is not None and hits:
        best, hits = hits[0], at_least(hits, min_relevance)
        if not hits:
            reporter.note(f"nothing found; the best result has a relevance of {best.percent}")
    kind = searched.answers(asked)
    title = ", ".join([searched.title, *map(str, terms)])
    answers = Answers(title=title, query=asked, kind=kind, hits=hits, root=searched.root)
    give_answers(answers, form, sheet=sheet, html=html, reporter=reporter)
