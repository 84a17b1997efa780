from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpce_cli.core.errors import CheckpointError, WorkspaceError
from dpce_cli.core.processes.interruption import Interrupted
from dpce_cli.core.training.run import StageRun
from dpce_cli.core.training.stage_files import StageFiles
from tests.core.conftest import Trained
from tests.core.tiny import EPOCHS, STEPS, Recorder, checkpoint, outcome, send_at, train

pytestmark = pytest.mark.usefixtures("no_curves")


def test_a_state_within_an_epoch_is_saved_when_it_is_due(stage1: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, save = list[int](), StageRun._save

    def noting(self: StageRun, path: Path) -> None:
        save(self, path)
        if path.name == "last.pt":
            saved.append(self.state.step)

    monkeypatch.setattr(StageRun, "_save", noting)
    train(stage1.workspace, 1, stage1.config, fresh=True, checkpoint_minutes=1e-9)
    ends = [STEPS * epoch for epoch in range(1, EPOCHS + 1)]  # saved before and after validation
    assert saved == sorted([*range(1, EPOCHS * STEPS + 1), *ends])
    expected = outcome(stage1.workspace, 1)
    saved.clear()
    train(stage1.workspace, 1, stage1.config, fresh=True, checkpoint_minutes=0)
    assert saved == sorted(2 * ends)
    assert outcome(stage1.workspace, 1) == expected


def test_states_of_the_last_epochs_are_kept_and_can_be_gone_back_to(stage1: Trained) -> None:
    folder = stage1.workspace.stage_folder(1)
    train(stage1.workspace, 1, stage1.config, fresh=True, keep=2)
    assert sorted(path.name for path in folder.glob("epoch*")) == ["epoch-2.pt", "epoch-3.pt"]
    assert checkpoint(stage1.workspace, 1, "epoch-2").step == 2 * STEPS
    whole = outcome(stage1.workspace, 1)

    (folder / "epoch-2.pt").replace(folder / "last.pt")
    reporter = Recorder()
    train(stage1.workspace, 1, stage1.config, reporter=reporter, keep=2)
    assert f"continuing {folder / 'last.pt'} after step {2 * STEPS}" in reporter.notes
    assert outcome(stage1.workspace, 1) == whole


def test_a_damaged_state_names_the_epoch_to_go_back_to(stage1: Trained) -> None:
    train(stage1.workspace, 1, stage1.config, fresh=True, keep=2)
    folder = stage1.workspace.stage_folder(1)
    (folder / "last.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"cannot be read .*, or copy {folder}/epoch-2\.pt over it"):
        train(stage1.workspace, 1, stage1.config)
    (folder / "epoch-2.pt").replace(folder / "last.pt")
    train(stage1.workspace, 1, stage1.config)


def test_the_epochs_that_were_written_last_are_kept_whatever_their_numbers(tmp_path: Path) -> None:
    files = StageFiles(tmp_path)
    for time, epoch in enumerate((8, 9, 2, 3)):
        files.last.write_text(str(epoch))
        os.utime(files.last, (time, time))
        files.keep_last(epoch, 3)
        files.last.unlink()
    assert [path.name for path in files.epochs()] == ["epoch-9.pt", "epoch-2.pt", "epoch-3.pt"]


def test_where_there_are_no_links_states_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: Path, target: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refused)
    files = StageFiles(tmp_path)
    files.last.write_text("state")
    files.keep_last(1, 2)
    assert (tmp_path / "epoch-1.pt").read_text() == "state"
    assert files.last.stat().st_ino != (tmp_path / "epoch-1.pt").stat().st_ino


def test_beginning_anew_says_what_it_replaces_and_leaves_nothing_of_it(
    stage1: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter, folder = Recorder(), stage1.workspace.stage_folder(1)
    (folder / "epoch-1.pt").touch()
    send_at(monkeypatch, 0)
    with pytest.raises(Interrupted):
        train(stage1.workspace, 1, stage1.config, fresh=True, reporter=reporter)
    assert f"beginning anew; this replaces last.pt, best.pt, curves.png, epoch-1.pt in {folder}" in reporter.notes
    assert sorted(path.name for path in folder.iterdir()) == ["last.pt", "lock", "metrics.jsonl"]


def test_a_stage_that_is_begun_for_the_first_time_replaces_nothing(stage1: Trained) -> None:
    reporter = Recorder()
    train(stage1.workspace, 2, stage1.config, reporter=reporter)
    assert not [note for note in reporter.notes if "anew" in note]


def test_two_processes_do_not_train_a_stage_at_the_same_time(tmp_path: Path) -> None:
    hold = (
        "import pathlib, sys\n"
        "from dpce_cli.core.training.stage_files import StageFiles\n"
        "with StageFiles(pathlib.Path(sys.argv[1])).claim():\n"
        "    print('claimed', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "stage1")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "claimed\n"
        busy = pytest.raises(WorkspaceError, match="stage1: another process trains this stage; wait for it")
        with busy, StageFiles(tmp_path / "stage1").claim():
            pass
        other.kill()
    with StageFiles(tmp_path / "stage1").claim():
        pass
