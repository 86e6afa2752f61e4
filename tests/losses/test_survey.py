"""Every loss can be surveyed: problems made with it have the Hessian and the GGN of a dense oracle, exactly weighed."""

from __future__ import annotations

import functools
import inspect
import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian

from losses.loss_cases import SAMPLES, Case, cases
from theodolite import losses
from theodolite.errors import OperatorError, ProblemError
from theodolite.losses.registry import module_of
from theodolite.operators import GGN, Fisher, GradientCovariance, Hessian
from theodolite.problem import Problem

WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64)
SIZES = (4, 4, 2)
ALL = cases()
REST = [case for case in ALL if case.entry.kind != "classes"]  # those are surveyed over batches below
CLASSES = cases("classes")
# losses of one output and what it is compared with, whose samples may be cut into batches
APART = [case for case in cases("labels", "values") if not case.entry.coupled]


def each(found: list[Case]) -> pytest.MarkDecorator:
    """One case a loss by default; further options of the same loss are slow."""
    names = [case.entry.name for case in found]
    marks = [pytest.mark.slow if name in names[:i] else () for i, name in enumerate(names)]
    return pytest.mark.parametrize(
        "case", [pytest.param(case, marks=mark, id=case.id) for case, mark in zip(found, marks, strict=True)]
    )


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-10 * float(expected.abs().max()) + 1e-13, rtol=1e-9)


def net(outputs: int, seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, outputs)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def columns(dense: Tensor) -> Tensor:
    """A dense operator times the three vectors that products are taken with."""
    generator = torch.Generator().manual_seed(5)
    return dense @ torch.randn(len(dense), 3, generator=generator, dtype=torch.float64)


def products(problem: Problem) -> Tensor:
    operator = GGN(problem)
    return operator @ columns(torch.eye(problem.n, dtype=torch.float64))


def oracle(problem: Problem, inputs: Tensor, loss: object) -> Tensor:
    """JᵀΛJ by dense Jacobian of the outputs and dense Hessian of the loss in them."""
    flat = torch.cat([p.detach().reshape(-1) for p in problem.model.parameters()])

    def outputs(vector: Tensor) -> Tensor:
        named = dict(zip(problem.layout.names, problem.layout.unflatten(vector), strict=True))
        return torch.func.functional_call(problem.model, named, (inputs,))

    z = outputs(flat).detach()
    J = jacobian(outputs, flat).reshape(-1, problem.n)
    Λ = hessian(lambda v: loss(v.reshape(z.shape)), z.reshape(-1))
    return J.T @ Λ @ J


@each(REST)
def test_ggn_of_every_loss_equals_the_dense_oracle(case: Case) -> None:
    """All differentiable inputs of the loss are one output of the net."""
    data = case.inputs()
    if case.entry.kind == "masks":
        data = (0.4 + 0.2 * data[0], data[1])  # the net's outputs stay probabilities
    free = case.free(data)
    sizes = [data[i].numel() for i in free]
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, sum(sizes))).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        model[2].bias += torch.cat([data[i].reshape(-1) for i in free])  # near the case's own inputs, inside its domain

    def criterion(outputs: Tensor, _: Tensor) -> Tensor:
        merged = list(data)
        for i, part in zip(free, outputs.reshape(-1).split(sizes), strict=True):
            merged[i] = part.reshape(data[i].shape)
        return case(*merged).mean()

    inputs = torch.randn(1, 2, generator=generator, dtype=torch.float64)
    problem = Problem(model, criterion, [(inputs, torch.zeros(1))], engine="retained")
    close(products(problem), columns(oracle(problem, inputs, lambda z: criterion(z, inputs))))


def classified(case: Case, *extra: int) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 4 * math.prod(extra)), nn.Unflatten(1, (4, *extra)))
    torch.nn.init.normal_(model[2].weight, generator=generator)
    batches = []
    for size in SIZES:
        target = torch.randint(4, (size, *extra), generator=generator)
        target[0] = -100
        batches.append((torch.randn(size, 2, generator=generator, dtype=torch.float64), target))
    return model.double(), batches


