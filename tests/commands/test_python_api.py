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
from tests.command_line import succeed, tiny_resnet18


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


def test_the_example_of_load_model_runs(
    model: Path, finished_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = Workspace(finished_workspace).load_dataset().root
    (tmp_path / "dogs-model").symlink_to(model)
    (tmp_path / "rex.jpg").write_bytes((photos / "test" / "000000.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    code = example(dpce_cli.load_model)
    sentences = "two dogs in the snow", "a red bus"
    for sentence in sentences:
        assert sentence in code
        code = code.replace(sentence, "a woman in blue" if "dogs" in sentence else "a man")  # words of this model
    names: dict[str, Any] = {}
    with tiny_resnet18():
        exec(code, names)
    assert names["similarity"].shape == (1, 2)
    assert names["sentences"].dtype == names["photos"].dtype == np.float32
    np.testing.assert_allclose((names["photos"] ** 2).sum(1), 1, atol=1e-6)


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
