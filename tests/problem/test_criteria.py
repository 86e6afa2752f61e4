"""Criteria equal those of torch: value, cut into batches, share of each sample, and curvature in the outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.errors import DataError
from theodolite.problem import Problem
from theodolite.problem.criteria import BinaryCrossEntropy, CrossEntropy, Generic, OutputLoss, SquaredError, recognise

WEIGHT = torch.tensor([0.2, 1.0, 2.5, 0.7], dtype=torch.float64)
N = 9


def logits(*extra: int) -> Tensor:
    return 2 * torch.randn(N, 4, *extra, dtype=torch.float64)


def classes(*extra: int, ignore: int | None = None) -> Tensor:
    targets = torch.randint(4, (N, *extra))
    if ignore is not None:
        targets.view(-1)[:: 3 if extra else 4] = ignore
        targets[2] = ignore  # a sample with nothing to predict
    return targets


def probabilities(*extra: int) -> Tensor:
    return torch.rand(N, 4, *extra, dtype=torch.float64).softmax(1)


@dataclass(frozen=True)
class Case:
    name: str
    criterion: Callable[..., Any]
    outputs: Callable[[], Tensor]
    targets: Callable[[], Tensor]
    kind: type[OutputLoss]


def cross_entropy_cases() -> list[Case]:
    cases = []
    for reduction in ("mean", "sum"):
        for weight in (None, WEIGHT):
            for smoothing in (0.0, 0.2):
                options: dict[str, Any] = {"reduction": reduction, "weight": weight, "label_smoothing": smoothing}
                name = f"ce-{reduction}{'-weight' if weight is not None else ''}{'-smooth' if smoothing else ''}"
                plain, ignoring = nn.CrossEntropyLoss(**options), nn.CrossEntropyLoss(**options, ignore_index=1)
                cases += [
                    Case(name, plain, logits, classes, CrossEntropy),
                    Case(f"{name}-ignore", plain, logits, lambda: classes(ignore=-100), CrossEntropy),
                    Case(f"{name}-ignore-class", ignoring, logits, lambda: classes(ignore=1), CrossEntropy),
                    Case(f"{name}-tokens", plain, lambda: logits(5), lambda: classes(5, ignore=-100), CrossEntropy),
                    Case(f"{name}-pixels", plain, lambda: logits(2, 3), lambda: classes(2, 3), CrossEntropy),
                    Case(f"{name}-soft", plain, logits, probabilities, CrossEntropy),
                    Case(f"{name}-soft-tokens", plain, lambda: logits(5), lambda: probabilities(5), CrossEntropy),
                ]
    return cases


def elementwise_cases() -> list[Case]:
    cases = []
    for reduction in ("mean", "sum"):
        for weight in (None, WEIGHT):
            for positive in (None, WEIGHT.flip(0)):
                name = f"bce-{reduction}-{weight is not None}-{positive is not None}"
                criterion = nn.BCEWithLogitsLoss(weight=weight, pos_weight=positive, reduction=reduction)
                cases.append(Case(name, criterion, logits, probabilities, BinaryCrossEntropy))
        squared = nn.MSELoss(reduction=reduction)
        cases.append(Case(f"mse-{reduction}", squared, logits, logits, SquaredError))
        cases.append(Case(f"mse-{reduction}-maps", squared, lambda: logits(3), lambda: logits(3), SquaredError))
    return cases


def huber_pair(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    weights = targets[:, 0].exp()
    return (weights * F.huber_loss(outputs, targets, reduction="none").sum(1)).sum(), weights.sum()


CASES = [
    *cross_entropy_cases(),
    *elementwise_cases(),
    Case("smooth-l1", nn.SmoothL1Loss(), logits, logits, Generic),
    Case("poisson-sum", nn.PoissonNLLLoss(reduction="sum"), logits, probabilities, Generic),
    Case("quartic", lambda out, y: (out - y).pow(4).sum(1).mean(), logits, logits, Generic),
    Case("linear", lambda out, y: (out * y).sum(1).mean(), logits, logits, Generic),
    Case("functional-ce", F.cross_entropy, logits, classes, CrossEntropy),
    Case("functional-mse", F.mse_loss, logits, logits, SquaredError),
    Case("functional-bce", F.binary_cross_entropy_with_logits, logits, probabilities, BinaryCrossEntropy),
]
all_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def mean(loss: OutputLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    total, weight = loss.evaluate(outputs, targets)
    return total / weight if loss.averages() else total


@all_cases
def test_the_value_is_that_of_torch(case: Case) -> None:
    outputs, targets = case.outputs(), case.targets()
    loss = recognise(case.criterion)
    assert type(loss) is case.kind
    torch.testing.assert_close(mean(loss, outputs, targets), case.criterion(outputs, targets), rtol=1e-12, atol=1e-14)


@all_cases
def test_totals_and_weights_of_unequal_pieces_add_up(case: Case) -> None:
    outputs, targets = case.outputs(), case.targets()
    loss = recognise(case.criterion)
    pieces = [loss.evaluate(o, t) for o, t in zip(outputs.split([5, 1, 3]), targets.split([5, 1, 3]), strict=True)]
    total, weight = sum(t for t, _ in pieces), sum(w for _, w in pieces)
    whole = loss.evaluate(outputs, targets)
    torch.testing.assert_close(total, whole[0], rtol=1e-12, atol=1e-14)
    assert weight == pytest.approx(whole[1], rel=1e-12)


@all_cases
def test_shares_are_the_totals_of_the_samples_alone(case: Case) -> None:
    outputs, targets = case.outputs(), case.targets()
    loss = recognise(case.criterion)
    shares = loss.shares(outputs, targets)
    alone = [loss.total(outputs[i : i + 1], targets[i : i + 1]) for i in range(N)]
    torch.testing.assert_close(shares, torch.stack(alone), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(shares.sum(), loss.total(outputs, targets), rtol=1e-12, atol=1e-14)


@all_cases
def test_the_curvature_is_the_hessian_of_the_total_in_the_outputs(case: Case) -> None:
    outputs, targets = case.outputs(), case.targets()
    loss = recognise(case.criterion)
    point = outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss.total(point, targets), point, create_graph=True)
    vector = torch.randn_like(outputs)
    expected = torch.zeros_like(outputs)
    if gradient.requires_grad:
        expected = torch.autograd.grad(gradient, point, vector, materialize_grads=True)[0]
    torch.testing.assert_close(loss.curvature(outputs, targets)(vector), expected, rtol=1e-10, atol=1e-12)


class Scale(nn.Module):
    """The identity, with a parameter to differentiate in."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


