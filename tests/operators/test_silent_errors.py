"""What other tools return wrong without a word is shown to be wrong here, and right by these operators.

Elsewhere: dropout and layers with state (test_hostile), custom functions that hide tensors (test_certificate), ghosts of a
three-term recurrence (linalg/test_krylov), residuals and errors of records (measures).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families import BY_NAME, merged
from operators.plain import gradient_and_hessian, relative
from theodolite.linalg import LinearOperator, lanczos
from theodolite.operators import GGN, GradientCovariance, Hessian
from theodolite.problem import Problem

EXACT = 1e-10


# ------------------------------------------------------------------------------------------------------- weights of batches


def ragged(name: str) -> tuple[nn.Module, list[Any]]:
    """Batches of 14, 2 and 1 samples."""
    model, batches = BY_NAME[name].model_and_data()
    (inputs, targets), *_ = merged(batches)
    return model, list(zip(inputs.split([14, 2, 1]), targets.split([14, 2, 1]), strict=True))


def spoilt(targets: Tensor) -> Tensor:
    """Positions without a target: nearly all in the small batches, hardly any in the large one."""
    mask = torch.zeros_like(targets, dtype=torch.bool)
    mask[:, 1 if targets.shape[0] < 14 else 4 :] = True
    return targets.masked_fill(mask, -100)


@pytest.mark.parametrize("operator", [Hessian, GGN])
@pytest.mark.parametrize(("name", "error"), [("mlp", 0.1), ("transformer", 0.3)])
def test_batches_with_equal_weights_are_another_operator(name: str, error: float, operator: Any) -> None:
    """Ragged batches, and batches with unequal counts of valid tokens."""
    family = BY_NAME[name]
    model, batches = ragged(name)
    if name == "transformer":
        batches = [(inputs, spoilt(targets)) for inputs, targets in batches]
    whole = operator(family.problem_of(model, merged(batches))).dense()
    equal = sum(operator(family.problem_of(model, [batch])).dense() for batch in batches) / len(batches)
    assert relative(equal, whole) > error
    assert relative(operator(family.problem_of(model, batches)).dense(), whole) < EXACT


@pytest.mark.parametrize("operator", [Hessian, GGN, GradientCovariance])
def test_a_sum_of_batch_means_is_another_operator(operator: Any) -> None:
    """The trace is that of one batch as large as all, not once more for each batch."""
    family = BY_NAME["mlp"]
    model, batches = family.model_and_data()
    (inputs, targets), *_ = merged(batches)
    four = [(inputs[:4], targets[:4])] * 4  # the same batch four times is the same problem
    one = operator(family.problem_of(model, four[:1])).dense()
    found = operator(family.problem_of(model, four)).dense()
    assert relative(found, one) < EXACT
    summed = sum(operator(family.problem_of(model, [batch])).dense() for batch in four)
    assert float(summed.trace()) == pytest.approx(4 * float(found.trace()), rel=1e-10)


def test_a_criterion_that_sums_is_a_sum_over_all_data() -> None:
    model, batches = BY_NAME["mlp-sum"].model_and_data()
    summed = Hessian(Problem(model, nn.MSELoss(reduction="sum"), batches)).dense()
    mean = Hessian(Problem(model, nn.MSELoss(), batches)).dense()
    assert relative(summed, 17 * 3 * mean) < EXACT


# ------------------------------------------------------------------------------------------------------------------- kinks


@pytest.mark.filterwarnings("ignore::theodolite.errors.TheodoliteWarning")
def test_differences_see_kinks_that_the_hessian_does_not_and_say_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3))
    x, y = torch.randn(64, 8), torch.randint(3, (64,))
    problem = Problem(model, nn.CrossEntropyLoss(), [(x, y)], params="2.*")
    v = torch.randn(problem.n)
    exact, coarse = Hessian(problem), Hessian(problem.replace(engine="difference"))
    wide = Hessian(problem.replace(dtype=torch.float64))
    reference = wide @ v.double()
    assert relative((exact @ v).double(), reference) < 1e-4
    assert relative((coarse @ v).double(), reference) > 0.05
    assert "central differences" in coarse.engine
    assert "graphs" in exact.engine


# ------------------------------------------------------------------------------------------------------------- eigenvalues


class Bowl(nn.Module):
    """½ Σ λ_i θ_i² + ⅙ Σ θ_i³ at θ = 0, whose Hessian is diag(λ)."""

    def __init__(self, curvatures: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros_like(curvatures))
        self.register_buffer("curvatures", curvatures)

    def forward(self) -> Tensor:
        return (0.5 * self.curvatures * self.theta.square() + self.theta.pow(3) / 6).sum()


def bowl(curvatures: list[float] | Tensor, *, dtype: torch.dtype = torch.float64) -> Hessian:
    model = Bowl(torch.as_tensor(curvatures, dtype=dtype))
    return Hessian(Problem.from_loss(model, lambda model, batch: model(), [torch.zeros(1, dtype=dtype)]))


def power_iteration(A: LinearOperator, *, momentum: float = 0.0, steps: int = 400) -> tuple[float, Tensor]:
    """The estimate that tools return: the Rayleigh quotient, or with momentum the growth of the iterate."""
    v = torch.randn(A.shape[0], generator=torch.Generator().manual_seed(0), dtype=A.dtype)
    v, previous, growth = v / v.norm(), torch.zeros_like(v), 0.0
    for _ in range(steps):
        new = A @ v - momentum * previous
        growth = float(v @ new)
        previous, v = v / new.norm(), new / new.norm()
    return growth, v


def test_the_largest_eigenvalue_is_not_the_largest_in_size() -> None:
    """At a saddle power iteration locks on the negative end; sharpness is the positive one."""
    H = bowl([-10.0, 9.0, 4.0, *torch.linspace(-1, 1, 60).tolist()])
    locked, _ = power_iteration(H)
    assert locked == pytest.approx(-10.0, rel=1e-6)
    assert float(lanczos(H, k=1, tol=1e-8).values[0]) == pytest.approx(9.0, rel=1e-8)
    assert float(lanczos(H, k=1, which="smallest", tol=1e-8).values[0]) == pytest.approx(-10.0, rel=1e-8)
    assert float(lanczos(H, k=1, which="magnitude", tol=1e-8).values[0]) == pytest.approx(-10.0, rel=1e-8)


def test_a_value_is_the_rayleigh_quotient_of_its_vector() -> None:
    """Momentum in power iteration makes its growth λ − β/λ′ and the like; a residual of the pair would have shown it."""
    H = bowl([5.0, 3.0, *torch.linspace(0, 2, 60).tolist()])
    growth, v = power_iteration(H, momentum=1.0)
    assert abs(growth - 5.0) > 0.1
    assert float((H @ v - growth * v).norm()) > 0.1
    pairs = lanczos(H, k=2, tol=1e-8)
    for value, vector in zip(pairs.values, pairs.vectors, strict=True):
        assert float(value) == pytest.approx(float(vector @ (H @ vector)), rel=1e-10)
        assert float((H @ vector - value * vector).norm()) < 1e-7 * float(value)


def test_a_cap_on_iterations_never_passes_a_wrong_eigenvalue_for_a_right_one() -> None:
    """Close outliers over a broad bulk: by default all five are right; stopped early, those that are not are marked."""
    close = [20.0, 18.4, 18.3, 18.2, 18.1, 14.4]
    H = bowl([*close, *torch.linspace(0, 14, 500).tolist()])
    pairs = lanczos(H, k=5)
    assert pairs.settled
    assert bool(pairs.converged.all())
    assert pairs.values.tolist() == pytest.approx(close[:5], rel=1e-5)
    wrong = 0
    for products in range(8, 60, 4):
        cut = lanczos(H, k=5, max_products=products)
        if cut.settled:
            assert cut.values.tolist() == pytest.approx(close[:5], rel=1e-5)
        wrong += not cut.settled
        for value, vector, converged in zip(cut.values, cut.vectors, cut.converged, strict=True):
            if converged:  # then it is an eigenvalue, to its tolerance
                assert float((H @ vector - value * vector).norm()) <= 1.1e-3 * abs(float(value))
    assert wrong > 0


def test_single_precision_brings_no_copies_of_an_eigenvalue() -> None:
    """Beyond fifty steps a recurrence without reorthogonalisation shows the outliers again and again."""
    values = torch.cat([torch.tensor([100.0, 60.0, 30.0]), torch.linspace(0, 1, 400)])
    pairs = lanczos(bowl(values, dtype=torch.float32), k=12, tol=1e-4, max_products=300)
    expected = values.sort(descending=True).values[:12]
    assert pairs.values.tolist() == pytest.approx(expected.tolist(), rel=2e-3)


def test_the_hessian_of_a_problem_has_its_own_eigenvalues_in_single_precision() -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    (x, y), *_ = merged(batches)
    _, dense = gradient_and_hessian(model, lambda: nn.functional.cross_entropy(model(x), y))
    exact = torch.linalg.eigvalsh(dense).flip(0)
    problem = Problem(model.float(), nn.CrossEntropyLoss(), [(a.float(), b) for a, b in batches])
    pairs = lanczos(Hessian(problem), k=6, tol=1e-4)
    assert pairs.values.tolist() == pytest.approx(exact[:6].tolist(), rel=1e-3, abs=1e-3 * float(exact[0]))
