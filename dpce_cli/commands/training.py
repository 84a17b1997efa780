"""What both training commands print."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from dpce_cli.commands.console import print_table

if TYPE_CHECKING:
    from dpce_cli.core.config import Config
    from dpce_cli.core.training.options import StageResult
    from dpce_cli.core.training.plan import StagePlan


def print_plan(plan: StagePlan, config: Config) -> None:
    """Print the configuration, one setting a line, and what a stage would train and take."""
    typer.echo(f"preset {config.preset}, with all settings as --set takes them:")
    for setting in config.settings():
        typer.echo(setting)
    typer.echo()
    rows = [
        (
            group.name,
            f"{group.parameters:,}",
            f"{group.first_rate:.3g}" if group.highest_rate else "frozen",
            f"{group.highest_rate:.3g}" if group.highest_rate else "frozen",
        )
        for group in plan.groups
    ]
    columns = ("group", "parameters", "first learning rate", "highest")
    print_table("effective learning rates", columns, rows, text_columns=0)
    parts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in plan.parameters.items())
    memory = ", ".join(f"{size / 2**20:,.0f} MiB {name}" for name, size in plan.memory.items())
    typer.echo(f"\nclasses: {plan.classes:,}")
    typer.echo(f"vocabulary: {plan.vocabulary:,} words with {plan.word_dim}-d vectors ({plan.word_vectors})")
    typer.echo(f"parameters: {sum(plan.parameters.values()):,} ({parts})")
    typer.echo(
        f"steps: {plan.epochs} epochs of {plan.steps_per_epoch:,}, {plan.epochs * plan.steps_per_epoch:,} altogether"
    )
    typer.echo(f"memory of each device, estimated: {sum(plan.memory.values()) / 2**20:,.0f} MiB ({memory})")


def print_result(result: StageResult, *, then: str) -> None:
    """Print where the best model and the curves are, and what to run next."""
    best = result.validation
    quality = f" (validation RSUM {best['rsum']:.1f} in epoch {best['epoch']:.0f})" if best else ""
    typer.echo(f"best model: {result.best}{quality}")
    typer.echo(f"curves: {result.curves}")
    typer.echo(f"next: {then}")
