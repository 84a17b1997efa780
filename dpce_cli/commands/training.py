"""What both training commands print at the end."""

from __future__ import annotations

import typer

from dpce_cli.core.training.run import StageResult


def print_result(result: StageResult, *, then: str) -> None:
    """Print where the best model and the curves are, and what to run next."""
    best = result.validation
    quality = f" (validation RSUM {best['rsum']:.1f} in epoch {best['epoch']:.0f})" if best else ""
    typer.echo(f"best model: {result.best}{quality}")
    typer.echo(f"curves: {result.curves}")
    typer.echo(f"next: {then}")
