"""The centred covariance is that of the per-sample gradients, whole and with chunks left out."""

from __future__ import annotations

import pytest
import torch

from families import BY_NAME, FAMILIES, Family, merged
from operators.plain import relative
from theodolite.operators import GradientCovariance
from theodolite.problem.data import split

EXACT = 1e-10
all_families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def per_sample(family: Family) -> torch.Tensor:
    """Gradients g_i, from problems of one sample each, scaled so that their mean is the gradient of the problem."""
    model, batches = family.model_and_data()
    whole = family.problem_of(model, batches)
    _, weights = whole.totals()
    rows = []
    for sample in split(merged(batches)[0], 1):
        one = family.problem_of(model, [sample])
        _, weight = one.totals()
        if float(weight.sum()) == 0:
            rows.append(torch.zeros(whole.n, dtype=torch.float64))
            continue
        rows.append(one.gradient() * one.total_weight(weight) * whole.samples / whole.total_weight(weights))
    return torch.stack(rows)


@all_families
def test_centred_is_the_covariance_about_the_mean(family: Family) -> None:
    G = per_sample(family)
    problem = family.problem()
    assert relative(G.mean(0), problem.gradient()) < EXACT
    centred = G - G.mean(0)
    C = GradientCovariance(problem, centered=True)
    assert relative(C.dense(), centred.T @ centred / len(G)) < EXACT
    assert relative(GradientCovariance(problem).dense(), G.T @ G / len(G)) < EXACT


def test_it_has_no_variance_along_what_all_samples_share() -> None:
    """Of rank N − 1 and less: with all gradients alike nothing is left."""
    model, batches = BY_NAME["mlp"].model_and_data()
    same = [(batches[0][0][:1].repeat(4, 1), batches[0][1][:1].repeat(4))]
    problem = BY_NAME["mlp"].problem_of(model, same)
    uncentred = GradientCovariance(problem).dense().norm()
    assert float(GradientCovariance(problem, centered=True).dense().norm()) < 1e-14 * float(uncentred)
    problem = BY_NAME["mlp"].problem_of(model, batches)
    rank = torch.linalg.matrix_rank(GradientCovariance(problem, centered=True).dense(), hermitian=True, rtol=1e-10)
    assert int(rank) == problem.samples - 1


@pytest.mark.parametrize("name", ["mlp", "mlp-weighted", "transformer", "mlp-sum"])
@pytest.mark.parametrize("centered", [False, True])
def test_forms_with_a_chunk_left_out_are_those_of_the_other_chunks(name: str, centered: bool) -> None:
    family = BY_NAME[name]
    model, batches = family.model_and_data()
    C = GradientCovariance(family.problem_of(model, batches), centered=centered)
    V = torch.randn(C.shape[0], 2, dtype=torch.float64)
    products, left_out, weights = C.by_chunk(V)
    assert relative(products, C @ V) < EXACT
    assert weights.tolist() == C.problem.totals()[1].tolist()
    for index in range(len(batches)):
        rest = family.problem_of(model, batches[:index] + batches[index + 1 :])
        expected = torch.einsum("nk,nk->k", V, GradientCovariance(rest, centered=centered) @ V)
        if (
            name == "mlp-sum"
        ):  # what is left is scaled up to the whole: its share of the denominator is that of its samples
            expected = expected / (float(weights.sum() - weights[index]) / float(weights.sum())) ** 2
        assert relative(left_out[index], expected) < EXACT


def test_it_follows_the_parameters_and_keeps_to_its_block() -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    C = GradientCovariance(BY_NAME["mlp"].problem_of(model, batches), centered=True)
    C.dense()
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    fresh = GradientCovariance(BY_NAME["mlp"].problem_of(model, batches), centered=True).dense()
    assert relative(C.dense(), fresh) < EXACT
    assert relative(C.block("2.*").dense(), fresh[36:64, 36:64]) < EXACT
