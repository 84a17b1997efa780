"""dpce eval"""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpce_cli.commands.options import DEFAULT_WORKSPACE, JsonOption, WorkspaceOption

if TYPE_CHECKING:
    from dpce_cli.core.retrieval.details import DetailAccuracy
    from dpce_cli.core.retrieval.evaluation import Evaluation
    from dpce_cli.core.teaching.evaluation import GalleryEvaluation, Recall


class Protocol(StrEnum):
    full = "full"
    one_k = "1k"
    first_1k = "first-1k"
    identity = "identity"


class Format(StrEnum):
    table = "table"
    json = "json"
    markdown = "markdown"
    latex = "latex"


def evaluate(
    split: Annotated[str | None, typer.Option("--split", help="train, val or test.  \\[default: test]")] = None,
    gallery: Annotated[
        str | None,
        typer.Option(
            "--gallery",
            "-g",
            metavar="NAME",
            help="Gallery of photos: measure with the captions that you wrote for it and that its model was not "
            "trained on. Table or JSON.",
        ),
    ] = None,
    protocol: Annotated[
        Protocol | None,
        typer.Option(
            "--protocol",
            help="full: all images and captions, MSCOCO's 5K. 1k: mean of five folds of 1,000 images. first-1k: one "
            "such fold. identity: text to image, any image of the person is a hit.  "
            "\\[default: identity where images carry one, else full]",
        ),
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="table, JSON, or one row of a Markdown or LaTeX table.")
    ] = Format.table,
    as_json: JsonOption = False,
    details: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Measure also how often a photo prefers its caption to the same caption with one word swapped: words "
            "of a TOML file, or 'english'. Table or JSON.",
        ),
    ] = None,
    workspace_path: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Measure retrieval in both directions on a split or a gallery, by plain cosines and with hubs corrected.

    On a gallery, each photo counts once for the intervals, even if it has several captions. The photos are those that
    you chose to caption, not a random sample.

    Example: dpce eval --split val --json
    """
    if as_json and form not in (Format.table, Format.json):
        raise typer.BadParameter(f"--json and --format {form} exclude each other; choose one")
    form = Format.json if as_json else form
    if details and form not in (Format.table, Format.json):
        raise typer.BadParameter("--details is for tables and JSON")
    if gallery is not None:
        if split or protocol or details or form not in (Format.table, Format.json):
            raise typer.BadParameter("--gallery goes with --json alone")
        _evaluate_gallery(workspace_path, gallery, as_json=form is Format.json)
        return
    from dpce_cli.commands.console import ConsoleReporter, print_json
    from dpce_cli.core.retrieval.details import measure_details
    from dpce_cli.core.retrieval.evaluation import evaluate_split
    from dpce_cli.core.retrieval.hubness import corrected_for_hubs, has_hubness
    from dpce_cli.core.retrieval.model import Model
    from dpce_cli.core.text.details import read_details
    from dpce_cli.core.workspace.artefacts import load_features
    from dpce_cli.core.workspace.workspace import Workspace

    kinds = read_details(details) if details else {}
    split = split or "test"
    store, checkpoint = load_features(Workspace(workspace_path), split, ConsoleReporter())
    measured = {"": evaluate_split(store, protocol.value if protocol else None)}
    if has_hubness(store):
        measured["hubs corrected"] = evaluate_split(corrected_for_hubs(store), protocol.value if protocol else None)
    detailed = measure_details(Model.of_checkpoint(checkpoint), store, kinds)
    plain, name, stage, fingerprint = measured[""], checkpoint.dataset, checkpoint.stage, checkpoint.fingerprint
    if form is Format.json:
        about = {"dataset": name, "split": split, "stage": stage, "checkpoint": fingerprint}
        corrected = {key.replace(" ", "_"): one.to_dict() for key, one in measured.items() if key}
        found = {kind: accuracy and asdict(accuracy) for kind, accuracy in detailed.items()}
        print_json({**about, **plain.to_dict(), **corrected, **({"details": found} if details else {})})
    elif form in (Format.markdown, Format.latex):
        for way, one in measured.items():
            about_row = [f"{name} {split}", plain.protocol, way, f"Stage {stage} {fingerprint[:12]}"]
            row = [", ".join(filter(None, about_row)), *_cells(one)]
            typer.echo("| " + " | ".join(row) + " |" if form is Format.markdown else " & ".join(row) + r" \\")
    else:
        _print_table(
            f"{name}, {split} split: {plain.images} images, {plain.captions} captions; "
            f"Stage {stage} model {fingerprint[:12]}",
            measured,
        )
        if detailed:
            typer.echo()
            _print_details(detailed)


def _evaluate_gallery(workspace_path: Path, name: str, *, as_json: bool) -> None:
    from dpce_cli.commands.console import ConsoleReporter, print_json
    from dpce_cli.core.galleries.gallery import load_gallery
    from dpce_cli.core.teaching.captions import CaptionsOfGallery
    from dpce_cli.core.teaching.evaluation import evaluate_gallery
    from dpce_cli.core.workspace.workspace import Workspace

    workspace, reporter = Workspace(workspace_path), ConsoleReporter()
    gallery = load_gallery(workspace, name, reporter)
    captions = CaptionsOfGallery(workspace.teaching_folder(name))
    measured = evaluate_gallery(gallery.folder, gallery.model, captions, reporter)
    if as_json:
        print_json(measured.to_dict())
    else:
        _print_gallery(measured)


def _print_gallery(measured: GalleryEvaluation) -> None:
    from dpce_cli.commands.console import print_table

    ways = {"": measured.plain, "hubs corrected": measured.hubs_corrected or {}}
    rows = [
        (
            ", ".join(filter(None, (name.replace("_", "-"), way))),
            *map(_with_interval, (d.r1, d.r5, d.r10)),
            f"{d.median_rank:g}",
            f"{d.queries:,} in {d.gallery:,}",
        )
        for way, directions in ways.items()
        for name, d in directions.items()
    ]
    title = (
        f"gallery {measured.gallery}: {measured.captions:,} captions of {measured.photos:,} photos that the model "
        f"({measured.model}) was not trained on; with intervals of 95 % confidence"
    )
    print_table(title, ("direction", "R@1 %", "R@5 %", "R@10 %", "median rank", "queries"), rows, text_columns=0)


def _with_interval(recall: Recall) -> str:
    return f"{100 * recall.value:.1f} ({100 * recall.low:.0f}-{100 * recall.high:.0f})"


def _cells(measured: Evaluation) -> list[str]:
    """R@1, R@5, R@10 and the median rank of each direction, as papers print them; by identity mAP and no median."""
    return [
        cell
        for d in measured.directions.values()
        for cell in (
            *(f"{100 * value:.1f}" for value in (d.r1, d.r5, d.r10)),
            f"{d.median_rank:g}" if measured.rsum is not None else f"{100 * d.map:.1f}",
        )
    ]


def _print_table(subject: str, measured: dict[str, Evaluation]) -> None:
    from dpce_cli.commands.console import print_table
    from dpce_cli.core.retrieval.evaluation import PROTOCOLS

    protocol = measured[""].protocol
    sums = [f"{way} {one.rsum:.1f}".strip() for way, one in measured.items() if one.rsum is not None]
    rsum = f"RSUM {', '.join(sums)}" if sums else ""
    title = "; ".join(filter(None, (subject, f"protocol {protocol}: {PROTOCOLS[protocol]}", rsum)))
    rows = [
        (
            ", ".join(filter(None, (name.replace("_", "-"), way))),
            *(f"{100 * value:.1f}" for value in (d.r1, d.r5, d.r10)),
            f"{d.median_rank:g}",
            f"{d.mean_rank:.1f}",
            f"{100 * d.map:.1f}",
        )
        for way, one in measured.items()
        for name, d in one.directions.items()
    ]
    columns = ("direction", "R@1 %", "R@5 %", "R@10 %", "median rank", "mean rank", "mAP %")
    print_table(title, columns, rows, text_columns=0)


def _print_details(measured: dict[str, DetailAccuracy | None]) -> None:
    from dpce_cli.commands.console import print_table

    rows = [
        (
            kind,
            f"{found.captions:,}" if found else "0",
            *("" if value is None else f"{100 * value:.1f}" for value in _fractions(found)),
        )
        for kind, found in measured.items()
    ]
    title = (
        "One detail of a caption swapped: how often the photo prefers the true caption (chance: 50 %); balanced: where "
        "both words are equally common"
    )
    print_table(title, ("detail", "captions", "right %", "balanced %"), rows, text_columns=0)


def _fractions(found: DetailAccuracy | None) -> tuple[float | None, float | None]:
    return (found.accuracy, found.balanced) if found else (None, None)
