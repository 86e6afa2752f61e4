"""What every product is held to: float64, forward-over-reverse through torch.func, which no engine of ours uses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from models import Case
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

Leaves = dict[str, Tensor]


def references(case: Case, V: Tensor) -> dict[str, Tensor]:
    """Gradient (n, 1), Hessian times V (n, k), and GGN and gradient covariance times its first column (n, 1).

    The criterion is the mean cross-entropy and every sample weighs the same.
    """
    model, criterion, batches = case
    double = copy.deepcopy(model).double().eval()
    leaves = {name: parameter.detach() for name, parameter in double.named_parameters()}
    columns = [_named(v.double(), leaves) for v in V.T]
    found = {name: torch.zeros(len(V), k, dtype=torch.float64) for name, k in _columns(len(columns)).items()}
    samples = sum(len(targets) for _, targets in batches)
    with sdpa_kernel(SDPBackend.MATH):
        for inputs, targets in batches:
            x = inputs.double() if inputs.is_floating_point() else inputs
            share = len(targets) / samples
            for name, product in _on_batch(double, criterion, x, targets, leaves, columns).items():
                found[name] += share * product
    return found


def relative_error(product: Tensor, reference: Tensor) -> float:
    """‖product − reference‖ / ‖reference‖ in float64, over the columns that the product has."""
    matrix = product.detach().double().reshape(len(reference), -1)
    exact = reference[:, : matrix.shape[1]]
    return float((matrix - exact).norm() / exact.norm())


def _columns(k: int) -> Mapping[str, int]:
    return {"gradient": 1, "hessian": k, "ggn": 1, "covariance": 1}


def _on_batch(
    model: torch.nn.Module,
    criterion: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    targets: Tensor,
    leaves: Leaves,
    columns: list[Leaves],
) -> dict[str, Tensor]:
    def outputs(at: Leaves) -> Tensor:
        return functional_call(model, at, (x,))

    def loss(at: Leaves) -> Tensor:
        return criterion(outputs(at), targets)

    def shares(at: Leaves) -> Tensor:
        return F.cross_entropy(outputs(at), targets, reduction="none").reshape(len(targets), -1).mean(1)

    scores, pushed = jvp(outputs, (leaves,), (columns[0],))
    _, curved = jvp(grad(lambda z: criterion(z, targets)), (scores,), (pushed,))
    _, slopes = jvp(shares, (leaves,), (columns[0],))
    return {
        "gradient": _flat(grad(loss)(leaves))[:, None],
        "hessian": torch.stack([_flat(jvp(grad(loss), (leaves,), (v,))[1]) for v in columns], dim=1),
        "ggn": _flat(vjp(outputs, leaves)[1](curved)[0])[:, None],
        "covariance": _flat(vjp(shares, leaves)[1](slopes / len(targets))[0])[:, None],
    }


def _named(v: Tensor, leaves: Leaves) -> Leaves:
    pieces = v.split([leaf.numel() for leaf in leaves.values()])
    return {name: piece.view_as(leaves[name]) for name, piece in zip(leaves, pieces, strict=True)}


def _flat(parts: Leaves) -> Tensor:
    return torch.cat([part.detach().reshape(-1) for part in parts.values()])
