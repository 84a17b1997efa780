"""Checkpoints that nobody's training wrote: each ends in one line that names the file and the command to run."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from dpce_cli.core.errors import CheckpointError
from dpce_cli.core.workspace.checkpoint import Checkpoint, fingerprint, load_checkpoint
from tests.core.conftest import Trained
from tests.core.tiny import checkpoint, train

Content = dict[str, Any]
WEIGHT = "shared_classifier.weight"


@pytest.fixture
def last(stage1: Trained) -> Path:
    """The last.pt of a finished stage with a vocabulary of some 30 words."""
    return stage1.workspace.stage_folder(1) / "last.pt"


def _read(path: Path) -> Content:
    content: Content = torch.load(path, weights_only=True)
    return content


def _sealed(content: Content) -> Content:
    """With the fingerprint of its weights, as a person who crafts a file would have it."""
    return {**content, "fingerprint": fingerprint(content["model"])}


def _weights(change: Callable[[torch.Tensor], Any]) -> Callable[[Content], Any]:
    def craft(content: Content) -> Any:
        changed = change(content["model"][WEIGHT])
        crafted = {**content, "model": {**content["model"], WEIGHT: changed}}
        return _sealed(crafted) if isinstance(changed, torch.Tensor) and not changed.is_sparse else crafted

    return craft


def _with(**fields: Any) -> Callable[[Content], Any]:
    return lambda content: {**content, **fields}


def _without(name: str) -> Callable[[Content], Any]:
    return lambda content: {key: value for key, value in content.items() if key != name}


def _config(**values: Any) -> Callable[[Content], Any]:
    return lambda content: {**content, "config": {**content["config"], **values}}


def _model(**values: Any) -> Callable[[Content], Any]:
    return lambda content: _config(model={**content["config"]["model"], **values})(content)


CRAFTED: dict[str, Callable[[Content], Any]] = {
    "a list": lambda content: [content],
    "a tensor": lambda content: content["model"][WEIGHT],
    "nothing": lambda content: None,
    "no format": _without("format"),
    "format of several numbers": _with(format=torch.tensor([2, 2])),
    "another format": _with(format=3),
    "a format of many lines": _with(format="3\n" * 500),
    "a field too few": _without("instances"),
    "no weights": _without("model"),
    "a foreign scheduler": _with(scheduler={"last_epoch": 3}),
    "a field without a name": lambda content: {**content, 7: 1},
    "weights as a list": lambda content: {**content, "model": list(content["model"].values())},
    "a weight as a list": _weights(lambda weight: weight.tolist()),
    "a weight of another shape": _weights(lambda weight: weight.T.contiguous()),
    "a weight of another type": _weights(lambda weight: weight.double()),
    "a weight that is sparse": _weights(lambda weight: weight.to_sparse()),
    "a weight that is not a number": _weights(lambda weight: weight * float("nan")),
    "a weight that is infinite": _weights(lambda weight: weight + float("inf")),
    "a weight of no memory": _weights(lambda weight: torch.empty(1).expand(weight.shape) * float("nan")),
    "a weight too few": lambda content: _sealed(
        {**content, "model": {key: value for key, value in content["model"].items() if key != WEIGHT}}
    ),
    "a foreign weight": lambda content: _sealed({**content, "model": {**content["model"], "extra": torch.zeros(2)}}),
    "weights under numbers": lambda content: {**content, "model": dict(enumerate(content["model"].values()))},
    "weights of another file": _with(fingerprint="0" * 64),
    "a fingerprint that is a number": _with(fingerprint=5),
    "a step below 0": _with(step=-1),
    "a step beyond the last": _with(step=10**6),
    "a step without end": _with(step=10**30),
    "a step that is a tensor": _with(step=torch.tensor(3)),
    "a step that is true": _with(step=True),
    "a step of half": _with(step=1.5),
    "epochs beyond the last": _with(epochs=10**6),
    "photos that are a list": _with(usable_photos=[1]),
    "stage 3": _with(stage=3),
    "no instances": _with(instances=0),
    "many instances": _with(instances=2**40),
    "endless word vectors": _with(word_dim=2**62),
    "a best epoch that is text": _with(best={"rsum": "high", "epoch": 1}),
    "a best epoch that is not a number": _with(best={"rsum": float("nan"), "epoch": 1}),
    "a best epoch of other names": _with(best={"recall": 3.0}),
    "sums that are no numbers": _with(unlogged={"loss": "1"}),
    "sums of many numbers": _with(unlogged={"loss": torch.zeros(3)}),
    "sums that are infinite": _with(unlogged={"loss": torch.tensor(float("inf"))}),
    "an optimizer that is a list": _with(optimizer=[1]),
    "an optimizer of other names": _with(optimizer={"momentum": {}}),
    "an optimizer of numbers": _with(optimizer={"state": {0: 5}, "param_groups": []}),
    "a vocabulary that is a list": _with(vocabulary=["a", "b"]),
    "a vocabulary without words": _with(vocabulary={"lowercase": True, "words": []}),
    "a vocabulary of numbers": _with(vocabulary={"lowercase": True, "words": [1, 2]}),
    "a word twice": _with(vocabulary={"lowercase": True, "words": ["a", "a"]}),
    "another vocabulary": _with(vocabulary={"lowercase": True, "words": ["a", "b"]}),
    "a configuration that is text": _with(config="scenes"),
    "a configuration of another version": _config(other=1),
    "a seed without end": _config(seed=10**400),
    "a deep configuration": _config(model=None),
    "endless embeddings": _model(embedding_dim=10**15),
    "endless text blocks": _model(text_blocks=[10**9]),
    "a text CNN of negative width": _model(text_width=-1.0),
    "a text CNN of infinite width": _model(text_width=float("inf")),
}


@pytest.mark.parametrize("kind", CRAFTED)
def test_a_crafted_checkpoint_ends_in_one_line(last: Path, kind: str) -> None:
    torch.save(CRAFTED[kind](_read(last)), last)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(last, remedy="dpce train-stage1")
    line = str(caught.value)
    assert line.startswith(f"{last}: ")
    assert "run 'dpce train-stage1" in line
    assert "\n" not in line
    assert len(line) < 500


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_checkpoint_that_is_cut_off_ends_in_one_line(last: Path, share: float) -> None:
    last.write_bytes(last.read_bytes()[: int(share * last.stat().st_size)])
    with pytest.raises(
        CheckpointError, match=r"last\.pt: cannot be read as a checkpoint \(.*\); run 'dpce train-stage1'"
    ):
        load_checkpoint(last, remedy="dpce train-stage1")


def test_a_flipped_bit_of_a_checkpoint_is_found_or_changes_nothing(last: Path, stage1: Trained) -> None:
    chance, whole = random.Random(0), last.read_bytes()
    before = checkpoint(stage1.workspace, 1, "last")
    found = 0
    for _ in range(60):
        position, bit = chance.randrange(len(whole)), chance.randrange(8)
        last.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
        (last.parent / ".last.pt.checked").unlink(missing_ok=True)
        with suppress(CheckpointError):
            read = load_checkpoint(last, remedy="dpce train-stage1")
            assert _plain(read) == _plain(before)
            continue
        found += 1
    assert found > 30


def _plain(read: Checkpoint) -> tuple[object, ...]:
    moments = {f"{i} {name}": value for i, state in read.optimizer["state"].items() for name, value in state.items()}
    others = {key: value for key, value in vars(read).items() if key not in ("model", "optimizer", "unlogged")}
    return others, fingerprint(read.model), fingerprint(moments), fingerprint(read.unlogged)


def _state(change: Callable[[Content], object]) -> Callable[[Content], None]:
    """Changes what the optimizer keeps for parameter 0."""
    return lambda content: (change(content["optimizer"]["state"][0]), None)[1]


CRAFTED_STATES: dict[str, Callable[[Content], object]] = {
    "none": lambda content: content.update(optimizer={}),
    "of a parameter too many": lambda content: content["optimizer"]["state"].update({999: {}}),
    "of parameters with names": lambda content: content["optimizer"].update(state={"weight": {}}),
    "empty": _state(lambda state: state.clear()),
    "of another optimizer": _state(lambda state: state.update(momentum_buffer=state.pop("exp_avg"))),
    "of another shape": _state(lambda state: state.update(exp_avg=torch.zeros(3))),
    "of another type": _state(lambda state: state.update(exp_avg=state["exp_avg"].double())),
    "that is a number": _state(lambda state: state.update(exp_avg=0.5)),
    "that is not a number": _state(lambda state: state["exp_avg"].fill_(float("nan"))),
    "of squares below 0": _state(lambda state: state["exp_avg_sq"].fill_(-1.0)),
    "of steps that are a list": _state(lambda state: state.update(step=[9.0])),
    "with a foreign loss scale": lambda content: content.update(scaler={"scale": 2.0}),
    "with an infinite loss scale": lambda content: content.update(
        scaler={**torch.amp.GradScaler("cpu").state_dict(), "scale": float("inf")}
    ),
    "with a loss scale that is text": lambda content: content.update(
        scaler={**torch.amp.GradScaler("cpu").state_dict(), "scale": "1"}
    ),
}


@pytest.mark.parametrize("kind", CRAFTED_STATES)
def test_a_crafted_optimizer_state_ends_in_one_line(last: Path, stage1: Trained, kind: str) -> None:
    content = _read(last)
    CRAFTED_STATES[kind](content)
    torch.save(content, last)
    with pytest.raises(CheckpointError, match=r"last\.pt: .*run 'dpce train-stage1 --fresh'") as caught:
        train(stage1.workspace, 1, stage1.config)
    assert "\n" not in str(caught.value)


def test_settings_in_a_crafted_optimizer_state_do_not_count(last: Path, stage1: Trained) -> None:
    content = _read(last)
    content["optimizer"]["param_groups"] = [{"lr": "much", "params": "all"}]
    torch.save(content, last)
    train(stage1.workspace, 1, stage1.config)
