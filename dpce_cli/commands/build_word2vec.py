"""dpce build-word2vec"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dpce_cli.commands.options import DEFAULT_WORKSPACE, WorkspaceOption


class Oov(StrEnum):
    random = "random"
    drop = "drop"


def build_word2vec(
    vectors: Annotated[
        Path | None,
        typer.Option("--vectors", help="word2vec .bin, .bin.gz or .txt, or GloVe .txt file, of any dimension."),
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Train word2vec on the training captions; the default without --vectors.")
    ] = False,
    oov: Annotated[
        Oov, typer.Option("--oov", help="Give words without a vector a random one, or drop them as in the paper.")
    ] = Oov.random,
    workspace_path: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Give every word of the vocabulary its initial vector.

    Example: dpce build-word2vec --vectors GoogleNews-vectors-negative300.bin.gz
    """
    if vectors and train:
        raise typer.BadParameter("choose one of --vectors and --train")
    from dpce_cli.commands.console import ConsoleReporter
    from dpce_cli.core.workspace.initial_vectors import build_initial_vectors
    from dpce_cli.core.workspace.workspace import Workspace

    reporter = ConsoleReporter()
    built = build_initial_vectors(Workspace(workspace_path), vectors, oov=oov.value, reporter=reporter)
    typer.echo(
        f"{len(built.vocabulary)} words with {built.matrix.shape[1]}-d vectors from {built.source}; "
        f"{100 * built.coverage:.1f}% of the vocabulary and {100 * (built.token_coverage or 0):.1f}% of the words in "
        f"training captions have one, the others are {'dropped' if oov is Oov.drop else 'random'}"
    )
