from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from dpce_cli.core.errors import WorkspaceError
from dpce_cli.core.training.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Records of steps 10, 20 and 30 and two validations."""
    journal = Journal(tmp_path, step=0)
    for step in (10, 20, 30):
        journal.write("train", step, {"loss": 60 / step, "image_loss": 40 / step, "image_accuracy": step / 100})
        if step != 10:
            journal.write("validation", step, {"rsum": 5.0 * step, "i2t_r1": 0.1, "t2i_r1": 0.2})
    journal.close()
    return journal


def steps(journal: Journal) -> list[tuple[str, int]]:
    return [(record["kind"], record["step"]) for record in journal.records()]


def events(folder: Path, tag: str) -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(event.step, round(event.value, 4)) for event in accumulator.Scalars(tag)]


def test_records_are_lines_of_json_and_tensorboard_scalars(journal: Journal, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == journal.records()
    assert lines[0] == {"kind": "train", "step": 10, "loss": 6.0, "image_loss": 4.0, "image_accuracy": 0.1}
    assert lines[2] == {"kind": "validation", "step": 20, "rsum": 100.0, "i2t_r1": 0.1, "t2i_r1": 0.2}
    assert events(tmp_path, "train/loss") == [(10, 6.0), (20, 3.0), (30, 2.0)]
    assert events(tmp_path, "validation/rsum") == [(20, 100.0), (30, 150.0)]


def test_records_after_the_step_that_a_run_continues_from_are_deleted(journal: Journal, tmp_path: Path) -> None:
    again = Journal(tmp_path, step=20)
    assert steps(again) == [("train", 10), ("train", 20), ("validation", 20)]
    again.write("train", 30, {"loss": 9.0})
    again.close()
    assert steps(again)[-1] == ("train", 30)
    assert events(tmp_path, "train/loss") == [(10, 6.0), (20, 3.0), (30, 9.0)]


def test_a_line_cut_off_by_a_crash_is_ignored(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    last = whole.splitlines()[-1]
    for length in range(len(last)):
        path.write_text(whole[: len(whole) - 1 - len(last) + length])
        assert len(journal.records()) == 4
    again = Journal(tmp_path, step=30)
    again.write("train", 40, {"loss": 1.0})
    again.close()
    assert steps(again) == [("train", 10), ("train", 20), ("validation", 20), ("train", 30), ("train", 40)]


def test_a_new_run_begins_with_nothing(journal: Journal, tmp_path: Path) -> None:
    again = Journal(tmp_path, step=0)
    assert again.records() == []
    assert not (tmp_path / "tensorboard").exists()
    again.write("train", 5, {"loss": 1.0})
    again.close()
    assert events(tmp_path, "train/loss") == [(5, 1.0)]


def test_a_run_that_writes_nothing_leaves_no_event_file(journal: Journal, tmp_path: Path) -> None:
    before = list((tmp_path / "tensorboard").iterdir())
    Journal(tmp_path, step=30).close()
    assert list((tmp_path / "tensorboard").iterdir()) == before


def test_records_that_cannot_be_written_are_a_workspace_error(tmp_path: Path) -> None:
    journal = Journal(tmp_path, step=0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(WorkspaceError, match=r"No space left on device.*run again to continue"):
        journal.write("train", 1, {"loss": 1.0})


def test_the_curves_are_a_picture(journal: Journal, tmp_path: Path) -> None:
    journal.draw_curves(tmp_path / "curves.png", steps_per_epoch=10, title="photos, stage 1")
    with Image.open(tmp_path / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert 1000 <= picture.width <= 2000
        assert 300 <= picture.height <= 1000
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 50
    assert (tmp_path / "curves.png").stat().st_size < 200_000


def test_the_curves_of_no_records_are_empty_axes(tmp_path: Path) -> None:
    Journal(tmp_path, step=0).draw_curves(tmp_path / "curves.png", steps_per_epoch=10, title="nothing")
    with Image.open(tmp_path / "curves.png") as picture:
        picture.verify()
