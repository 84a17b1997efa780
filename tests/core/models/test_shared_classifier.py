from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dpce_cli.core.losses import instance_loss
from dpce_cli.core.models import partial_fc
from dpce_cli.core.models.shared_classifier import SharedClassifier
from dpce_cli.core.processes.collectives import gather_objects
from dpce_cli.core.seeding import generator_for
from tests.core.gloo import in_processes
from tests.oracles import losses as oracle

CLASSES, DIM = 23, 12


def embeddings(count: int = 4) -> Tensor:
    return torch.randn(count, DIM, generator=generator_for("embeddings"))


def test_the_plain_classifier_is_an_inner_product_with_a_bias() -> None:
    classifier = SharedClassifier(instances=5, embedding_dim=12, bias=True, scale=0).requires_grad_(False)
    classifier.reset_parameters(generator_for("classifier"))
    assert classifier.bias is not None
    assert not classifier.bias.any()
    classifier.bias.copy_(torch.arange(5))
    logits = classifier(embeddings())
    for row, embedding in zip(logits, embeddings(), strict=True):
        for instance, logit in enumerate(row):
            expected = float((embedding * classifier.weight[instance]).sum()) + instance
            assert float(logit) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("scale", [0.0, 16.0])
def test_a_classifier_without_bias_has_none(scale: float) -> None:
    classifier = SharedClassifier(instances=5, embedding_dim=12, bias=False, scale=scale)
    assert [name for name, _ in classifier.named_parameters()] == ["weight"]


def test_the_scaled_classifier_multiplies_the_cosine() -> None:
    classifier = SharedClassifier(instances=5, embedding_dim=12, bias=False, scale=16).requires_grad_(False)
    classifier.reset_parameters(generator_for("classifier"))
    expected = 16 * F.cosine_similarity(embeddings()[:, None], classifier.weight[None], dim=2)
    torch.testing.assert_close(classifier(embeddings()), expected)
    torch.testing.assert_close(classifier(100 * embeddings()), expected)
    assert classifier(torch.zeros(1, 12)).isfinite().all()


def test_the_classifier_is_drawn_with_a_tenth_of_the_usual_deviation() -> None:
    classifier = SharedClassifier(instances=500, embedding_dim=400, bias=True, scale=0).requires_grad_(False)
    classifier.reset_parameters(generator_for("classifier"))
    assert float(classifier.weight.std()) == pytest.approx(0.1 * math.sqrt(2 / 500), rel=0.02)


def test_a_classifier_of_cosines_begins_with_rows_of_length_1() -> None:
    classifier = SharedClassifier(instances=300, embedding_dim=400, bias=False, scale=16).requires_grad_(False)
    classifier.reset_parameters(generator_for("classifier"))
    assert float(classifier.weight.norm(dim=1).mean()) == pytest.approx(1, rel=0.02)


