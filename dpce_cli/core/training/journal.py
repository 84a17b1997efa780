"""What a run writes down: metrics.jsonl, TensorBoard events, and a picture of the curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpce_cli.core.files import replacing


class Journal:
    """The records of one stage, cut back to `step` when a run continues from there.

    Args:
        folder: the stage's folder.
        step: steps that are finished; what was recorded after them is forgotten.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "metrics.jsonl"
        kept = [record for record in self.records() if record["step"] <= step] if step else []
        with replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        self._events = SummaryWriter(folder / "tensorboard", purge_step=step or None)

    def records(self) -> list[dict[str, Any]]:
        """What is recorded so far; a line cut off by a crash is passed over."""
        records = []
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                if line.endswith("}"):
                    records.append(json.loads(line))
        return records

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Add a record of `kind` ("train" or "validation")."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)
        self._events.flush()

    def close(self) -> None:
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
                points = [
                    (r["step"] / steps_per_epoch, r[key]) for r in records if r["kind"] == kind and key in r
                ]
                if points:
                    axes.plot(*zip(*points, strict=True), label=name)
                    axes.legend(frameon=False)
            axes.set(xlabel="epoch", title=label, ylim=(0, None))
            axes.grid(alpha=0.3)
        figure.suptitle(title)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
