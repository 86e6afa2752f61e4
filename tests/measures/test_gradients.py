"""Norms equal the oracle's gradient, errors the brute-force jackknife."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from families import FAMILIES, Family, dense_oracle
from records.published_jackknife import published
from theodolite.measures import gradients
from theodolite.problem import Problem

all_families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@all_families
def test_norms_equal_the_oracle(family: Family) -> None:
    loss, gradient, _ = dense_oracle(family)
    problem = family.problem()
    found = gradients(problem)
    assert found.loss == pytest.approx(float(loss), rel=1e-12)
    assert found.norm == pytest.approx(float(gradient.norm()), rel=1e-10)
    for layer, norm in zip(found.layers, found.layer_norms, strict=True):
        where = problem.layout.layer_slices[layer]
        assert norm == pytest.approx(float(gradient[where].norm()), rel=1e-10)
    assert np.square(found.layer_norms).sum() == pytest.approx(found.norm**2)
    assert np.sqrt(np.square(found.parameter_norms).sum()) == pytest.approx(
        float(torch.cat([leaf.detach().reshape(-1) for leaf in problem.point().leaves]).norm())
    )


@all_families
def test_errors_equal_the_brute_force_jackknife(family: Family) -> None:
    model, batches = family.model_and_data()
    whole = family.problem_of(model, batches)
    found = gradients(whole)
    losses, norms = [], []
    for leave in range(len(batches)):
        rest = family.problem_of(model, [batch for i, batch in enumerate(batches) if i != leave])
        share = 1.0
        if not rest.objective.averages():
            share = float(rest.totals()[1].sum() / whole.totals()[1].sum())
        losses.append(rest.loss() / share)
        norms.append(float(rest.gradient().norm()) / share)
    weights = whole.totals()[1].numpy()
    for values, estimate in ((losses, found.loss_estimate), (norms, found.norm_estimate)):
        assert estimate.stderr == pytest.approx(published(values, estimate.value, weights), rel=1e-9)
        assert estimate.degrees == len(batches) - 1


def test_a_loss_that_is_not_finite_is_a_reading() -> None:
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(float("inf"))
    found = gradients(
        Problem(model, torch.nn.CrossEntropyLoss(), [(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))])
    )
    assert np.isnan(found.loss)
    assert np.isnan(found.norm)


def test_errors_are_unknown_beyond_the_memory_cap() -> None:
    family = FAMILIES[0]
    found = gradients(family.problem(memory=1))
    assert np.isnan(found.norm_stderr)
    assert np.isfinite(found.loss_stderr)
    assert "memory cap" in found.notes[0]
