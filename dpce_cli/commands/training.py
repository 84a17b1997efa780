"""What both training commands share: their options, how they start, and what they print."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, get_type_hints

import typer

from dpce_cli.commands.console import print_table
from dpce_cli.commands.options import (
    DEFAULT_WORKSPACE,
    CheckpointMinutesOption,
    CompileOption,
    DeviceOption,
    EpochsOption,
    FeatureCacheOption,
    FreshOption,
    GpusOption,
    KeepOption,
    Precision,
    PrecisionOption,
    ProcessesOption,
    SetOption,
    ShowConfigOption,
    WorkersOption,
    WorkspaceOption,
    number_of_workers,
)
from dpce_cli.core.errors import ConfigError
from dpce_cli.launch import launch, requested

if TYPE_CHECKING:
    import torch

    from dpce_cli.core.config import Config
    from dpce_cli.core.training.options import RunOptions, StageResult, WordTable
    from dpce_cli.core.workspace.dataset import PreparedDataset


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The options of both training commands."""

    epochs: EpochsOption = None
    feature_cache: FeatureCacheOption = True
    settings: SetOption = field(default_factory=list)
    fresh: FreshOption = False
    checkpoint_minutes: CheckpointMinutesOption = 10.0
    keep: KeepOption = 1
    show_config: ShowConfigOption = False
    precision: PrecisionOption = Precision.fp32
    compiled: CompileOption = False
    device: DeviceOption = "auto"
    gpus: GpusOption = None
    processes: ProcessesOption = None
    workers: WorkersOption = None
    workspace: WorkspaceOption = DEFAULT_WORKSPACE

    def launch(self) -> str:
        """Start the processes that the options ask for, except with --show-config; return the device to work on."""
        if self.show_config:
            return self.device
        return launch(self.gpus, self.processes, self.device)

    def run_options(self, device: torch.device) -> RunOptions:
        from dpce_cli.core.training.options import RunOptions

        return RunOptions(
            device=device,
            workers=number_of_workers(self.workers),
            feature_cache=self.feature_cache,
            fresh=self.fresh,
            checkpoint_minutes=self.checkpoint_minutes,
            keep=self.keep,
            precision=self.precision.value,
            compiled=self.compiled,
        )


def with_training_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let Typer see the fields of `TrainingOptions` in place of the command's parameter `options`."""
    hints = get_type_hints(command, include_extras=True) | get_type_hints(TrainingOptions, include_extras=True)
    own = [part for name, part in inspect.signature(command).parameters.items() if name != "options"]
    shared = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default if option.default_factory is MISSING else option.default_factory(),
        )
        for option in fields(TrainingOptions)
    ]

    @functools.wraps(command)
    def with_fields(**values: Any) -> None:
        options = TrainingOptions(**{part.name: values.pop(part.name) for part in shared})
        command(**values, options=options)

    parameters = [part.replace(annotation=hints[part.name]) for part in (*own, *shared)]
    described: Any = with_fields
    described.__signature__ = inspect.Signature(parameters)
    described.__annotations__ = {part.name: part.annotation for part in parameters}
    return with_fields


def refuse_unused(settings: Sequence[str], stage: int, *, instead: str) -> None:
    """Refuse settings of a stage that the command does not train.

    Raises:
        ConfigError: there are some.
    """
    if unused := [setting for setting in settings if setting.startswith(f"stage{stage}.")]:
        raise ConfigError(f"--set {unused[0]}: this command does not train stage {stage}; {instead}")


def show_config(
    options: TrainingOptions, dataset: PreparedDataset, config: Config, words: WordTable, *, stage: int, classes: int
) -> None:
    """Print the configuration, one setting per line, and the stage's sizes, steps and memory."""
    from dpce_cli.core.training.optimisation import first_and_highest_rate
    from dpce_cli.core.training.sizing import size_for_dataset

    _, processes = requested(options.gpus, options.processes, options.device)
    size = size_for_dataset(
        dataset, config, words, stage=stage, classes=classes, processes=processes, feature_cache=options.feature_cache
    )
    typer.echo(f"preset {config.preset}, with all settings as --set takes them:")
    for setting in config.settings():
        typer.echo(setting)
    typer.echo()
    rates = first_and_highest_rate(config.stage(stage), size.steps_per_epoch)
    rows = [
        (
            group.name,
            f"{group.size:,}",
            *(f"{rate * group.multiplier:.3g}" if group.multiplier else "frozen" for rate in rates),
        )
        for group in size.groups
    ]
    columns = ("group", "parameters", "first learning rate", "highest")
    print_table("effective learning rates", columns, rows, text_columns=0)
    parts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in size.parameters.items())
    typer.echo(f"\nclasses: {classes:,}")
    typer.echo(f"vocabulary: {len(words.vocabulary):,} words with {words.word_dim}-d vectors ({words.source})")
    typer.echo(f"parameters: {sum(size.parameters.values()):,} ({parts})")
    typer.echo(
        f"steps: {size.epochs} epochs of {size.steps_per_epoch:,}, {size.epochs * size.steps_per_epoch:,} altogether"
    )
    typer.echo(f"disk: {format_bytes(size.disk)}")
    typer.echo(f"memory of each device, estimated: {format_bytes(size.memory)}")


def format_bytes(parts: dict[str, int]) -> str:
    """The sum of sizes, and each of them, in MiB or GiB.

    >>> format_bytes({"last.pt": 3 * 2**20, "best.pt": 2**20})
    '4 MiB (last.pt 3, best.pt 1)'
    """
    total = sum(parts.values())
    unit, size, digits = ("GiB", 2**30, 2) if total >= 2**30 else ("MiB", 2**20, 0)
    each = ", ".join(f"{name} {part / size:,.{digits}f}" for name, part in parts.items())
    return f"{total / size:,.{digits}f} {unit} ({each})"


def print_result(result: StageResult, *, then: str) -> None:
    """Print where the best model and the curves are, and what to run next."""
    best = result.validation
    quality = f" (validation RSUM {best['rsum']:.1f} in epoch {best['epoch']:.0f})" if best else ""
    typer.echo(f"best model: {result.best}{quality}")
    typer.echo(f"curves: {result.curves}")
    typer.echo(f"next: {then}")
