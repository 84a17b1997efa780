from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from dpce_cli.core.errors import CheckpointError, WorkspaceError
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.sharing.finding import find_model, locate_model
from dpce_cli.core.sharing.model_folder import load_model
from dpce_cli.core.workspace.checkpoint import Checkpoint
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.conftest import Trained
from tests.core.sharing.hub import COMMITS, serving
from tests.core.tiny import Recorder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's library, which nothing but the server that a test names can fill."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def use(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """What HF_ENDPOINT sets when the library is imported."""
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_a_model_of_the_hub_is_downloaded_once(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "notes.txt").write_text("not of the model")
    with serving(folder) as (address, served):
        use(monkeypatch, address)
        reporter = Recorder()
        model = find_model("hf:someone/dogs", Workspace(Path("nowhere")), reporter=reporter)
        assert reporter.notes == ["hf:someone/dogs: downloading"]
        assert sorted(served) == ["README.md", "config.json", "model.safetensors", "vocabulary.json"]
        assert locate_model("hf:someone/dogs", reporter).is_relative_to(cache)
        assert (len(served), len(reporter.notes)) == (4, 1)
    assert np.array_equal(model.encode_text(["a mosaic"]), load_model(folder).encode_text(["a mosaic"]))
    assert np.array_equal(
        model.encode_images([photos / "val0.png"]), load_model(folder).encode_images([photos / "val0.png"])
    )
    again = find_model("hf:someone/dogs", Workspace(Path("nowhere")))  # the server is gone
    assert again.fingerprint == model.fingerprint
    assert capfd.readouterr() == ("", "")


def test_a_revision_is_taken_where_one_is_named(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(folder) as (address, _):
        use(monkeypatch, address)
        assert (locate_model("hf:someone/dogs@v1") / "README.md").read_text() == f"revision {COMMITS['v1']}"
        assert (locate_model("hf:someone/dogs") / "README.md").read_text() == f"revision {COMMITS['main']}"
        with pytest.raises(CheckpointError, match=r"hf:someone/dogs@v7: cannot be downloaded \(.+\); check the name"):
            locate_model("hf:someone/dogs@v7")
        with pytest.raises(CheckpointError, match=r"hf:someone/cats: cannot be downloaded \(.+\); check the name"):
            locate_model("hf:someone/cats")


def test_a_hub_that_does_not_answer_is_named_in_the_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(
        CheckpointError, match=r"hf:someone/dogs: cannot be downloaded \(.+\); check the name"
    ) as refused:
        locate_model("hf:someone/dogs")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["hf:", "hf:dogs", "hf:a/b/c", "hf:a/b@", "hf:../b", "hf:a/b@../x"])
def test_a_name_that_no_model_of_the_hub_has_is_refused(
    name: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=re.escape(name)):
        locate_model(name)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no such model folder; 'dpce export .*' makes one"):
        locate_model(str(tmp_path / "nowhere"))


def test_without_a_name_the_workspaces_best_model_is_taken(learning_stage1: Trained, trained: Checkpoint) -> None:
    found = find_model(None, learning_stage1.workspace)
    assert found.fingerprint == Model.of_checkpoint(trained).fingerprint


def test_without_a_name_and_a_data_set_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="no data set is prepared here"):
        find_model(None, Workspace(tmp_path))