@each(CLASSES)
@pytest.mark.parametrize(
    ("reduction", "weight"),
    [
        ("mean", WEIGHT),
        pytest.param("mean", None, marks=pytest.mark.slow),
        pytest.param("sum", WEIGHT, marks=pytest.mark.slow),
        pytest.param("sum", None, marks=pytest.mark.slow),
    ],
    ids=["weighted mean", "mean", "weighted sum", "sum"],
)
def test_ggn_of_weighted_and_ignored_targets_over_uneven_batches(
    case: Case, reduction: str, weight: Tensor | None
) -> None:
    model, batches = classified(case)
    options = case.options | ({} if weight is None else {"weight": weight})
    criterion = module_of(case.entry.function, "Module")(reduction=reduction, **options)
    problem = Problem(model, criterion, batches, microbatch=3, engine="retained")
    inputs, targets = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    assert problem.loss() == pytest.approx(criterion(model(inputs), targets).item(), rel=1e-12)
    close(products(problem), columns(oracle(problem, inputs, lambda z: criterion(z, targets))))


@each([case for case in CLASSES if case.entry.hessian])
def test_closed_form_is_what_the_ggn_uses_and_takes_pixels(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = classified(case, 2, 3)
    criterion = module_of(case.entry.function, "Module")(weight=WEIGHT, **case.options)
    found = products(Problem(model, criterion, batches, engine="vmap"))

    def refuse(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(type(criterion), "output_hessian", refuse)
    close(found, products(Problem(model, criterion, batches, engine="vmap")))


@each(APART)
def test_uneven_batches_of_labels_and_values_weigh_by_their_elements(case: Case) -> None:
    _, wanted = case.inputs()
    wanted = wanted[:SAMPLES] if wanted.ndim > 1 else wanted[:SAMPLES, None]
    if case.entry.name == "squared_log_error":
        wanted = wanted.abs()
    inputs = torch.randn(len(wanted), 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    model = net(wanted.shape[1])
    if case.entry.name == "squared_log_error":
        model.append(nn.Softplus())
    criterion = module_of(case.entry.function, "Module")(**case.options)
    problem = Problem(model, criterion, [(inputs[:2], wanted[:2]), (inputs[2:], wanted[2:])], microbatch=2)
    assert problem.loss() == pytest.approx(criterion(model(inputs), wanted).item(), rel=1e-12)
    close(GGN(problem).dense(), oracle(problem, inputs, lambda z: criterion(z, wanted)))
    gradients = [
        Problem(model, criterion, [(x[None], y[None])]).gradient() for x, y in zip(inputs, wanted, strict=True)
    ]
    G = torch.stack(gradients)
    close(GradientCovariance(problem).dense(), G.T @ G / len(G))


def test_functions_are_taken_for_their_modules() -> None:
    model, batches = classified(CLASSES[0])
    by_module = Problem(model, losses.FocalLoss(gamma=3.0, weight=WEIGHT), batches)
    by_function = Problem(model, functools.partial(losses.focal, gamma=3.0, weight=WEIGHT), batches)
    assert by_function.loss() == by_module.loss()
    assert Problem(model, losses.focal, batches).loss() == Problem(model, losses.FocalLoss(), batches).loss()


def test_kept_tokens_of_uneven_batches_are_counted() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (5, 6), generator=generator)
    model = nn.Sequential(nn.Linear(2, 24), nn.Unflatten(1, (6, 4))).double()
    cut = [(inputs[:3], labels[:3]), (inputs[3:], labels[3:])]
    for criterion in (
        losses.GoldfishLoss(k=2.0, context=2),
        losses.NumberTokenLoss(values=torch.tensor([1.0, math.nan, 3.0, 7.0])),
    ):
        whole = criterion(model(inputs), labels).item()
        assert Problem(model, criterion, cut).loss() == pytest.approx(whole, rel=1e-6)
    risky = labels == 2
    criterion = losses.SLUNGLoss()
    batches = [(inputs[:3], (labels[:3], risky[:3])), (inputs[3:], (labels[3:], risky[3:]))]
    assert Problem(model, criterion, batches).loss() == pytest.approx(criterion(model(inputs), labels, risky).item())


@pytest.mark.parametrize(
    ("criterion", "outputs"),
    [
        (losses.SupConLoss(temperature=0.5), 3),
        (losses.InfoNCELoss(temperature=0.5), 3),
        (losses.DiceLoss(), 4),
        (losses.UniformityLoss(), 3),
        (losses.MacroAUCPairwiseLoss(), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_losses_of_whole_batches_are_surveyed_batch_by_batch(criterion: losses.LossModule, outputs: int) -> None:
    generator = torch.Generator().manual_seed(4)
    inputs = [torch.randn(size, 2, generator=generator, dtype=torch.float64) for size in (6, 3)]
    kind = losses.LOSSES[type(criterion).function.__name__].kind
    targets = [
        torch.tensor([0, 1, 0, 1, 1, 0])[: len(x)]
        if kind == "embeddings"
        else (torch.rand(len(x), outputs, generator=generator, dtype=torch.float64) > 0.5).double()
        if kind in ("labels", "masks")
        else torch.randn(len(x), outputs, generator=generator, dtype=torch.float64)
        for x in inputs
    ]
    model = net(outputs)
    if kind == "masks":
        model = model.append(nn.Sigmoid()).append(nn.Unflatten(1, (2, 2)))
        targets = [y.reshape(-1, 2, 2) for y in targets]
    problem = Problem(model, criterion, list(zip(inputs, targets, strict=True)))
    single = [Problem(model, criterion, [batch]) for batch in zip(inputs, targets, strict=True)]
    assert problem.coupled
    assert problem.loss() == pytest.approx((6 * single[0].loss() + 3 * single[1].loss()) / 9, rel=1e-12)
    parts = [
        oracle(one, x, lambda z, y=y: criterion(*(z, y)[: criterion.arity]))
        for one, x, y in zip(single, inputs, targets, strict=True)
    ]
    close(GGN(problem).dense(), (6 * parts[0] + 3 * parts[1]) / 9)
    close(Hessian(problem).dense(), (6 * Hessian(single[0]).dense() + 3 * Hessian(single[1]).dense()) / 9)


def test_losses_of_whole_batches_have_no_samples_apart() -> None:
    data = [(torch.randn(4, 2), torch.tensor([0, 0, 1, 1]))]
    model = nn.Linear(2, 3)
    with pytest.raises(ProblemError, match=r"criterion that couples the samples of a batch, found microbatch=2"):
        Problem(model, losses.SupConLoss(), data, microbatch=2)
    with pytest.raises(OperatorError, match="with a criterion that couples the samples"):
        GradientCovariance(Problem(model, losses.SupConLoss(), data))


def test_coupling_is_declared_where_samples_see_each_other() -> None:
    """Losses that claim independent samples are changed by no other sample."""
    for case in ALL:
        if case.entry.coupled or "reduction" not in inspect.signature(case.entry.function).parameters:
            continue
        data = case.inputs()
        single = case(*data, reduction="none")
        moved = [x.clone() for x in data]
        rows = [i for i in case.free(data) if data[i].ndim and data[i].shape[0] == single.shape[0]]
        for i in rows:
            moved[i][0] = moved[i][0].flip(0) if moved[i][0].ndim else moved[i][0] * 0.9
        torch.testing.assert_close(case(*moved, reduction="none")[1:], single[1:], msg=case.id)


def test_fisher_of_observed_targets_is_the_gradient_covariance_and_others_need_a_density() -> None:
    model, batches = classified(CLASSES[0])
    problem = Problem(model, losses.FocalLoss(weight=WEIGHT), batches)
    close(Fisher(problem, kind="empirical").dense(), GradientCovariance(problem).dense())
    with pytest.raises(OperatorError, match="negative logarithm of a known density"):
        Fisher(problem)
