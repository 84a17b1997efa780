from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dpce_cli.core.errors import CheckpointError
from dpce_cli.core.models.matconvnet.names import text_blocks, with_dense_head
from dpce_cli.core.models.matconvnet.network import Array, Network
from dpce_cli.core.models.matconvnet.weights import EPSILON, Conversion
from tests.mat_files import Draw, text_params, text_stages
from tests.oracles import matconvnet as oracle


def conversion(module: nn.Module, params: dict[str, Array]) -> Conversion:
    network = Network(path=Path("net.mat"), params=params, mean=np.zeros(3), max_words=None)
    return Conversion(network, {key: value.shape for key, value in module.state_dict().items()})


def norm_params(deviation: list[float]) -> dict[str, Array]:
    draw = Draw(0)
    draw.norm("w", "b", "m", len(deviation))
    draw.params["m"][:, 1] = deviation
    return dict(draw.params)


def test_epsilon_is_that_of_the_networks_batch_norms() -> None:
    assert nn.BatchNorm1d(1).eps == nn.BatchNorm2d(1).eps == EPSILON


def test_a_batch_norm_divides_by_the_deviation_that_is_saved() -> None:
    params = norm_params([2.0, 0.05, EPSILON**0.5, 1e-3, 1e-6])
    batch_norm = nn.BatchNorm1d(5)
    taking = conversion(nn.ModuleDict({"bn": batch_norm}), params)
    taking.batch_norm("bn", "w", "b", "m")
    state = taking.finish()
    batch_norm.load_state_dict({key.removeprefix("bn."): value for key, value in state.items()})
    x = np.random.default_rng(0).normal(size=(7, 5)) * params["m"][:, 1]
    with torch.no_grad():
        ours = batch_norm.eval()(torch.from_numpy(x).float())
    theirs = oracle.bnorm(x[None], params, "w", "b", "m")[0]
    assert ours.numpy() == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert bool((state["bn.running_var"] >= 0).all())
    assert state["bn.weight"][:3].numpy() == pytest.approx(params["w"][:3, 0], rel=1e-5)


def test_a_bias_before_a_batch_norm_goes_into_its_mean() -> None:
    params = norm_params([1.0, 2.0])
    taking = conversion(nn.ModuleDict({"bn": nn.BatchNorm1d(2)}), params)
    taking.batch_norm("bn", "w", "b", "m", bias_before=np.array([0.5, -3.0]))
    assert taking.finish()["bn.running_mean"].numpy() == pytest.approx(params["m"][:, 0] - [0.5, -3])


@pytest.mark.parametrize("deviation", [0.0, -1.0])
def test_a_deviation_that_is_not_above_0_is_refused(deviation: float) -> None:
    taking = conversion(nn.ModuleDict({"bn": nn.BatchNorm1d(2)}), norm_params([1.0, deviation]))
    taking.batch_norm("bn", "w", "b", "m")
    with pytest.raises(CheckpointError, match="m has a standard deviation that is not above 0"):
        taking.finish()


def test_parameters_that_do_not_fit_are_named_with_their_shapes() -> None:
    params: dict[str, Array] = {
        "wrongf": np.ones((1, 1, 4, 4)),
        "nanf": np.full((1, 1, 3, 2), np.nan),
        "textf": np.array([["x"]]),
        "surplus_bn_m": np.ones((7, 2)),
    }
    layers = nn.ModuleDict({name: nn.Linear(3, 2, bias=False) for name in ("wrong", "nan", "text", "absent")})
    taking = conversion(layers, params)
    for name in layers:
        taking.filters(f"{name}.weight", f"{name}f")
    with pytest.raises(CheckpointError) as caught:
        taking.finish()
    assert str(caught.value) == (
        "net.mat: 5 parameters do not fit: wrongf is 1x1x4x4, not 1x1x3x2; nanf has a value that is not finite; "
        "textf is not an array of numbers; absentf 1x1x3x2 is missing; surplus_bn_m 7x2 is unknown. "
        "Only the networks of the paper's authors and vlfeat's ResNet-50, VGG-16 and VGG-19 can be imported"
    )


def test_a_long_list_of_parameters_that_do_not_fit_is_cut() -> None:
    taking = conversion(nn.ModuleDict(), {f"p{i}": np.ones(1) for i in range(30)})
    with pytest.raises(CheckpointError, match=r"30 parameters do not fit: .*p11 1 is unknown; and 18 more\."):
        taking.finish()


@pytest.mark.parametrize("counts", [(3, 4, 6, 1), (3, 8, 36, 1), (2, 2, 2, 1), (1, 1, 1), (2,)])
def test_blocks_are_counted_by_their_names(counts: tuple[int, ...]) -> None:
    draw = Draw(0)
    text_params(draw, counts, words=2, dim=2, width=1 / 64, embedding_dim=2)
    assert text_blocks(draw.params) == counts


def test_the_published_text_network_has_the_names_of_the_released_code() -> None:
    assert text_stages((3, 4, 6, 1)) == [
        ["fc2_1", "fc2_2", "fc2_3"],
        ["fc2_4a", "fc3_2", "fc3_3", "fc3_4"],
        ["fc3_5a", "fc4_2", "fc4_3", "fc4_4", "fc4_5", "fc4_6"],
        ["fc4_7a"],
    ]


def test_filters_over_half_of_the_features_become_filters_over_all() -> None:
    draw = Draw(1)
    draw.layer("fc1", 1, 1, 8, 8)
    draw.layer("fc1_1", 1, 1, 8, 5)
    dense = {name: np.asarray(value) for name, value in with_dense_head(draw.params, 16).items()}
    assert dense["fc1f"].shape == (16, 16)
    assert dense["fc1_1f"].shape == (16, 5)
    features = np.random.default_rng(0).normal(size=(2, 3, 16))
    shaped = {**dense, "fc1f": dense["fc1f"][None, None], "fc1_1f": dense["fc1_1f"][None, None]}
    assert oracle.image_head(shaped, features) == pytest.approx(oracle.image_head(draw.params, features), abs=1e-6)


def test_an_ordinary_head_is_left_alone() -> None:
    draw = Draw(1)
    draw.layer("fc1", 1, 1, 8, 8)
    draw.layer("fc1_1", 1, 1, 8, 5)
    assert with_dense_head(draw.params, 8) == draw.params
    assert with_dense_head({}, 8) == {}
