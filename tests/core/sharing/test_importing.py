from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpce_cli.core.data.views import views_in_testing
from dpce_cli.core.errors import CheckpointError, VocabularyError, WorkspaceError
from dpce_cli.core.models.matconvnet.network import Network, read_network
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.encoding import encode_images, encode_text, pack_captions
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.sharing.exporting import export_model
from dpce_cli.core.sharing.importing import import_backbone, import_pair
from dpce_cli.core.sharing.model_folder import load_model
from dpce_cli.core.workspace.artefacts import load_best
from dpce_cli.core.workspace.checkpoint import Checkpoint, load_checkpoint
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.conftest import Trained
from tests.core.tiny import train
from tests.mat_files import (
    MEAN,
    Draw,
    Params,
    dag,
    head_params,
    resnet_params,
    save_v7,
    save_v73,
    text_params,
    text_stages,
)
from tests.oracles import matconvnet as oracle

COUNTS = (2, 2, 2, 1)
WORDS = ("A", "many", "mosaic", "with", *(f"{letter}{index}" for letter in "xyz" for index in range(5)), "Zebra")


@pytest.fixture(scope="module")
def params() -> Params:
    """A narrow pair, but for its ResNet-50."""
    draw = Draw(0)
    resnet_params(draw)
    head_params(draw, 2048, 2048, 24)
    text_params(draw, COUNTS, words=len(WORDS), dim=12, width=1 / 16, embedding_dim=24)
    draw.filters("fcsharef", 1, 1, 24, 40)
    draw.bias("fcshareb", 40)
    return draw.params