@all_cases
def test_a_problem_of_unequal_batches_has_the_loss_of_all_data_at_once(case: Case) -> None:
    inputs, targets = case.outputs(), case.targets()
    model = Scale()
    cuts = list(zip(inputs.split([5, 1, 3]), targets.split([5, 1, 3]), strict=True))
    problem = Problem(model, case.criterion, cuts)
    assert problem.loss() == pytest.approx(float(case.criterion(inputs, targets)), rel=1e-12)


def test_a_pair_weighs_by_its_own_denominator() -> None:
    outputs, targets = logits(), logits()
    loss = recognise(huber_pair)
    total, weight = huber_pair(outputs, targets)
    assert loss.averages()
    torch.testing.assert_close(mean(loss, outputs, targets), total / weight)
    parts = [loss.evaluate(o, t) for o, t in zip(outputs.split(4), targets.split(4), strict=True)]
    assert float(sum(t for t, _ in parts)) / sum(w for _, w in parts) == pytest.approx(float(total / weight))


def test_a_batch_of_ignored_targets_counts_for_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 4).double()
    inputs, targets = torch.randn(9, 3, dtype=torch.float64), classes()
    ignored = (torch.randn(5, 3, dtype=torch.float64), torch.full((5,), -100))
    valid = list(zip(inputs.split(5), targets.split(5), strict=True))
    for batches in ([ignored, *valid], [valid[0], ignored, valid[1]], [*valid, ignored]):
        for criterion in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1)):
            problem, reference = Problem(model, criterion, batches), Problem(model, criterion, [(inputs, targets)])
            assert problem.loss() == pytest.approx(reference.loss(), rel=1e-12)
            torch.testing.assert_close(problem.gradient(), reference.gradient(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("weighted", [False, True])
def test_classes_of_bytes_are_those_of_whole_numbers(weighted: bool) -> None:
    """As a byte −100 is 156: a class, and not to be ignored."""
    inputs, classes = torch.randn(6, 3, dtype=torch.float64), torch.tensor([156, 3, 156, 199, 0, 5])
    weight = torch.linspace(0.5, 2, 200, dtype=torch.float64) if weighted else None
    model, criterion = nn.Linear(3, 200).double(), nn.CrossEntropyLoss(weight=weight)
    whole, bytewise = (Problem(model, criterion, [(inputs, t)]) for t in (classes, classes.to(torch.uint8)))
    assert bytewise.loss() == pytest.approx(criterion(model(inputs), classes).item(), rel=1e-12)
    torch.testing.assert_close(bytewise.gradient(), whole.gradient())
    loss, outputs = recognise(criterion), model(inputs).detach()
    u = torch.randn_like(outputs)
    products = [loss.curvature(outputs, t)(u) for t in (classes, classes.to(torch.uint8))]
    torch.testing.assert_close(*products)


def test_data_with_nothing_to_predict_is_refused() -> None:
    problem = Problem(nn.Linear(3, 4), nn.CrossEntropyLoss(), [(torch.randn(5, 3), torch.full((5,), -100))])
    with pytest.raises(DataError, match=r"positive weight, found 0.*ignored"):
        problem.loss()


def test_structured_outputs_are_taken_by_their_logits() -> None:
    @dataclass
    class Output:
        logits: Tensor

    outputs, targets = logits(), classes()
    loss = recognise(nn.CrossEntropyLoss())
    assert torch.equal(loss.total(Output(outputs), targets), loss.total(outputs, targets))


@pytest.mark.parametrize("criterion_type", [nn.NLLLoss, nn.CrossEntropyLoss])
def test_weights_of_a_criterion_follow_the_type_that_is_computed_in(criterion_type: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LogSoftmax(1))
    inputs, targets = torch.randn(9, 3), classes()
    criterion = criterion_type(weight=WEIGHT.float(), reduction="sum")
    found = Problem(model, criterion, [(inputs, targets)], dtype=torch.float64).loss()
    with torch.no_grad():
        share = -model.double()(inputs.double()).gather(1, targets[:, None])[:, 0]
    assert found == pytest.approx(float((WEIGHT.float().double()[targets] * share).sum()), rel=1e-12)
    assert criterion.weight.dtype == torch.float32


def test_a_criterion_that_keeps_state_is_not_written_to() -> None:
    class Tracking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("average", torch.zeros(()))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            loss = F.mse_loss(outputs, targets)
            self.average.mul_(0.9).add_(0.1 * loss.detach())
            return loss

    criterion = Tracking()
    Problem(nn.Linear(2, 2), criterion, [(torch.randn(4, 2), torch.randn(4, 2))]).gradient()
    assert float(criterion.average) == 0.0