@pytest.fixture(autouse=True)
def _few_logits_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the parts so small that a few classes are in several parts."""
    monkeypatch.setattr(partial_fc, "LOGITS_AT_A_TIME", 30)


def build(*, bias: bool, scale: float, sample_rate: float = 1.0) -> SharedClassifier:
    classifier = SharedClassifier(
        instances=CLASSES, embedding_dim=DIM, bias=bias, scale=scale, sample_rate=sample_rate
    ).double()
    classifier.reset_parameters(generator_for("classifier"))
    if classifier.bias is not None:
        with torch.no_grad():
            classifier.bias.normal_(generator=generator_for("bias"))
    return classifier


def batch(count: int = 7) -> tuple[Tensor, Tensor]:
    given = torch.randn(count, DIM, generator=generator_for("batch"), dtype=torch.float64).requires_grad_()
    return given, torch.randint(0, CLASSES, (count,), generator=generator_for("own"))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("bias", "scale"), [(False, 0.0), (True, 0.0), (False, 16.0), (True, 16.0)])
def test_losses_and_gradients_are_those_of_all_logits_at_once(bias: bool, scale: float, label_smoothing: float) -> None:
    classifier, (given, own) = build(bias=bias, scale=scale), batch()
    leaves = [given, *classifier.parameters()]
    weights = torch.rand(len(own), generator=generator_for("weights"), dtype=torch.float64)
    logits = classifier(given)
    dense = F.cross_entropy(logits, own, label_smoothing=label_smoothing, reduction="none")
    losses, right = classifier.instance_losses(given, own, label_smoothing)

    torch.testing.assert_close(losses, dense, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(losses.mean(), instance_loss(logits, own, label_smoothing), atol=1e-12, rtol=1e-12)
    assert losses.mean().item() == pytest.approx(
        oracle.instance_loss(logits.tolist(), own.tolist(), label_smoothing), rel=1e-12
    )
    assert float(right.double().mean()) == pytest.approx(oracle.accuracy(logits.tolist(), own.tolist()))
    expected = torch.autograd.grad((weights * dense).sum(), leaves)
    for got, slow in zip(torch.autograd.grad((weights * losses).sum(), leaves), expected, strict=True):
        torch.testing.assert_close(got, slow, atol=1e-12, rtol=1e-12)


def test_gradients_are_right() -> None:
    classifier, (given, own) = build(bias=True, scale=3.0), batch(3)
    assert torch.autograd.gradcheck(lambda x: classifier.instance_losses(x, own, 0.1)[0], (given,))


def test_the_loss_before_training_is_the_logarithm_of_the_number_of_instances() -> None:
    classifier = build(bias=False, scale=0.0)
    torch.nn.init.zeros_(classifier.weight)
    losses, _ = classifier.instance_losses(*batch(), 0.0)
    torch.testing.assert_close(losses, torch.full_like(losses, math.log(CLASSES)))


def test_the_loss_stays_finite_for_large_logits() -> None:
    classifier, own = SharedClassifier(instances=2, embedding_dim=1, bias=False, scale=0.0), torch.tensor([0, 1])
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor([[1e4], [-1e4]]))
    losses, right = classifier.instance_losses(torch.ones(2, 1), own, 0.0)
    assert losses.tolist() == [0, 2e4]
    assert right.tolist() == [True, False]


def test_in_bfloat16_gradients_are_made_as_the_losses_were() -> None:
    classifier, (given, own) = build(bias=True, scale=16.0).float(), batch()
    given = given.detach().float().requires_grad_()
    leaves = [given, *classifier.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        dense = F.cross_entropy(classifier(given).float(), own)
        loss = classifier.instance_losses(given, own, 0.0)[0].mean()
    torch.testing.assert_close(loss, dense)
    expected = torch.autograd.grad(dense, leaves)
    for got, slow in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
        torch.testing.assert_close(got, slow, atol=1e-2, rtol=2e-2)


@pytest.mark.parametrize("seed", range(5))
def test_a_sample_holds_the_classes_of_the_batch_and_as_many_others_as_asked_for(seed: int) -> None:
    torch.manual_seed(seed)
    classifier, (given, own) = build(bias=True, scale=0.0, sample_rate=0.5), batch()
    losses, _ = classifier.instance_losses(given, own, 0.0)
    rows = classifier._rows
    assert rows is not None
    assert len(rows) == 12
    assert set(own.tolist()) <= set(rows.tolist())
    dense = F.cross_entropy(classifier(given)[:, rows], torch.searchsorted(rows, own), reduction="none")
    torch.testing.assert_close(losses, dense, atol=1e-12, rtol=1e-12)


def test_samples_differ_from_step_to_step_and_are_the_same_in_the_same_step() -> None:
    classifier = build(bias=False, scale=0.0, sample_rate=0.5)

    def sample(seed: int) -> list[int]:
        torch.manual_seed(seed)
        classifier.instance_losses(*batch(), 0.0)
        assert classifier._rows is not None
        rows: list[int] = classifier._rows.tolist()
        return rows

    assert sample(0) == sample(0) != sample(1)


def optimizers(classifier: SharedClassifier, name: str) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(classifier.parameters(), lr=0.1, weight_decay=0.1, fused=True)
    return torch.optim.SGD(classifier.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, fused=True)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_sample_of_all_classes_trains_as_no_sample_does(optimizer: str) -> None:
    whole, sampled = build(bias=True, scale=16.0), build(bias=True, scale=16.0, sample_rate=0.999)
    for classifier in (whole, sampled):
        update = optimizers(classifier, optimizer)
        if classifier is sampled:
            classifier.attach_to(update)
        for _ in range(3):
            update.zero_grad()
            classifier.instance_losses(*batch(), 0.1)[0].mean().backward()
            update.step()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(sampled.state_dict()[name], value, atol=1e-12, rtol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_changes_the_sample_alone(optimizer: str) -> None:
    classifier = build(bias=True, scale=16.0, sample_rate=0.4)
    update = optimizers(classifier, optimizer)
    classifier.attach_to(update)
    for step in range(4):
        torch.manual_seed(step)
        before = {name: value.clone() for name, value in classifier.state_dict().items()}
        update.zero_grad()
        classifier.instance_losses(*batch(), 0.0)[0].mean().backward()
        rows = classifier._rows
        assert rows is not None
        assert classifier.weight.grad is not None
        assert len(classifier.weight.grad) == len(rows) == 10
        update.step()
        for name, value in classifier.state_dict().items():
            changed = (value != before[name]).reshape(CLASSES, -1).any(1).nonzero()[:, 0]
            assert changed.tolist() == rows.tolist()
        for state in update.state.values():
            assert {len(value) for value in state.values() if value.dim()} == {CLASSES}


def test_a_backward_pass_without_a_step_leaves_the_weights_whole() -> None:
    classifier = build(bias=False, scale=0.0, sample_rate=0.4)
    classifier.attach_to(optimizers(classifier, "sgd"))
    before = classifier.weight.clone()
    for _ in range(2):
        classifier.instance_losses(*batch(), 0.0)[0].mean().backward()
    classifier.instance_losses(*batch(), 0.0)
    assert classifier.weight.equal(before)


def _compare_with_one_process(label_smoothing: float) -> None:
    partial_fc.LOGITS_AT_A_TIME = 30
    whole, own = build(bias=True, scale=16.0), build(bias=True, scale=16.0)
    own.keep_share()
    assert len(own.weight) == len(own.classes) in (7, 8)
    drawn = own.weight.clone()
    own.reset_parameters(generator_for("classifier"))
    assert own.weight.equal(drawn)
    (given, ids), (seen, _) = batch(), batch()
    dense = F.cross_entropy(whole(given), ids, label_smoothing=label_smoothing, reduction="none")
    losses, right = own.instance_losses(seen, ids, label_smoothing)
    torch.testing.assert_close(losses, dense, atol=1e-12, rtol=1e-12)
    assert right.equal(whole(given).argmax(1) == ids)

    dense.mean().backward()
    losses.mean().backward()
    for got, expected in zip([seen, *own.parameters()], [given, *whole.parameters()], strict=True):
        assert got.grad is not None
        assert expected.grad is not None
        gradient = expected.grad if got is seen else expected.grad[own.classes.start : own.classes.stop]
        torch.testing.assert_close(got.grad, gradient, atol=1e-12, rtol=1e-12)


def _sample_in_parts() -> None:
    torch.manual_seed(0)
    classifier = build(bias=False, scale=16.0, sample_rate=0.2)
    weight = classifier.weight.detach().clone()
    classifier.keep_share()
    given, ids = batch(2)
    losses, _ = classifier.instance_losses(given, ids, 0.0)
    assert classifier._rows is not None
    parts = gather_objects(classifier._rows + classifier.classes.start)
    chosen = torch.cat(parts)
    assert len(chosen) == 6
    logits = 16 * F.linear(F.normalize(given, dim=1), F.normalize(weight[chosen], dim=1))
    dense = F.cross_entropy(logits, torch.searchsorted(chosen, ids), reduction="none")
    torch.testing.assert_close(losses, dense, atol=1e-12, rtol=1e-12)


def _in_three_processes() -> None:
    _compare_with_one_process(0.0)
    _compare_with_one_process(0.1)
    _sample_in_parts()


@pytest.mark.slow
def test_classes_that_processes_share_out_give_the_losses_and_gradients_of_all() -> None:
    in_processes(3, _in_three_processes)
