from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.command_line import dpce, succeed
from tests.mat_files import Draw, dag, head_params, resnet_params, save_v7, text_params

WORDS = ["A", "a", "and", "car", "man", "red", "street", "taxi", "woman", "Unseen"]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = Draw(0)
    resnet_params(draw)
    head_params(draw, 2048, 2048, 24)
    text_params(draw, (1, 2, 1, 1), words=len(WORDS), dim=12, width=1 / 16, embedding_dim=24)
    draw.filters("fcsharef", 1, 1, 24, 40)
    return save_v7(tmp_path_factory.mktemp("pair") / "net-epoch-60.mat", {"net": dag(draw.params)})


@pytest.fixture(scope="session")
def dictionary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dictionary") / "flickr30k_dictionary.mat"
    return save_v7(path, {"subset": {"names": WORDS}})


def test_an_imported_pair_can_be_evaluated_and_searched(prepared: Path, pair: Path, dictionary: Path) -> None:
    outcome = succeed("import-matconvnet", pair, "--dictionary", dictionary, workspace=prepared)
    assert outcome.stdout.splitlines() == [
        f"Stage 2 model for data set 'scenes': {prepared / 'scenes' / 'stage2' / 'best.pt'} (resnet50-caffe, 10 words, "
        "32 of a caption, 40 classes)",
        "next: dpce extract-features",
    ]
    assert outcome.stderr == ""
    extracted = succeed("extract-features", "--workers", "0", workspace=prepared)
    assert "Stage 2 model" in extracted.stdout
    metrics = json.loads(succeed("eval", "--json", workspace=prepared).stdout)
    assert metrics["stage"] == 2
    found = succeed("retrieve", "--query", "A Unseen red car", "--json", workspace=prepared)
    assert len(json.loads(found.stdout)) == 6
    assert found.stderr == ""


def test_the_import_becomes_the_stage_that_is_asked_for(prepared: Path, pair: Path, dictionary: Path) -> None:
    arguments = ("import-matconvnet", pair, "--dictionary", dictionary, "--stage", "1")
    assert succeed(*arguments, workspace=prepared).stdout.startswith("Stage 1 model for data set 'scenes'")
    assert dpce(*arguments, workspace=prepared).error == (
        f"Error: {prepared / 'scenes' / 'stage1' / 'best.pt'}: a Stage 1 model is there already; add --fresh to "
        "replace it, or choose --stage 2 or another --workspace"
    )
    succeed(*arguments, "--fresh", workspace=prepared)
    assert "is imported (MatConvNet network net-epoch-60.mat)" in dpce("train-stage2", workspace=prepared).error


def test_an_image_cnn_becomes_a_weights_file(tmp_path: Path) -> None:
    draw = Draw(0)
    resnet_params(draw, classes=1000)
    path = save_v7(tmp_path / "imagenet-resnet-50-dag.mat", dag(draw.params, pooled=None))
    output = tmp_path / "resnet50-caffe.pth"
    outcome = succeed("import-matconvnet", path, "--output", output)
    assert outcome.stdout.splitlines() == [
        f"image CNN weights: {output}",
        f"next: dpce train-stage1 --backbone resnet50-caffe --backbone-weights {output}",
    ]
    state = torch.load(output, weights_only=True)
    assert np.array_equal(state["fc.weight"].numpy(), draw.params["fc1000_filter"][0, 0].T)


def test_a_file_of_the_other_kind_needs_the_other_option(
    prepared: Path, pair: Path, dictionary: Path, tmp_path: Path
) -> None:
    outcome = dpce("import-matconvnet", pair, "--output", tmp_path / "weights.pth")
    assert outcome.error == f"Error: {pair}: holds an image and a text network; give --dictionary"
    path = save_v7(tmp_path / "cnn.mat", dag({"conv1_filter": np.ones((7, 7, 3, 64))}, pooled=None))
    outcome = dpce("import-matconvnet", path, "--dictionary", dictionary, workspace=prepared)
    assert outcome.error == f"Error: {path}: holds an image CNN alone; give --output"


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--dictionary", "d.mat", "--output", "weights.pth"),
        ("--output", "weights.pth", "--stage", "1"),
        ("--output", "weights.pth", "--fresh"),
    ],
)
def test_one_of_dictionary_and_output_is_needed_with_its_own_options(options: tuple[str, ...]) -> None:
    outcome = dpce("import-matconvnet", "net.mat", *options)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "Usage: dpce import-matconvnet" in outcome.stderr


def test_a_damaged_file_is_one_line(prepared: Path, pair: Path, dictionary: Path, tmp_path: Path) -> None:
    (tmp_path / "half.mat").write_bytes(pair.read_bytes()[:50_000_000])
    outcome = dpce("import-matconvnet", tmp_path / "half.mat", "--dictionary", dictionary, workspace=prepared)
    assert outcome.error.startswith(f"Error: {tmp_path / 'half.mat'}: cannot be read as a MATLAB file (")
    outcome = dpce("import-matconvnet", pair, "--dictionary", tmp_path / "none.mat", workspace=prepared)
    assert (
        outcome.error == f"Error: {tmp_path / 'none.mat'}: cannot be read (No such file or directory); check the path"
    )


def test_a_pair_needs_a_prepared_data_set(pair: Path, dictionary: Path, tmp_path: Path) -> None:
    outcome = dpce("import-matconvnet", pair, "--dictionary", dictionary, workspace=tmp_path)
    assert "no data set is prepared here" in outcome.error
