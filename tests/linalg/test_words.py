"""What results print: a line, whatever the size of their tensors."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from theodolite.linalg import Diagonal, cg, decompose, diagonal, funm_multiply, hutchinson, lanczos, minres, slq

N = 300


def operator() -> Diagonal:
    return Diagonal(torch.linspace(1, 3, N, dtype=torch.float64))


def ones(*columns: int) -> torch.Tensor:
    return torch.ones(N, *columns, dtype=torch.float64)


RESULTS: dict[str, tuple[Any, str]] = {
    "cg": (
        lambda A: cg(A, ones(2), tol=1e-8),
        r"<Solution: 300×2, residual ≤ \d\.?\d*e-\d+, 2 of 2 converged, \d+ prod",
    ),
    "spent": (
        lambda A: minres(A, ones(), max_products=2),
        r"<Solution: 300, residual ≤ 0\.\d+, 0 of 1 converged, 2 pro",
    ),
    "pairs": (lambda A: lanczos(A, k=2), r"<Eigenpairs: 2 of size 300, λ from 3 to 2\.\d+, residuals ≤ .* 2 of 2 conv"),
    "decomposition": (
        lambda A: decompose(A, k=1, steps=9, probes=2),
        r"<Decomposition: <Eigenpairs: 1 of size 300.*>, <TraceEstimate: 6\d\d.* ± .*>, \d+ products>",
    ),
    "trace": (lambda A: hutchinson(A, probes=2, parts=[slice(3)]), "<TraceEstimate: 600 ± 0, 1 part, 2 products>"),
    "diagonal": (lambda A: diagonal(A, probes=2), "<DiagonalEstimate: 300 entries, standard errors ≤ 0, 2 products>"),
    "function": (lambda A: funm_multiply(A, ones(), torch.exp), r"<FunctionProduct: 300, error .*, converged, \d+ pro"),
    "quadrature": (
        lambda A: slq(A, probes=2, steps=5),
        "<Quadrature: 2 rules of 5 nodes, 0 of 300 eigenvalues known, 10 products>",
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_print_one_line(name: str) -> None:
    make, pattern = RESULTS[name]
    said = repr(make(operator()))
    assert re.match(pattern, said), said
    assert "\n" not in said
    assert len(said) < 250
