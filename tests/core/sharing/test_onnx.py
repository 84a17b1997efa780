from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torchvision import models

from dpce_cli.core.data.images import load_image
from dpce_cli.core.data.views import views_in_testing
from dpce_cli.core.errors import CheckpointError, ConfigError
from dpce_cli.core.models import backbones
from dpce_cli.core.models.caffe import CaffeVGG
from dpce_cli.core.models.image_encoder import ImageEncoder
from dpce_cli.core.retrieval.encoding import encode_images
from dpce_cli.core.retrieval.model import Array, Model
from dpce_cli.core.sharing import onnx as onnx_files
from dpce_cli.core.sharing.graphs import ImageGraph
from dpce_cli.core.sharing.model_folder import load_model, save_model
from dpce_cli.core.workspace.checkpoint import Checkpoint
from tests.command_line import succeed
from tests.core.sharing.hub import serving

SENTENCES = ["a", "a mosaic of x1", "many x2 with z3", "a mosaic of x1 y1 z1 many with x2 y2 z2 x3"]


@pytest.fixture
def folder(trained: Checkpoint, tmp_path: Path) -> Path:
    """A model with ONNX graphs that may be changed."""
    save_model(Model.of_checkpoint(trained), tmp_path / "model", card="", half=False, onnx=True)
    return tmp_path / "model"


def cosines(one: Array, other: Array) -> Array:
    cosine: Array = (one.astype(np.float64) * other).sum(1)
    return cosine


def run(path: Path, values: Any) -> Array:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows: Array = session.run(None, {session.get_inputs()[0].name: np.asarray(values)})[0]
    return rows


def changed(trained: Checkpoint, section: str, **values: Any) -> Model:
    config = replace(trained.config, **{section: replace(getattr(trained.config, section), **values)})
    return replace(Model.of_checkpoint(trained), config=config)


@pytest.mark.parametrize("shift", [False, True])
def test_sentences_have_the_embeddings_that_torch_gives_them(trained: Checkpoint, tmp_path: Path, shift: bool) -> None:
    model = changed(trained, "model", position_shift=shift)
    save_model(model, tmp_path / "model", card="", half=False, onnx=True)
    found = load_model(tmp_path / "model")

    assert found.text_engine
    embeddings = found.encode_text(SENTENCES)
    assert embeddings.dtype == np.float32
    assert np.abs(1 - cosines(embeddings, model.encode_text(SENTENCES))).max() < 1e-5
    assert np.abs(1 - cosines(embeddings, embeddings)).max() < 1e-5
    assert np.abs(1 - cosines(found.encode_text(SENTENCES[1:2]), embeddings[1:2])).max() < 1e-5
    assert "weights" not in vars(found)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("test_view", ["crop", "full"])
def test_photos_have_the_embeddings_that_torch_gives_them(
    trained: Checkpoint, tmp_path: Path, photos: Path, mirror: bool, test_view: str
) -> None:
    model = changed(trained, "image", mirror=mirror, test_view=test_view)
    save_model(model, tmp_path / "model", card="", half=False, onnx=True)
    paths = [photos / f"val{index}.png" for index in range(3)]
    plain = [views_in_testing(model.config.image)(load_image(path), 0)[0].numpy() for path in paths]
    embeddings = run(tmp_path / "model" / "image.onnx", np.stack(plain))
    assert np.abs(1 - cosines(embeddings, model.encode_images(paths))).max() < 1e-5


