"""dpce plan"""

from __future__ import annotations

import re
from typing import Annotated

import typer

from dpce_cli.commands.options import FeatureCacheOption, GpusOption, SetOption

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def _count(text: str) -> int:
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)([kMG]?)", text)
    count = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not 0 < count <= 10**12:
        raise typer.BadParameter(f"'{text[:40]}' is not a number of photos up to 1000G; write 5000, 300k or 10M")
    return count


def plan(
    images: Annotated[str, typer.Option("--images", metavar="N", help="Training photos: 5000, 300k or 10M.")],
    stage: Annotated[int, typer.Option("--stage", min=1, max=2, help="Stage that is trained.")] = 1,
    preset: Annotated[str, typer.Option("--preset", help="A named configuration.")] = "paper-coco",
    captions: Annotated[int, typer.Option("--captions", min=1, max=10**6, help="Captions per photo.")] = 5,
    vocabulary: Annotated[
        int, typer.Option("--vocabulary", min=1, max=10**9, help="Words of the vocabulary.")
    ] = 30_000,
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
    from dpce_cli.commands.training import format_bytes
    from dpce_cli.core.presets import build_preset
    from dpce_cli.core.progress import duration
    from dpce_cli.core.training.sizing import size_stage

    config, count, devices = build_preset(preset).with_settings(settings), _count(images), gpus or 1
    size = size_stage(
        config,
        stage=stage,
        images=count,
        classes=count,
        captions_per_image=captions,
        vocabulary=vocabulary,
        word_dim=config.model.word_dim,
        processes=devices,
        feature_cache=feature_cache,
    )
    batch = config.stage(stage).batch_size
    typer.echo(f"stage {stage} on {count:,} photos, preset {preset}, {devices} device{'s'[: devices > 1]}")
    typer.echo(f"batch: {batch:,} photos, {batch / devices:,.4g} per device; learning rates are not scaled")
    typer.echo(f"memory of each device, estimated: {format_bytes(size.memory)}")
    if size.memory_to_save:
        typer.echo(f"more memory on the first machine while it saves: {size.memory_to_save / 2**30:,.1f} GiB")
    typer.echo(f"steps: {size.epochs} epochs of {size.steps_per_epoch:,}")
    if images_per_second:
        seconds = count / images_per_second
        typer.echo(f"time: {duration(seconds)} per epoch, {duration(seconds * size.epochs)} altogether")
    else:
        typer.echo("time: unknown; give the speed with --images-per-second")
    typer.echo(f"disk: {format_bytes(size.disk)}")
