from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpce_cli.core.errors import DataError, VocabularyError
from dpce_cli.core.models.matconvnet.network import read_dictionary, read_network
from tests.mat_files import MEAN, dag, save_v7, save_v73, simple

Save = Callable[[Path, dict[str, Any]], Path]
BOTH = pytest.mark.parametrize("save", [save_v7, save_v73])
PARAMS = {"fc2f": np.ones((1, 1, 5, 4), np.float32), "fc2b": np.zeros((1, 4), np.float32)}


@BOTH
@pytest.mark.parametrize("nested", [True, False])
def test_a_dag_is_read_from_its_own_variable_or_from_several(save: Save, nested: bool, tmp_path: Path) -> None:
    net = dag(PARAMS, pooled=14)
    network = read_network(save(tmp_path / "net.mat", {"net": net} if nested else net))
    assert network.params.keys() == PARAMS.keys()
    assert network.params["fc2f"].shape == (1, 1, 5, 4)
    assert network.mean.tolist() == list(MEAN)
    assert network.max_words == 56
    assert network.is_trained_pair


@BOTH
def test_a_simple_networks_parameters_are_named_after_its_layers(save: Save, tmp_path: Path) -> None:
    params = {
        "conv1_1f": np.ones((3, 3, 3, 8), np.float32),
        "conv1_1b": np.zeros((1, 8), np.float32),
        "fc6f": np.full((7, 7, 8, 2), 2, np.float32),
        "fc6b": np.ones((1, 2), np.float32),
    }
    network = read_network(save(tmp_path / "net.mat", simple(params)))
    assert list(network.params) == list(params)
    assert all(np.array_equal(network.params[name], value) for name, value in params.items())
    assert network.mean.tolist() == list(MEAN)
    assert network.max_words is None
    assert not network.is_trained_pair


@BOTH
def test_a_network_of_one_parameter_and_one_layer_is_read(save: Save, tmp_path: Path) -> None:
    net = dag({"fc2f": np.ones((1, 1, 5, 4))}, pooled=None)
    assert list(read_network(save(tmp_path / "net.mat", {"net": net})).params) == ["fc2f"]


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (np.array([[1.0], [2.0], [3.0]]), [1, 2, 3]),
        (np.array([[1.0, 2.0, 3.0]]), [1, 2, 3]),
        (np.array([1.0, 2.0, 3.0]).reshape(1, 1, 3), [1, 2, 3]),
        (np.stack([np.array([[0.0, 2.0]]), np.full((1, 2), 5.0), np.full((1, 2), 7.0)], axis=2), [1, 5, 7]),
    ],
)
def test_the_mean_image_has_many_forms(mean: Any, expected: list[float], tmp_path: Path) -> None:
    assert read_network(save_v7(tmp_path / "net.mat", {"net": dag(PARAMS, mean=mean)})).mean.tolist() == expected


@pytest.mark.parametrize("mean", [np.ones((1, 2)), np.ones((4, 4)), np.full((3, 1), np.nan), "grey"])
def test_another_mean_image_is_refused(mean: Any, tmp_path: Path) -> None:
    save_v7(tmp_path / "net.mat", {"net": dag(PARAMS, mean=mean)})
    with pytest.raises(DataError, match=r"net\.mat: the network is incomplete or has another form"):
        read_network(tmp_path / "net.mat")


@BOTH
def test_a_file_without_a_network_is_refused(save: Save, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"net\.mat: contains no MatConvNet network \(it has neither 'net' nor 'layers'\)"
    ):
        read_network(save(tmp_path / "net.mat", {"weights": np.ones((2, 2))}))
    with pytest.raises(DataError, match=r"contains no MatConvNet network \(its variables are net\)"):
        read_network(save(tmp_path / "net.mat", {"net": np.ones((2, 2))}))


@pytest.mark.parametrize("part", ["params", "meta"])
def test_a_network_of_another_form_is_refused(part: str, tmp_path: Path) -> None:
    net = {**dag(PARAMS), part: np.ones((2, 2))}
    with pytest.raises(DataError, match=r"net\.mat: the network is incomplete or has another form"):
        read_network(save_v7(tmp_path / "net.mat", {"net": net}))


@BOTH
def test_the_words_keep_their_order_and_case(save: Save, tmp_path: Path) -> None:
    words = ["A", "a", "Zebra", "naïve", "the"]
    path = save(tmp_path / "d.mat", {"subset": {"is_appear": np.ones((1, 9)), "names": words}})
    assert read_dictionary(path) == tuple(words)


@pytest.mark.parametrize(
    "subset",
    [
        {"subset": {"names": np.ones((1, 3))}},
        {"subset": {"names": ["a", np.ones((1, 1))]}},
        {"subset": {"names": ["a", ""]}},
        {"subset": np.ones((1, 1))},
        {"other": np.ones((1, 1))},
    ],
)
def test_a_dictionary_without_words_is_refused(subset: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"d\.mat: contains no list of words 'subset\.names'"):
        read_dictionary(save_v7(tmp_path / "d.mat", subset))


def test_a_word_that_is_listed_twice_is_named(tmp_path: Path) -> None:
    save_v7(tmp_path / "d.mat", {"subset": {"names": ["a", "dog", "dog"]}})
    with pytest.raises(VocabularyError, match="the word 'dog' is listed 2 times"):
        read_dictionary(tmp_path / "d.mat")
