"""Options that several commands share."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dpce_cli.core.processes.environment import local_processes

WorkspaceOption = Annotated[
    Path,
    typer.Option("--workspace", "-w", envvar="DPCE_WORKSPACE", help="Folder in which commands leave their results."),
]
SplitOption = Annotated[str, typer.Option("--split", help="train, val or test.")]
StageOption = Annotated[
    int | None,
    typer.Option("--stage", min=1, max=2, help="Stage whose best model is used.  \\[default: the last one trained]"),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="A folder that export wrote, or hf:USER/NAME[@REVISION].  \\[default: the workspace's best model]",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
GpusOption = Annotated[
    int | None, typer.Option("--gpus", min=1, help="GPUs of this machine that share the work.  \\[default: one]")
]
ProcessesOption = Annotated[
    int | None, typer.Option("--processes", min=1, help="CPU processes that share the work.  \\[default: one]")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        help="Processes that decode photos.  \\[default: half of the CPU cores per process, 2 to 16]",
    ),
]


def number_of_workers(workers: int | None) -> int:
    """`workers`, or by default half of the CPU cores that this process may use, 2 to 16.

    The other half is for the training, its communication, and other users. Processes on the same machine share the
    cores; torchrun sets their number in the environment.
    """
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return min(16, max(2, cores // local_processes() // 2))


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing what is there.")]
CheckpointMinutesOption = Annotated[
    float,
    typer.Option("--checkpoint-minutes", min=0, help="Time between checkpoints within an epoch; 0: only at its end."),
]
KeepOption = Annotated[
    int, typer.Option("--keep", min=1, help="Number of last epochs whose checkpoints are kept; 1: only last.pt.")
]


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


PrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--precision",
        help="Precision of the networks; both 16-bit ones are faster on a GPU, bf16 also on a CPU with AMX.",
    ),
]
CompileOption = Annotated[bool, typer.Option("--compile", help="Compile the encoders for training (torch.compile).")]
EpochsOption = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Epochs of this stage.  \\[default: the preset's]")
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, help="Seed of everything random.  \\[default: the preset's]")
]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the configuration; may be repeated."),
]
FeatureCacheOption = Annotated[
    bool,
    typer.Option(
        "--feature-cache/--no-feature-cache",
        help="Compute what the frozen part of the image CNN gives once, or from fresh random crops each epoch as the "
        "paper does.",
    ),
]
ShowConfigOption = Annotated[
    bool,
    typer.Option("--show-config", help="Train nothing; print settings, learning rates, sizes and estimated memory."),
]
DEFAULT_WORKSPACE = Path("dpce-workspace")
