"""Who is timed: the engines of theodolite, and the products of three peers with their own defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from models import Case
from torch import Tensor

from theodolite.operators import GGN, GradientCovariance, Hessian, ProblemOperator
from theodolite.problem import Problem

COLUMNS = 8
OURS, CURVLINOPS, EIGENTHINGS, PYHESSIAN = "theodolite", "curvlinops", "hessian-eigenthings", "PyHessian"


@dataclass(frozen=True)
class Built:
    """A product that can be repeated, and what it says of itself."""

    multiply: Callable[[], Tensor]
    engine: Callable[[], str] = lambda: ""


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Args:
        library: whose it is.
        product: what is computed, and how.
        matrix: name of the float64 reference that it is held to.
        columns: vectors in one call; times are divided by it.
        build: from a model of its own, the data and unit vectors of shape (n, COLUMNS) to the product.
        module: what has to be importable; loading it is not timed.
    """

    library: str
    product: str
    matrix: str
    columns: int
    build: Callable[[Case, Tensor], Built]
    module: str = "theodolite"


def contenders() -> list[Contender]:
    """All rows in the order of the table."""
    return [
        Contender("torch", "gradient, attention as torch picks it", "gradient", 1, plain_gradient),
        _ours("H @ v, auto", Hessian, "auto", 1),
        _ours(f"H @ V ({COLUMNS}), auto", Hessian, "auto", COLUMNS),
        _ours("H @ v, retained", Hessian, "retained", 1),
        _ours(f"H @ V ({COLUMNS}), vmap", Hessian, "vmap", COLUMNS),
        _ours("H @ v, fresh", Hessian, "fresh", 1),
        _ours("H @ v, difference", Hessian, "difference", 1),
        Contender(PYHESSIAN, "H v, one batch, retained", "hessian", 1, _pyhessian_batch, "pyhessian"),
        Contender(PYHESSIAN, "H v, data loader", "hessian", 1, _pyhessian_loader, "pyhessian"),
        _curvlinops("H @ v", "HessianLinearOperator", "hessian", 1),
        _curvlinops(f"H @ V ({COLUMNS})", "HessianLinearOperator", "hessian", COLUMNS),
        _eigenthings("H v, autograd", "autograd"),
        _eigenthings("H v, finite difference", "finite_difference"),
        _ours("GGN @ v, auto", GGN, "auto", 1),
        _curvlinops("GGN @ v", "GGNLinearOperator", "ggn", 1),
        Contender(EIGENTHINGS, "GGN v", "ggn", 1, _eigenthings_ggn, "hessian_eigenthings"),
        _ours("gradient covariance @ v, auto", GradientCovariance, "auto", 1),
    ]


def plain_gradient(case: Case, V: Tensor) -> Built:
    """Forward and backward over all batches, the weighted mean of their gradients."""
    model, criterion, batches = case
    model.eval()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    count = sum(len(targets) for _, targets in batches)

    def multiply() -> Tensor:
        total: list[Tensor] = [torch.zeros_like(parameter) for parameter in parameters]
        for inputs, targets in batches:
            gradient = torch.autograd.grad(criterion(model(inputs), targets), parameters)
            torch._foreach_add_(total, gradient, alpha=len(targets) / count)
        return _flat(total)

    return Built(multiply)


def _ours(product: str, operator: type[ProblemOperator], engine: Any, columns: int) -> Contender:
    def build(case: Case, V: Tensor) -> Built:
        A, operand = operator(Problem(*case, engine=engine)), _operand(V, columns)

        def say() -> str:
            blocks = [f"blocks by {A.blocks}"] if columns > 1 else []
            return "; ".join([A.engine, *blocks, *A.notes]) if engine == "auto" else ""

        return Built(lambda: A @ operand, say)

    matrix = {Hessian: "hessian", GGN: "ggn", GradientCovariance: "covariance"}[operator]
    return Contender(OURS, product, matrix, columns, build)


def _pyhessian_batch(case: Case, V: Tensor) -> Built:
    """Its products on a single batch reuse the graph of the gradient; all data goes into that batch."""
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    model, criterion, batches = case
    data = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    survey = hessian(model, criterion, data=data, cuda=False)
    v = _parts(_operand(V, 1), survey.params)
    return Built(lambda: _flat(hessian_vector_product(survey.gradsH, survey.params, v)))


def _pyhessian_loader(case: Case, V: Tensor) -> Built:
    from pyhessian import hessian

    model, criterion, batches = case
    survey = hessian(model, criterion, dataloader=batches, cuda=False)
    v = _parts(_operand(V, 1), survey.params)
    return Built(lambda: _flat(survey.dataloader_hv_product(v)[1]))


def _curvlinops(product: str, name: str, matrix: str, columns: int) -> Contender:
    def build(case: Case, V: Tensor) -> Built:
        import curvlinops

        model, criterion, batches = case
        model.eval()
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        A = getattr(curvlinops, name)(model, criterion, parameters, batches, check_deterministic=False)
        operand = _operand(V, columns)
        return Built(lambda: A @ operand)

    return Contender(CURVLINOPS, product, matrix, columns, build, "curvlinops")


def _eigenthings(product: str, method: str) -> Contender:
    def build(case: Case, V: Tensor) -> Built:
        from hessian_eigenthings.loss_fns.standard import supervised_loss
        from hessian_eigenthings.operators.hessian import HessianOperator

        model, criterion, batches = case
        A = HessianOperator(model.eval(), batches, supervised_loss(criterion), method=method)
        v = _operand(V, 1)
        return Built(lambda: A.matvec(v))

    return Contender(EIGENTHINGS, product, "hessian", 1, build, "hessian_eigenthings")


def _eigenthings_ggn(case: Case, V: Tensor) -> Built:
    from hessian_eigenthings.loss_fns.standard import supervised_forward, supervised_loss_of_output
    from hessian_eigenthings.operators.ggn import GGNOperator

    model, criterion, batches = case
    A = GGNOperator(model.eval(), batches, supervised_forward, supervised_loss_of_output(criterion))
    v = _operand(V, 1)
    return Built(lambda: A.matvec(v))


def _operand(V: Tensor, columns: int) -> Tensor:
    """All vectors as columns, or the first one alone."""
    return V if columns > 1 else V[:, 0].contiguous()


def _flat(parts: Any) -> Tensor:
    return torch.cat([part.detach().reshape(-1) for part in parts])


def _parts(v: Tensor, like: list[Tensor]) -> list[Tensor]:
    pieces = v.split([tensor.numel() for tensor in like])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, like, strict=True)]
