"""Every operator equals its dense oracle, over families of models and losses, in float64."""

from __future__ import annotations

import pytest
import torch

from families import BY_NAME, FAMILIES, Family, dense_oracle, merged
from theodolite.operators import GGN, GradientCovariance, Hessian

EXACT = 1e-10
all_families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
criterion_families = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.criterion is not None], ids=lambda family: family.name
)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@all_families
def test_loss_gradient_and_hessian_equal_the_dense_oracle(family: Family) -> None:
    loss, gradient, hessian = dense_oracle(family)
    problem = family.problem()
    assert problem.loss() == pytest.approx(float(loss), rel=1e-12)
    assert relative(problem.gradient(), gradient) < EXACT
    assert relative(Hessian(problem).dense(), hessian) < EXACT


@all_families
@pytest.mark.parametrize("engine", ["retained", "vmap", "fresh"])
def test_exact_engines_agree(family: Family, engine: str) -> None:
    n = family.problem().n
    V = torch.randn(n, 5, dtype=torch.float64)
    expected = Hessian(family.problem(engine="auto")) @ V
    assert relative(Hessian(family.problem(engine=engine)) @ V, expected) < EXACT


@all_families
def test_differences_agree_to_their_own_accuracy(family: Family) -> None:
    v = torch.randn(family.problem().n, dtype=torch.float64)
    exact = Hessian(family.problem()) @ v
    assert relative(Hessian(family.problem(engine="difference")) @ v, exact) < 1e-5


@all_families
@pytest.mark.parametrize("operator", [Hessian, GGN, GradientCovariance])
def test_symmetric_and_positive(family: Family, operator: type) -> None:
    if operator is GGN and family.criterion is None:
        pytest.skip("a GGN needs a criterion")
    dense = operator(family.problem()).dense()
    assert relative(dense, dense.T) < EXACT
    if operator is not Hessian:
        eigenvalues = torch.linalg.eigvalsh(dense)
        assert eigenvalues[0] > -1e-12 * eigenvalues[-1]


@criterion_families
def test_ggn_equals_jacobian_curvature_jacobian(family: Family) -> None:
    problem = family.problem()
    model, batches = family.model_and_data()
    (batch,) = merged(batches)
    model.eval()
    parameters = {name: dict(model.named_parameters())[name].detach() for name in problem.layout.names}

    def outputs(flat: torch.Tensor) -> torch.Tensor:
        named = dict(zip(problem.layout.names, problem.layout.unflatten(flat), strict=True))
        return torch.func.functional_call(model, named, (batch[0],))

    flat = torch.cat([value.reshape(-1) for value in parameters.values()])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        jacobian = torch.autograd.functional.jacobian(outputs, flat).reshape(-1, problem.n)
        z = outputs(flat)
    criterion = family.criterion
    weights = getattr(criterion, "weight", None)
    if weights is not None:
        criterion = torch.nn.CrossEntropyLoss(weights.double(), label_smoothing=criterion.label_smoothing)
    curvature = torch.autograd.functional.hessian(
        lambda out: criterion(out.reshape(z.shape), batch[1]), z.detach().reshape(-1)
    )
    assert relative(GGN(problem).dense(), jacobian.T @ curvature @ jacobian) < EXACT


@pytest.mark.parametrize("name", ["mlp", "mlp-weighted", "transformer", "lstm", "convnet"])
def test_covariance_equals_the_mean_of_outer_products(name: str) -> None:
    family = BY_NAME[name]
    model, batches = family.model_and_data()
    samples = [family.problem_of(model, [batch]) for batch in split_samples(merged(batches)[0])]
    problem = family.problem_of(model, batches)
    # The gradient of the problem is the mean of g_i, with g_i = N w_i / W · (gradient of sample i alone).
    totals = [sample.totals()[1].sum() for sample in samples]
    weight, count = float(sum(totals)), len(samples)
    rows = [
        torch.zeros(problem.n, dtype=torch.float64) if w == 0 else count * float(w) / weight * sample.gradient()
        for sample, w in zip(samples, totals, strict=True)
    ]
    G = torch.stack(rows)
    assert relative(G.mean(0), problem.gradient()) < EXACT
    assert relative(GradientCovariance(problem).dense(), G.T @ G / count) < EXACT


def split_samples(batch: tuple[torch.Tensor, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(batch[0][i : i + 1], batch[1][i : i + 1]) for i in range(batch[0].shape[0])]


@all_families
def test_block_is_a_sub_matrix(family: Family) -> None:
    problem = family.problem()
    pattern = problem.layout.names[-1]
    where = problem.layout.slices[pattern]
    H = Hessian(problem)
    assert relative(H.block(pattern).dense(), H.dense()[where, where]) < EXACT


@all_families
@pytest.mark.parametrize("operator", [Hessian, GradientCovariance])
def test_batches_and_microbatches_do_not_change_the_operator(family: Family, operator: type) -> None:
    model, batches = family.model_and_data()
    reference = operator(family.problem_of(model, batches)).dense()
    for other in (
        family.problem_of(model, batches[::-1]),
        family.problem_of(model, merged(batches)),
        family.problem_of(model, batches, microbatch=2),
    ):
        assert relative(operator(other).dense(), reference) < EXACT


@all_families
def test_graphs_beyond_the_memory_cap_are_rebuilt(family: Family) -> None:
    kept, rebuilt = Hessian(family.problem()), Hessian(family.problem(memory=1))
    V = torch.randn(kept.shape[0], 3, dtype=torch.float64)
    assert relative(rebuilt @ V, kept @ V) < EXACT
    assert relative(rebuilt @ V, kept @ V) < EXACT
    assert "retained" in kept.engine
    assert "rebuilt" in rebuilt.engine
    assert kept.gradients == pytest.approx(1.0)
    assert rebuilt.gradients == pytest.approx(2.0)


def test_operator_follows_the_parameters() -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    problem = BY_NAME["mlp"].problem_of(model, batches)
    H = Hessian(problem)
    before = H.dense()
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    assert relative(H.dense(), before) > 1e-3
    assert relative(H.dense(), Hessian(BY_NAME["mlp"].problem_of(model, batches)).dense()) < EXACT
