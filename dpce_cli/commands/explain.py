"""dpce explain"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpce_cli.commands.options import DEFAULT_WORKSPACE, DeviceOption, JsonOption, ModelOption, WorkspaceOption

if TYPE_CHECKING:
    from dpce_cli.core.retrieval.explaining import Explanation


def explain(
    photo: Annotated[Path, typer.Argument(help="Photo to explain.", show_default=False)],
    sentence: Annotated[str, typer.Argument(help="Sentence that it is compared with.", show_default=False)],
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="PNG to draw the photo with a heat map, and the sentence, in.")
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Show why a photo fits a sentence: what each word and each part of the photo adds to their similarity.

    The similarity is the plain cosine, without the correction for hubs that retrieve makes. A word's share is how much
    it falls when the word is left out. Parts of the photo are left out in a feature map of the image CNN. The heat map
    shows where this takes away most of what is special to the sentence.

    Example: dpce explain street.png "a blonde woman in blue hailing a taxi" --sheet why.png
    """
    from dpce_cli.commands.console import build_reporter, print_json
    from dpce_cli.core.data.images import load_image
    from dpce_cli.core.processes.devices import choose_device
    from dpce_cli.core.retrieval.explaining import explain as explain_photo
    from dpce_cli.core.sharing.finding import find_model
    from dpce_cli.core.workspace.workspace import Workspace

    reporter = build_reporter()
    opened = load_image(photo)
    found = find_model(model, Workspace(workspace), device=choose_device(device), reporter=reporter)
    explanation = explain_photo(found, opened, sentence)
    if sheet:
        from dpce_cli.core.retrieval.explanation_sheet import draw_explanation

        draw_explanation(sheet, opened, explanation, reporter)
        reporter.note(f"sheet: {sheet}")
    if as_json:
        print_json(_as_json(photo, explanation))
    else:
        _print(photo, explanation)


def _as_json(photo: Path, explanation: Explanation) -> dict[str, Any]:
    heat = explanation.heat
    return {
        "photo": str(photo),
        "sentence": explanation.sentence,
        "similarity": explanation.similarity,
        "words": [{"word": word.text, "share": word.share} for word in explanation.words],
        "heat": heat and {"where": heat.where, "part": heat.part, "values": heat.values.tolist()},
    }


def _print(photo: Path, explanation: Explanation) -> None:
    from dpce_cli.commands.console import print_table

    heat, ignored = explanation.heat, {True: "ignored: too many words", False: "ignored: unknown"}
    cells = [
        (word.text, ignored[word.is_known] if word.share is None else f"{word.share:+.3f}")
        for word in explanation.words
    ]
    print_table(f"{photo}: {explanation.sentence}", ("word", "share"), cells)
    typer.echo(f"similarity {explanation.similarity:.3f}; a word's share is how much it falls without this word")
    if heat:
        (row, column), (rows, columns) = heat.strongest, heat.values.shape
        at = "" if heat.where == "none" else f" (row {row + 1} of {rows}, column {column + 1} of {columns})"
        typer.echo(f"strongest part of the photo: {heat.where}{at}")
    else:
        typer.echo("which part of the photo matters cannot be said: the image CNN has no map with enough cells")
