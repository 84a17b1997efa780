"""dpce eval"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from dpce_cli.commands.options import DEFAULT_WORKSPACE, JsonOption, SplitOption, WorkspaceOption

if TYPE_CHECKING:
    from dpce_cli.core.retrieval.evaluation import Evaluation


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
    split: SplitOption = "test",
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
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Measure retrieval in both directions on an extracted split.

    Example: dpce eval --split val --json
    """
    from dpce_cli.commands.console import print_json
    from dpce_cli.core.retrieval.evaluation import evaluate_split
    from dpce_cli.core.workspace.artefacts import load_features
    from dpce_cli.core.workspace.workspace import Workspace

    store, checkpoint = load_features(Workspace(workspace), split)
    measured = evaluate_split(store, protocol.value if protocol else None)
    name, stage, fingerprint = checkpoint.dataset, checkpoint.stage, checkpoint.fingerprint
    label = f"{name} {split}, {measured.protocol}, Stage {stage} {fingerprint[:12]}"
    if as_json or form is Format.json:
        about = {"dataset": name, "split": split, "stage": stage, "checkpoint": fingerprint}
        print_json({**about, **measured.to_dict()})
    elif form is Format.markdown:
        typer.echo("| " + " | ".join([label, *_cells(measured)]) + " |")
    elif form is Format.latex:
        typer.echo(" & ".join([label, *_cells(measured)]) + r" \\")
    else:
        _print_table(
            f"{name}, {split} split: {measured.images} images, {measured.captions} captions; "
            f"Stage {stage} model {fingerprint[:12]}",
            measured,
        )


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


def _print_table(subject: str, measured: Evaluation) -> None:
    from dpce_cli.commands.console import print_table
    from dpce_cli.core.retrieval.evaluation import PROTOCOLS

    rsum = "" if measured.rsum is None else f"; RSUM {measured.rsum:.1f}"
    title = f"{subject}; protocol {measured.protocol}: {PROTOCOLS[measured.protocol]}{rsum}"
    rows = [
        (
            name.replace("_", "-"),
            *(f"{100 * value:.1f}" for value in (d.r1, d.r5, d.r10)),
            f"{d.median_rank:g}",
            f"{d.mean_rank:.1f}",
            f"{100 * d.map:.1f}",
        )
        for name, d in measured.directions.items()
    ]
    columns = ("direction", "R@1 %", "R@5 %", "R@10 %", "median rank", "mean rank", "mAP %")
    print_table(title, columns, rows, text_columns=0)
