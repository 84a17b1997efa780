from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpce_cli
from dpce_cli.core.workspace.workspace import Workspace
from tests.command_line import succeed, tiny_resnet10


@pytest.fixture(scope="module")
def model(finished_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "dogs-model"
    succeed("export", folder, workspace=finished_workspace)
    return folder


def example(documented: Any) -> str:
    """The indented block of code in a docstring, whose first line imports the package."""
    text = inspect.getdoc(documented) or ""
    found = re.search(r"^    import dpce_cli\n(?:(?:    .*)?\n)+", text, flags=re.MULTILINE)
    assert found, documented
    return textwrap.dedent(found[0])


@pytest.fixture
def here(model: Path, finished_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the model and the photo that the examples name."""
    (tmp_path / "dogs-model").symlink_to(model)
    test_photos = Workspace(finished_workspace).load_dataset().root / "test"
    (tmp_path / "rex.jpg").write_bytes((test_photos / "000000.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code: str) -> dict[str, Any]:
    """Run an example with sentences that the tests' model knows; what it has called by which names."""
    for sentence, known in (("two dogs in the snow", "a woman in blue"), ("a red bus", "a man")):
        code = code.replace(sentence, known)
    names: dict[str, Any] = {}
    with tiny_resnet10():
        exec(code, names)
    return names


def test_the_example_of_load_model_runs(here: Path) -> None:
    names = run(example(dpce_cli.load_model))
    assert names["similarity"].shape == (1, 2)
    assert names["sentences"].dtype == names["photos"].dtype == np.float32
    np.testing.assert_allclose((names["photos"] ** 2).sum(1), 1, atol=1e-6)


def test_the_example_of_a_gallery_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "photos").mkdir()
    (here / "rex.jpg").rename(here / "photos" / "rex.jpg")
    succeed("index", "photos", "--model", "dogs-model", "--workers", "0")
    hits = run(example(dpce_cli))["gallery"].search("a man", top_k=1)
    score, path = capsys.readouterr().out.split(maxsplit=1)
    assert path.strip() == hits[0].path == str(here / "photos" / "rex.jpg")
    assert -1 <= float(score) <= 1
    assert isinstance(hits[0], dpce_cli.Hit)


def test_the_example_of_the_model_card_runs(here: Path) -> None:
    card = (here / "dogs-model" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, flags=re.DOTALL | re.MULTILINE)
    assert run(code.replace("THIS_FOLDER", "dogs-model"))["similarity"].shape == (1, 1)


def test_what_the_package_offers_is_there() -> None:
    for name in dpce_cli.__all__:
        assert callable(getattr(dpce_cli, name))
    with pytest.raises(AttributeError, match="module 'dpce_cli' has no attribute 'nothing'"):
        dpce_cli.nothing  # noqa: B018


def test_a_model_or_a_device_that_is_not_there_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(dpce_cli.DpceError, match="there is no such model folder"):
        dpce_cli.load_model(tmp_path / "nowhere")
    with pytest.raises(dpce_cli.DpceError, match="there is no such device"):
        dpce_cli.load_model(model, device="gpu")