def test_a_grid_of_cells_that_overlap_is_exported(tmp_path: Path) -> None:
    encoder = ImageEncoder(backbone="resnet10", embedding_dim=8, crop=80, pooling=(2, 2)).eval()  # a map of 3 x 3
    encoder.reset_parameters(torch.Generator().manual_seed(0), None)
    photos = torch.randint(256, (2, 3, 80, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    onnx_files._export(ImageGraph(encoder, mirror=True), photos, tmp_path / "image.onnx", "photos", {0: "photos"})

    views = torch.stack([photos, photos.flip(3)], 1)
    assert np.abs(1 - cosines(run(tmp_path / "image.onnx", photos), encode_images(encoder, views).numpy())).max() < 1e-5


def thin_vgg(build: Callable[[], models.VGG]) -> models.VGG:
    """A VGG with 8 channels and layers of 16 where its own have 512 and 4096."""
    with torch.device("meta"):
        vgg = build()
    vgg.features = nn.Sequential(nn.MaxPool2d(32), nn.Conv2d(3, 8, 1))
    vgg.classifier = nn.Sequential(nn.Linear(8 * 49, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16))
    vgg.mean = torch.tensor([120.0, 110.0, 100.0])
    return vgg


THIN_VGGS = {
    "vgg16": lambda: thin_vgg(models.vgg16),
    "vgg16-caffe": lambda: thin_vgg(lambda: CaffeVGG("D")),
}


@pytest.mark.parametrize(
    "backbone", ["resnet18", "vgg16", "vgg16-caffe", pytest.param("resnet50-caffe", marks=pytest.mark.slow)]
)
def test_whole_photos_of_any_shape_have_the_embeddings_that_torch_gives_them(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, entry in THIN_VGGS.items():
        monkeypatch.setitem(backbones.VARIANTS, name, entry)
    torch.manual_seed(0)
    encoder = ImageEncoder(backbone=backbone, embedding_dim=16).eval()
    path = tmp_path / "image.onnx"
    example = torch.zeros(1, 3, 288, 320, dtype=torch.uint8)
    axes = {0: "photos", 2: "height", 3: "width"}
    onnx_files._export(ImageGraph(encoder, mirror=True), example, path, "photos", axes)
    for height, width in ((256, 256), (256, 341), (384, 256)):
        photo = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
        ours = encode_images(encoder, torch.stack([photo, photo.flip(-1)], 1)).numpy()
        assert abs(1 - cosines(run(path, photo), ours)[0]) < 1e-5


def test_half_weights_are_those_of_the_graphs(trained: Checkpoint, tmp_path: Path) -> None:
    save_model(Model.of_checkpoint(trained), tmp_path / "model", card="", half=True, onnx=True)
    by_torch = load_model(tmp_path / "model", device=torch.device("cpu"))
    assert by_torch.text_engine is None
    difference = load_model(tmp_path / "model").encode_text(SENTENCES) - by_torch.encode_text(SENTENCES)
    assert np.abs(difference).max() < 1e-5


def test_the_same_model_makes_the_same_graphs(trained: Checkpoint, folder: Path, tmp_path: Path) -> None:
    save_model(Model.of_checkpoint(trained), tmp_path / "again", card="", half=False, onnx=True)
    for file in ("text.onnx", "image.onnx", "config.json"):
        assert (folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_the_graphs_are_valid_and_tell_nothing_of_this_machine(folder: Path) -> None:
    for file in ("text.onnx", "image.onnx"):
        onnx.checker.check_model(folder / file, full_check=True)
        assert str(Path(onnx_files.__file__).parents[3]).encode() not in (folder / file).read_bytes()


WITHOUT_TORCH = """
import sys
import dpce_cli
assert "numpy" not in sys.modules
model = dpce_cli.load_model(sys.argv[1])
assert model.encode_text(["a mosaic of x1"]).shape == (1, 16)
from dpce_cli.app import main
query = ["--query", "a mosaic of x1"]
encode = ["encode", "--model", "hf:someone/dogs", *query, "--output", sys.argv[2]]
retrieve = ["retrieve", "--gallery", "photos", *query, "--json", "--workspace", sys.argv[3]]
for command in (encode, retrieve):
    sys.argv = ["dpce", *command]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
print([name for name in ("torch", "gensim", "nltk", "scipy", "h5py", "PIL") if name in sys.modules])
"""


def test_sentences_need_no_torch(folder: Path, tmp_path: Path, photos: Path) -> None:
    workspace = tmp_path / "workspace"
    succeed("index", photos, "--name", "photos", "--model", folder, "--workers", "0", workspace=workspace)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(folder), str(tmp_path / "vectors.npy"), str(workspace)]
    with serving(folder) as (address, served):
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "image.onnx" in served
    assert done.returncode == 0, done.stderr
    hits, imported = done.stdout.rsplit("]\n", 1)[0].rsplit("\n", 1)
    assert imported == "["
    assert len(json.loads(hits)) == 10
    np.testing.assert_allclose(
        np.load(tmp_path / "vectors.npy"), load_model(folder).encode_text(["a mosaic of x1"]), atol=1e-6
    )


def test_without_onnx_runtime_torch_embeds_sentences(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "find_spec", lambda name: None)
    assert load_model(folder).text_engine is None
    assert load_model(folder).encode_text(SENTENCES).shape == (4, 16)


def test_without_the_library_onnx_nothing_is_written(
    trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--onnx needs the library onnx; pip install 'dpce\[onnx\]'"):
        save_model(Model.of_checkpoint(trained), tmp_path / "model", card="", half=False, onnx=True)
    assert os.listdir(tmp_path) == []


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        load_model(folder).encode_text(["a"])
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_damaged_graph_is_refused(folder: Path, list_again: Callable[[], None]) -> None:
    path = folder / "text.onnx"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert f"{path}: is damaged, or not the file that config.json lists" in refusal(folder)
    path.write_bytes(content[: len(content) // 2])
    assert f"{path}: has {len(content) // 2} bytes" in refusal(folder)
    list_again()
    assert f"{path}: is not a text encoder of this model (" in refusal(folder)


def test_another_graph_is_refused(folder: Path, list_again: Callable[[], None]) -> None:
    (folder / "text.onnx").write_bytes((folder / "image.onnx").read_bytes())
    list_again()
    assert "text.onnx: is not a text encoder of this model (it takes [('photos', [3, 32, 32])])" in refusal(folder)


def test_a_graph_with_other_embeddings_is_refused(
    folder: Path, change_config: Callable[..., None], list_again: Callable[[], None]
) -> None:
    config = json.loads((folder / "config.json").read_text())["config"]
    change_config(config={**config, "model": {**config["model"], "embedding_dim": 17}})
    assert "is not a text encoder of this model (it gave float32 (1, 16)" in refusal(folder)


def test_a_graph_that_keeps_its_weights_in_another_file_is_refused(
    folder: Path, list_again: Callable[[], None]
) -> None:
    model = onnx.load(folder / "text.onnx")
    secret = folder.parent / "secret"
    secret.write_bytes(bytes(10**6))
    for weights in model.graph.initializer:
        if weights.raw_data and len(weights.raw_data) > 256:
            onnx.external_data_helper.set_external_data(weights, location="../secret", offset=0)
            weights.ClearField("raw_data")
    onnx.save(model, folder / "text.onnx")
    list_again()
    assert "text.onnx: is not a text encoder of this model (" in refusal(folder)
