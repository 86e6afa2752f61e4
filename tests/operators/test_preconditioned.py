"""The preconditioned Hessian is P^-½ H P^-½ for the P by which the optimiser's own step divides its momentum."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Muon, NAdam, Optimizer, RMSprop

from families import BY_NAME
from operators.plain import gradient_and_hessian, relative
from theodolite.errors import OperatorError
from theodolite.linalg import lanczos
from theodolite.operators import Hessian, PreconditionedHessian
from theodolite.operators.preconditioner import inverse_root
from theodolite.problem import Problem

EXACT = 1e-10


def trained(make: Callable[[nn.Module], Any], *, steps: int = 4) -> tuple[Problem, nn.Module, Any]:
    """The mlp after a few steps of what ``make`` returns: an optimiser, or several."""
    model, batches = BY_NAME["mlp"].model_and_data()
    made = make(model)
    for step in range(steps):
        x, y = batches[step % len(batches)]
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for optimizer in made if isinstance(made, Iterable) else (made,):
            optimizer.step()
    return BY_NAME["mlp"].problem_of(model, batches), model, made


def hessian(problem: Problem, model: nn.Module) -> Tensor:
    batches = list(problem.batches)
    x, y = torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])
    return gradient_and_hessian(model, lambda: F.cross_entropy(model(x), y))[1]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def adam_root(optimizer: Optimizer, model: nn.Module) -> Tensor:
    states = [optimizer.state[parameter] for parameter in model.parameters()]
    group = optimizer.param_groups[0]
    beta1, beta2 = group["betas"]
    step = float(states[0]["step"]) + 1
    second = flat(state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"] for state in states)
    return (1 - beta1**step) * ((second / (1 - beta2**step)).sqrt() + group["eps"])


DIAGONAL: dict[str, tuple[Callable[[nn.Module], Optimizer], Callable[[Optimizer, nn.Module], Tensor]]] = {
    "sgd": (
        lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True),
        lambda o, m: torch.ones(79, dtype=torch.float64),
    ),
    "adam": (lambda m: Adam(m.parameters(), lr=1e-2), adam_root),
    "amsgrad": (lambda m: Adam(m.parameters(), lr=1e-2, amsgrad=True), adam_root),
    "adamw": (lambda m: AdamW(m.parameters(), lr=1e-2, betas=(0.8, 0.95), eps=1e-3), adam_root),
    "rmsprop": (
        lambda m: RMSprop(m.parameters(), lr=1e-2),
        lambda o, m: flat(o.state[p]["square_avg"] for p in m.parameters()).sqrt() + 1e-8,
    ),
    "adagrad": (
        lambda m: Adagrad(m.parameters(), lr=1e-2),
        lambda o, m: flat(o.state[p]["sum"] for p in m.parameters()).sqrt() + 1e-10,
    ),
}


@pytest.mark.parametrize("name", DIAGONAL)
def test_diagonal_preconditioners_equal_the_dense_product(name: str) -> None:
    make, P_of = DIAGONAL[name]
    problem, model, optimizer = trained(make)
    root = P_of(optimizer, model).rsqrt()
    expected = root[:, None] * hessian(problem, model) * root
    found = PreconditionedHessian(problem, optimizer)
    assert relative(found.dense(), expected) < EXACT
    assert found.unstepped == 0
    top = lanczos(found, k=1, tol=1e-8)
    assert float(top.values[0]) == pytest.approx(float(torch.linalg.eigvalsh(expected)[-1]), rel=1e-10)
    assert repr(found).startswith("<P^-½·Hessian·P^-½: 79×79")


@pytest.mark.parametrize("name", ["adam", "amsgrad", "adamw", "rmsprop", "adagrad"])
def test_the_optimiser_divides_its_momentum_by_it(name: str) -> None:
    """The next step with the gradient at 0, so that the state is what was read: θ moves by lr·P⁻¹·m."""
    problem, model, optimizer = trained(DIAGONAL[name][0])
    root = inverse_root([optimizer], problem).times(torch.eye(79, dtype=torch.float64))
    group, before = optimizer.param_groups[0], flat(model.parameters())
    states = [optimizer.state[parameter] for parameter in model.parameters()]
    if name in ("rmsprop", "adagrad"):
        momentum = torch.randn(79, dtype=torch.float64)
        for state in states:  # the gradient of the step is the momentum, and must not change the second moment
            for key in ("square_avg", "sum"):
                if key in state:
                    state[key] = state[key] * (1 / group.get("alpha", 1.0))
        for parameter, part in zip(model.parameters(), problem.layout.unflatten(momentum * 1e-9), strict=True):
            parameter.grad = part.clone()
        momentum = momentum * 1e-9
    else:
        # m and v that the next step, with a zero gradient, takes to the moments that were read.
        beta1, beta2 = group["betas"]
        for state in states:
            for key, beta in (("exp_avg", beta1), ("exp_avg_sq", beta2)):
                state[key] = state[key] / beta
        momentum = flat(state["exp_avg"] for state in states) * beta1
        model.zero_grad(set_to_none=False)
    group["weight_decay"] = 0.0
    optimizer.step()
    step = (before - flat(model.parameters())) / group["lr"]
    assert relative(root @ (root @ momentum), step) < 1e-6


def muon(model: nn.Module, **options: Any) -> list[Optimizer]:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() != 2]
    return [Muon(matrices, lr=1e-2, **options), AdamW(others, lr=1e-2)]


def with_momentum(made: list[Optimizer], model: nn.Module) -> None:
    """Momenta of full rank: those of a softmax layer are not, and bfloat16 makes a step of the rounding there."""
    g = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            momentum = made[0].state[parameter]["momentum_buffer"]
            momentum.copy_(torch.randn(momentum.shape, generator=g, dtype=torch.float64))


@pytest.mark.parametrize("adjust", [None, "original", "match_rms_adamw"])
def test_muon_turns_its_momentum_into_its_step(adjust: str | None) -> None:
    """P⁻¹M is the step that torch takes, to the bfloat16 in which it iterates; the polar factor of M is further off."""
    options = {"nesterov": False, "weight_decay": 0.0, "adjust_lr_fn": adjust}
    problem, model, made = trained(lambda m: muon(m, **options))
    with_momentum(made, model)
    root = inverse_root(made, problem)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=False)  # the momentum shrinks by a factor, which the step does not see
    made[0].step()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            momentum, where = made[0].state[parameter]["momentum_buffer"] / 0.95, problem.layout.slices[name]
            V = torch.zeros(79, 1, dtype=torch.float64)
            V[where, 0] = momentum.reshape(-1)
            found = root.times(root.times(V))[where, 0].reshape(parameter.shape)
            taken = (before[name] - parameter.detach()) / 1e-2
            assert relative(found, taken) < 3e-2
            U, _, Vh = torch.linalg.svd(momentum, full_matrices=False)
            assert relative(U @ Vh * (taken.norm() / (U @ Vh).norm()), taken) > 6e-2


def polynomial(M: Tensor, *, steps: int = 5) -> Tensor:
    """Newton–Schulz as torch writes it, in the precision of M."""
    X = M / M.norm()
    for _ in range(steps):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X


def test_muon_equals_a_dense_kronecker_construction() -> None:
    problem, model, made = trained(muon)
    with_momentum(made, model)
    P_inverse = torch.zeros(79, 79, dtype=torch.float64)
    for name, parameter in model.named_parameters():
        where = problem.layout.slices[name]
        if parameter.dim() != 2:
            state = made[1].state[parameter]
            step = float(state["step"]) + 1
            second = state["exp_avg_sq"].sqrt() / (1 - 0.999**step) ** 0.5 + 1e-8
            P_inverse[where, where] = torch.diag(1 / (second * (1 - 0.9**step)))
            continue
        M = made[0].state[parameter]["momentum_buffer"]
        rows, columns = M.shape
        if rows <= columns:  # full row rank here: the left factor is the only L with L M = step
            left = polynomial(M) @ torch.linalg.pinv(M)
            factor = torch.kron(left.contiguous(), torch.eye(columns, dtype=torch.float64))
        else:
            right = torch.linalg.pinv(M) @ polynomial(M.T).T
            factor = torch.kron(torch.eye(rows, dtype=torch.float64), right.T.contiguous())
        P_inverse[where, where] = max(1.0, rows / columns) ** 0.5 * factor
    values, vectors = torch.linalg.eigh((P_inverse + P_inverse.T) / 2)
    root = vectors * values.sqrt() @ vectors.T
    expected = root @ hessian(problem, model) @ root
    found = PreconditionedHessian(problem, made)
    assert relative(found.dense(), expected) < 1e-8
    v = torch.randn(79, dtype=torch.float64)
    assert relative(found.to_parameters(v), root @ v) < 1e-8


def test_a_momentum_without_full_rank_is_bounded() -> None:
    """Where the momentum vanishes, Newton–Schulz multiplies by the fifth power of its first coefficient."""
    problem, model, made = trained(muon, steps=1)
    momentum = made[0].state[model[0].weight]["momentum_buffer"]
    momentum.copy_(torch.outer(momentum[:, 0], momentum[0]))
    matrix = next(m for m in inverse_root(made, problem).matrices if m.shape == (6, 5))
    gains = torch.linalg.eigvalsh(matrix.root).square()
    limit = (6 / 5) ** 0.5 * 3.4445**5 / float(momentum.norm())
    assert gains[1:].tolist() == pytest.approx([limit] * 4, rel=1e-6)


def test_the_state_is_read_anew_after_a_step() -> None:
    problem, model, optimizer = trained(DIAGONAL["adam"][0])
    found = PreconditionedHessian(problem, optimizer)
    found.dense()
    x, y = next(iter(problem.batches))
    F.cross_entropy(model(x), 2 - y).backward()
    optimizer.step()
    assert relative(found.dense(), PreconditionedHessian(problem, optimizer).dense()) < EXACT


def changed_options(optimizer: Optimizer) -> None:
    optimizer.param_groups[0]["eps"] = 1e-2


def loaded_state(optimizer: Optimizer) -> None:
    kept = copy.deepcopy(optimizer.state_dict())
    for state in kept["state"].values():
        state["exp_avg_sq"] *= 3.0
    optimizer.load_state_dict(kept)


def counted_step(optimizer: Optimizer) -> None:
    for state in optimizer.state.values():
        state["step"] += 5


def write_past_the_counters(optimizer: Optimizer) -> None:
    for state in optimizer.state.values():
        state["exp_avg_sq"].data.mul_(2.0)


@pytest.mark.parametrize("change", [changed_options, loaded_state, counted_step, write_past_the_counters])
def test_it_follows_the_optimiser_where_the_parameters_stay(change: Callable[[Optimizer], None]) -> None:
    problem, _, optimizer = trained(DIAGONAL["adam"][0])
    found, v = PreconditionedHessian(problem, optimizer), torch.ones(79, dtype=torch.float64)
    before = found @ v
    change(optimizer)
    assert relative(found @ v, before) > 1e-3
    assert relative(found @ v, PreconditionedHessian(problem, optimizer) @ v) < EXACT
    assert relative(found.to_parameters(v), inverse_root([optimizer], problem).times(v[:, None])[:, 0]) < EXACT


def test_what_is_not_stepped_is_left_out() -> None:
    problem, model, _ = trained(DIAGONAL["adam"][0])
    optimizer = Adam(model[2].parameters(), lr=0.1)
    model[2].weight.grad = torch.ones_like(model[2].weight)
    model[2].bias.grad = None
    optimizer.step()
    found = PreconditionedHessian(problem, optimizer)
    assert found.unstepped == 79 - 24
    where = problem.layout.slices["2.weight"]
    rest = torch.ones(79, dtype=torch.bool)
    rest[where] = False
    dense = found.dense()
    assert torch.count_nonzero(dense[rest]) == torch.count_nonzero(dense[:, rest]) == 0
    assert float(dense[where, where].norm()) > 0
    before = [parameter.clone() for parameter in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def zeroed(optimizer: Adam, model: nn.Module) -> Adam:
    optimizer.param_groups[0]["eps"] = 0.0
    optimizer.state[model[0].weight]["exp_avg_sq"].zero_()
    return optimizer


REFUSED: dict[str, tuple[Callable[[nn.Module], Any], int, str]] = {
    "unknown": (lambda m: NAdam(m.parameters()), 2, r"NAdam is not known; known are SGD, .*Muon.*linalg.Congruence"),
    "subclass": (lambda m: type("Lars", (SGD,), {})(m.parameters(), lr=0.1), 1, "Lars is not known"),
    "no step": (lambda m: Adam(m.parameters()), 0, r"found Adam without state for any of them. Take a step first"),
    "muon without a step": (lambda m: muon(m)[0], 0, r"found Muon without state"),
    "another model": (lambda m: SGD(nn.Linear(2, 2).parameters(), lr=0.1), 0, r"SGD without state for any"),
    "held twice": (
        lambda m: [SGD(m.parameters(), lr=0.1)] * 2,
        1,
        r"each parameter in one optimiser, found one that SGD",
    ),
    "coefficients": (
        lambda m: muon(m, ns_coefficients=(-3.0, 0.0, 0.0)),
        1,
        r"keep the sign of every singular value, found \(-3.0, 0.0, 0.0\) with 5 steps",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_preconditioner_is_refused(case: str) -> None:
    make, steps, message = REFUSED[case]
    problem, _, made = trained(make, steps=steps)
    with pytest.raises(OperatorError, match=message):
        PreconditionedHessian(problem, made)


def test_a_preconditioner_of_zero_is_refused() -> None:
    problem, model, optimizer = trained(DIAGONAL["adam"][0])
    with pytest.raises(OperatorError, match=r"zero or NaN for 30 of 79 parameters of Adam. Give it a positive eps"):
        PreconditionedHessian(problem, zeroed(optimizer, model))


def test_without_a_preconditioner_it_is_the_hessian() -> None:
    problem, model, _ = trained(DIAGONAL["sgd"][0], steps=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = PreconditionedHessian(problem, SGD(model.parameters(), lr=0.1)).dense()
    assert relative(found, Hessian(problem).dense()) < EXACT
