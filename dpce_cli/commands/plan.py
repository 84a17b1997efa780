"""dpce plan"""

from __future__ import annotations

import re
from typing import Annotated

import typer

from dpce_cli.commands.options import FeatureCacheOption, GpusOption, SetOption

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def _count(text: str) -> int:
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]?)", text)) or not (number := float(match[1])):
        raise typer.BadParameter(f"'{text}' is no number of photos; write 5000, 300k or 10M")
    return round(number * _UNITS[match[2]])


def plan(
    images: Annotated[str, typer.Option("--images", metavar="N", help="Training photos: 5000, 300k or 10M.")],
    stage: Annotated[int, typer.Option("--stage", min=1, max=2, help="Stage that is trained.")] = 1,
    preset: Annotated[str, typer.Option("--preset", help="A named configuration.")] = "paper-coco",
    captions: Annotated[int, typer.Option("--captions", min=1, help="Captions per photo.")] = 5,
    vocabulary: Annotated[int, typer.Option("--vocabulary", min=1, help="Words of the vocabulary.")] = 30_000,
    gpus: GpusOption = None,
    images_per_second: Annotated[
        float | None,
        typer.Option("--images-per-second", min=0.01, help="Speed of all GPUs together, img/s in the log of a trial."),
    ] = None,
    feature_cache: FeatureCacheOption = True,
    settings: SetOption = [],  # noqa: B006 - Typer copies it
) -> None:
    """Work out memory, steps, time and disk space of a training before there is a data set.

    Example: dpce plan --images 10M --gpus 16 --images-per-second 5000 --set stage1.batch_size=1024
    """
    from dpce_cli.core.presets import build_preset
    from dpce_cli.core.progress import duration
    from dpce_cli.core.training.forecast import forecast

    config, count, devices = build_preset(preset).with_settings(settings), _count(images), gpus or 1
    found = forecast(
        config,
        stage=stage,
        images=count,
        captions_per_image=captions,
        vocabulary=vocabulary,
        processes=devices,
        feature_cache=feature_cache,
    )
    batch = config.stage(stage).batch_size
    typer.echo(f"stage {stage} on {count:,} photos, preset {preset}, {devices} device{'s'[: devices > 1]}")
    typer.echo(f"batch: {batch:,} photos, {batch / devices:,.4g} a device; learning rates are not scaled")
    typer.echo(f"memory of each device, estimated: {_sizes(found.memory)}")
    if found.gathered:
        typer.echo(f"memory of the first machine while it saves, besides: {found.gathered / 2**30:,.1f} GiB")
    typer.echo(f"steps: {found.epochs} epochs of {found.steps_per_epoch:,}")
    if images_per_second:
        seconds = count / images_per_second
        typer.echo(f"time: {duration(seconds)} an epoch, {duration(seconds * found.epochs)} altogether")
    else:
        typer.echo("time: say how fast with --images-per-second")
    typer.echo(f"disk: {_sizes(found.disk)}")


def _sizes(parts: dict[str, int]) -> str:
    each = ", ".join(f"{name} {size / 2**30:,.2f}" for name, size in parts.items())
    return f"{sum(parts.values()) / 2**30:,.2f} GiB ({each})"