@pytest.fixture(scope="module")
def network(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Network:
    path = tmp_path_factory.mktemp("network") / "net-epoch-60.mat"
    return read_network(save_v73(path, {"net": dag(params), "stats": {"train": np.ones((1, 1))}}))


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dictionary") / "flickr30k_dictionary.mat"
    return save_v7(path, {"subset": {"names": list(WORDS), "features": np.zeros((12, len(WORDS)))}})


@pytest.fixture
def imported(workspace: Workspace, network: Network, dictionary: Path) -> Checkpoint:
    path, _ = import_pair(workspace, workspace.load_dataset(), network, dictionary, stage=2, fresh=False)
    return load_checkpoint(path, remedy="")


def normalised(vector: oracle.Array) -> oracle.Array:
    unit: oracle.Array = vector / np.linalg.norm(vector)
    return unit


def test_captions_have_the_embeddings_that_matconvnet_gives_them(imported: Checkpoint, params: Params) -> None:
    captions = torch.zeros(3, 32, dtype=torch.int32)
    for row, length in enumerate((1, 9, 32)):
        captions[row, :length] = torch.from_numpy(np.random.default_rng(row).integers(1, len(WORDS) + 1, length))
    embeddings = encode_text(Model.of_checkpoint(imported).text_encoder, captions, placements=None).numpy()
    for row, length in enumerate((1, 9, 32)):
        total = np.zeros(24)
        for start in range(33 - length):
            ids = [0] * start + captions[row, :length].tolist()
            total += oracle.text_embedding(params, ids + [0] * (32 - len(ids)), text_stages(COUNTS))
        assert np.abs(embeddings[row] - normalised(total)).max() < 1e-5


def test_photos_have_the_embeddings_that_matconvnet_gives_them(imported: Checkpoint, params: Params) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    views = views_in_testing(imported.config.image)(photo, 0)
    assert views.shape == (2, 3, 256, 341)
    embedding = encode_images(Model.of_checkpoint(imported).image_encoder, views[None])[0].numpy()
    total = np.zeros(24)
    for view in views.permute(0, 2, 3, 1).numpy():
        features = oracle.resnet50(params, view - np.array(MEAN))
        assert features.shape == (2, 5, 2048)
        total += oracle.image_head(params, features)
    assert np.abs(embedding - normalised(total)).max() < 1e-5


def test_the_classifier_comes_along(imported: Checkpoint, params: Params) -> None:
    assert imported.instances == 40
    assert imported.model["shared_classifier.weight"].numpy() == pytest.approx(params["fcsharef"][0, 0].T)
    assert imported.model["shared_classifier.bias"].numpy() == pytest.approx(params["fcshareb"][0])


def test_the_sizes_and_the_protocol_are_in_the_configuration(imported: Checkpoint) -> None:
    model, image = imported.config.model, imported.config.image
    assert (model.text_blocks, model.text_width, model.embedding_dim, model.word_dim) == (COUNTS, 1 / 16, 24, 12)
    assert (model.position_shift, model.relu, model.classifier_bias, model.classifier_scale) == (True, True, True, 0)
    assert (image.backbone, image.resize, image.crop, image.mirror) == ("resnet50-caffe", 256, 224, True)
    assert image.test_view == "full"
    assert imported.config.text.max_words == 32
    assert (imported.stage, imported.step, imported.vocabulary.words) == (2, 0, WORDS)


def test_captions_are_read_with_the_imported_words(workspace: Workspace, imported: Checkpoint) -> None:
    dataset = workspace.load_dataset()
    image = replace(dataset.images[0], captions=("A Zebra with a mosaic of x3", "none of them"), token_ids=((), ()))
    packed = pack_captions([image], dataset.vocabulary, imported.vocabulary, 6)
    known = [WORDS.index(word) + 1 for word in ("A", "Zebra", "with", "mosaic", "x3")]
    assert packed.token_ids.tolist() == [[*known, 0], [0] * 6]


def test_the_imported_model_is_the_one_that_is_used(
    stage1: Trained, network: Network, dictionary: Path, tiny_cnn: None
) -> None:
    dataset = stage1.workspace.load_dataset()
    path, _ = import_pair(stage1.workspace, dataset, network, dictionary, stage=2, fresh=False)
    best = load_best(stage1.workspace, dataset, None)
    assert best.fingerprint == load_checkpoint(path, remedy="").fingerprint
    assert best.word_vectors == "MatConvNet network net-epoch-60.mat"


def test_an_imported_model_is_exported_as_well(
    stage1: Trained, network: Network, dictionary: Path, tmp_path: Path, photos: Path, tiny_cnn: None
) -> None:
    workspace, folder = stage1.workspace, tmp_path / "model"
    import_pair(workspace, workspace.load_dataset(), network, dictionary, stage=2, fresh=False)
    checkpoint = export_model(workspace, folder, stage=None, half=False, licence="unknown", reporter=Reporter())
    before, after = Model.of_checkpoint(checkpoint), load_model(folder)
    assert np.array_equal(after.encode_text(["A Zebra with x3"]), before.encode_text(["A Zebra with x3"]))
    assert np.array_equal(after.encode_images([photos / "val0.png"]), before.encode_images([photos / "val0.png"]))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Imported (MatConvNet network net-epoch-60.mat), with 40 classes; used on data set `tiny`" in card


def test_a_model_that_is_there_is_replaced_only_on_demand(
    stage1: Trained, network: Network, dictionary: Path, tiny_cnn: None
) -> None:
    workspace, dataset = stage1.workspace, stage1.workspace.load_dataset()
    folder = workspace.stage_folder(1)
    before = (folder / "best.pt").read_bytes()
    with pytest.raises(CheckpointError, match=r"best\.pt: a Stage 1 model is there already; add --fresh"):
        import_pair(workspace, dataset, network, dictionary, stage=1, fresh=False)
    assert (folder / "best.pt").read_bytes() == before
    import_pair(workspace, dataset, network, dictionary, stage=1, fresh=True)
    assert load_best(workspace, dataset, 1).step == 0
    assert not (folder / "last.pt").exists()


def test_an_imported_stage_1_is_not_trained_further(
    workspace: Workspace, network: Network, dictionary: Path, tiny_cnn: None
) -> None:
    dataset = workspace.load_dataset()
    import_pair(workspace, dataset, network, dictionary, stage=1, fresh=False)
    with pytest.raises(CheckpointError, match=r"the Stage I model is imported .*net-epoch-60\.mat.*40 classes"):
        train(workspace, 2, dataset.config)


def test_a_dictionary_of_another_length_is_refused(workspace: Workspace, network: Network, tmp_path: Path) -> None:
    short = save_v7(tmp_path / "short.mat", {"subset": {"names": list(WORDS[:-1])}})
    with pytest.raises(VocabularyError, match=r"short\.mat: holds 19 words, but the network in .* knows 20"):
        import_pair(workspace, workspace.load_dataset(), network, short, stage=2, fresh=False)
    assert not workspace.stage_folder(2).exists()


def test_a_network_that_lacks_parameters_leaves_nothing_behind(
    workspace: Workspace, network: Network, dictionary: Path
) -> None:
    fewer = {name: value for name, value in network.params.items() if not name.startswith("fc3_2_2bn")}
    fewer["fc9f"] = np.ones((1, 1, 2, 2))
    expected = (
        r"4 parameters do not fit: fc3_2_2bn_m 8x2 is missing; fc3_2_2bn_w 8 is missing; fc3_2_2bn_b 8 is missing; "
        r"fc9f 1x1x2x2 is unknown"
    )
    with pytest.raises(CheckpointError, match=expected):
        import_pair(
            workspace, workspace.load_dataset(), replace(network, params=fewer), dictionary, stage=2, fresh=False
        )
    assert not workspace.stage_folder(2).exists()


@pytest.mark.parametrize("name", ["fcsharef", "fc5_2f", "fc2_1bf"])
def test_a_network_without_the_filters_that_decide_its_sizes_is_refused(
    workspace: Workspace, network: Network, dictionary: Path, name: str
) -> None:
    fewer = {key: value for key, value in network.params.items() if key != name}
    with pytest.raises(CheckpointError, match=f"has no filters '{name}'"):
        import_pair(
            workspace, workspace.load_dataset(), replace(network, params=fewer), dictionary, stage=2, fresh=False
        )


def test_a_network_without_its_text_pooling_is_refused(
    workspace: Workspace, network: Network, dictionary: Path
) -> None:
    with pytest.raises(CheckpointError, match="has no layer 'fc5_1'"):
        import_pair(
            workspace, workspace.load_dataset(), replace(network, max_words=None), dictionary, stage=2, fresh=False
        )


def test_a_weights_file_is_not_overwritten(network: Network, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"kept")
    with pytest.raises(WorkspaceError, match=r"weights\.pth: exists already; choose another --output"):
        import_backbone(network, tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").read_bytes() == b"kept"


def test_a_cnn_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = save_v7(tmp_path / "alexnet.mat", dag({"conv1f": np.ones((11, 11, 3, 96))}, pooled=None))
    with pytest.raises(CheckpointError, match=r"alexnet\.mat: \d+ parameters do not fit: .*vlfeat's ResNet-50"):
        import_backbone(read_network(path), tmp_path / "weights.pth")
    assert not (tmp_path / "weights.pth").exists()


def test_a_network_of_impossible_sizes_is_refused(workspace: Workspace, network: Network, dictionary: Path) -> None:
    fewer = {name: value for name, value in network.params.items() if name != "fc2_1_1f"}
    with pytest.raises(CheckpointError, match=r"net-epoch-60\.mat: has sizes that no text network of the authors' has"):
        import_pair(
            workspace, workspace.load_dataset(), replace(network, params=fewer), dictionary, stage=2, fresh=False
        )


@pytest.mark.slow
def test_the_published_sizes_fit(workspace: Workspace, tmp_path: Path) -> None:
    draw = Draw(0)
    resnet_params(draw)
    head_params(draw, 2048, 2048, 2048)
    text_params(draw, (3, 4, 6, 1), words=2000, dim=300, embedding_dim=2048)
    draw.filters("fcsharef", 1, 1, 2048, 1000)
    network = read_network(save_v7(tmp_path / "net-epoch-240.mat", {"net": dag(draw.params, pooled=14)}))
    names = [f"word{index}" for index in range(2000)]
    dictionary = save_v73(tmp_path / "d.mat", {"subset": {"names": names}})
    _, checkpoint = import_pair(workspace, workspace.load_dataset(), network, dictionary, stage=2, fresh=False)
    assert checkpoint.config.text.max_words == 56
    assert not checkpoint.config.model.classifier_bias
    ids = np.random.default_rng(0).integers(0, 2001, 56)
    with torch.inference_mode():
        ours = Model.of_checkpoint(checkpoint).text_encoder(torch.from_numpy(ids)[None])[0].numpy()
    theirs = oracle.text_embedding(draw.params, ids.tolist(), text_stages((3, 4, 6, 1)))
    assert np.abs(normalised(ours) - normalised(theirs)).max() < 1e-5
