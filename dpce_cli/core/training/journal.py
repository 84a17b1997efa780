"""The log of a run: metrics.jsonl, TensorBoard events and a picture of the curves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpce_cli.core.errors import WorkspaceError
from dpce_cli.core.storage.files import replacing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def _record(line: bytes) -> dict[str, Any] | None:
    """A record of `Journal.write`; None if the line is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("kind") not in ("train", "validation"):
        return None
    numbers = (value for name, value in record.items() if name != "kind")
    return record if "step" in record and all(type(value) in (int, float) for value in numbers) else None


class Journal:
    """The records of one stage; later ones are removed if the run continues from `step`.

    Args:
        folder: the stage's folder.
        step: finished steps; later records are removed.
        validated: step of the last validation that counts; later validations are removed. By default `step`.
    """

    def __init__(self, folder: Path, *, step: int, validated: int | None = None) -> None:
        self.path = folder / "metrics.jsonl"
        last = {"train": step, "validation": step if validated is None else validated}
        kept = [record for record in self.records() if record["step"] <= last[record["kind"]]] if step else []
        with replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        self._step, self._events_folder = step, folder / "tensorboard"
        if not step and self._events_folder.is_dir():
            shutil.rmtree(self._events_folder)

    @cached_property
    def _events(self) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(self._events_folder, purge_step=self._step + 1 if self._step else None)

    def records(self) -> list[dict[str, Any]]:
        """All records; damaged lines, for example after a crash, are left out."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise WorkspaceError(
                f"{self.path}: cannot be read ({error.strerror}); make it readable, or remove it"
            ) from error
        records = (_record(line) for line in lines)
        return [record for record in records if record is not None]

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Add a record of `kind` ("train" or "validation").

        Raises:
            WorkspaceError: the folder cannot be written.
        """
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            for name, value in values.items():
                self._events.add_scalar(f"{kind}/{name}", value, step)
            self._events.flush()
        except OSError as error:
            raise WorkspaceError(
                f"{self.path.parent}: cannot be written ({error.strerror or error}); free space, then run again "
                "to continue from the last checkpoint"
            ) from error

    def close(self) -> None:
        if "_events" in vars(self):
            self._events.close()

    def draw_curves(self, path: Path, *, steps_per_epoch: int, title: str) -> None:
        """Draw losses, accuracies and validation recalls over epochs as a PNG."""
        from matplotlib.figure import Figure

        records = self.records()
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        losses, accuracies, recalls = figure.subplots(1, 3)
        panels = (
            (
                losses,
                "train",
                "loss",
                {"image_loss": "image", "text_loss": "text", "ranking_loss": "ranking"},
            ),
            (accuracies, "train", "training accuracy", {"image_accuracy": "image", "text_accuracy": "text"}),
            (recalls, "validation", "validation R@1", {"i2t_r1": "image to text", "t2i_r1": "text to image"}),
        )
        for axes, kind, label, curves in panels:
            for key, name in curves.items():
                points = [(r["step"] / steps_per_epoch, r[key]) for r in records if r["kind"] == kind and key in r]
                if points:
                    axes.plot(*zip(*points, strict=True), label=name)
                    axes.legend(frameon=False)
            axes.set(xlabel="epoch", title=label, ylim=(0, None))
            axes.grid(alpha=0.3)
        figure.suptitle(title)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
