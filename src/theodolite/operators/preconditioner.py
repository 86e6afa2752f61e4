"""The preconditioner that an optimiser holds now, read from its state and never written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Muon, Optimizer, RMSprop

from theodolite.errors import OperatorError
from theodolite.problem import Problem
from theodolite.problem.point import sums_of

# Exactly these: a subclass such as LARS takes other steps than the class that it extends.
DIAGONAL = (SGD, Adam, AdamW, RMSprop, Adagrad)

Group = dict[str, Any]
Members = list[tuple[Group, list[tuple[Tensor, slice]]]]


@dataclass(frozen=True)
class MatrixRoot:
    """R ⊗ I or I ⊗ R on one weight matrix: the root of a preconditioner that multiplies it from one side.

    Args:
        where: place of the matrix in the flat vector.
        shape: rows and columns of the matrix.
        root: R, of the size of its shorter side.
    """

    where: slice
    shape: tuple[int, int]
    root: Float[Tensor, "s s"]

    def times(self, rows: Float[Tensor, "k r"]) -> Float[Tensor, "k r"]:
        """R X for each of k matrices X with at most as many rows as columns, X R for others."""
        X = rows.reshape(-1, *self.shape)
        product = self.root @ X if self.shape[0] <= self.shape[1] else X @ self.root
        return product.reshape(rows.shape)


@dataclass(frozen=True)
class InverseRoot:
    """P^-½ of the preconditioner P in a step θ ← θ − lr·P⁻¹·m.

    Args:
        diagonal: P^-½ where P is diagonal, 1 where there is none, 0 for parameters that are not stepped and in matrices.
        matrices: P^-½ of weight matrices that are multiplied from one side.
        unstepped: number of parameters that no optimiser holds, or that have no state while others have.
    """

    diagonal: Float[Tensor, " n"]
    matrices: tuple[MatrixRoot, ...]
    unstepped: int

    def times(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """P^-½ V."""
        product = self.diagonal[:, None] * V
        for matrix in self.matrices:
            product[matrix.where] = matrix.times(V[matrix.where].T).T
        return product


def inverse_root(optimizers: Sequence[Optimizer], problem: Problem) -> InverseRoot:
    """P^-½ at the current state of one optimiser, or of several that share the parameters.

    Cost: no products; an eigendecomposition of the shorter side of each matrix that Muon holds.

    Raises:
        OperatorError: an update rule is not known, a parameter is held twice, or nothing has been stepped yet.
    """
    held = [held_by(optimizer, problem) for optimizer in optimizers]
    _refuse_shared(optimizers, held, problem)
    diagonal = torch.zeros(problem.n, dtype=problem.dtype, device=problem.device)
    matrices: list[MatrixRoot] = []
    for optimizer, members in zip(optimizers, held, strict=True):
        refuse_unknown(optimizer)
        if isinstance(optimizer, Muon):
            matrices += _matrix_roots(optimizer, members, problem)
        else:
            P, moved = diagonal_preconditioner(optimizer, members, problem)
            _refuse_unusable(optimizer, P, moved)
            diagonal[moved] = P[moved].rsqrt()
    stepped = diagonal > 0
    for matrix in matrices:
        stepped[matrix.where] = True
    if not bool(stepped.any()):
        names = ", ".join(type(optimizer).__name__ for optimizer in optimizers) or "none"
        raise OperatorError(
            f"Expected an optimiser that has stepped parameters of this problem, found {names} without state for any of them. "
            "Take a step first, or pass the optimiser that trains this model."
        )
    return InverseRoot(diagonal, tuple(matrices), int((~stepped).sum()))


def state_version(optimizers: Sequence[Optimizer], problem: Problem) -> tuple[object, ...]:
    """What changes with the preconditioner: options of groups, and the state of the problem's parameters.

    Cost: two reductions of each tensor of the state.
    """
    found: list[object] = []
    large: list[Tensor] = []
    for optimizer in optimizers:
        for group, members in held_by(optimizer, problem):
            found += [_plain(value) for key, value in group.items() if key != "params"]
            for parameter, where in members:
                found.append(where.start)
                for key, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor) and value.numel() > 1:
                        found += [key, value.data_ptr(), 0 if value.is_inference() else value._version]
                        large.append(value)
                    else:
                        found += [key, _plain(value)]
    return (*found, *sums_of(large))


def _plain(value: object) -> object:
    """A value that compares by what it is; tensors of one number, such as the step or the learning rate, as numbers."""
    return value.tolist() if isinstance(value, Tensor) else value


def held_by(optimizer: Optimizer, problem: Problem) -> Members:
    """Groups with those of their parameters that belong to the problem, and where; groups without any are left out."""
    slices = problem.layout.slices
    places = {id(p): slices[name] for name, p in problem.model.named_parameters() if name in slices}
    found = [
        (group, [(parameter, places[id(parameter)]) for parameter in group["params"] if id(parameter) in places])
        for group in optimizer.param_groups
    ]
    return [(group, members) for group, members in found if members]


def refuse_unknown(optimizer: Optimizer) -> None:
    """Raise if the update rule is not known.

    Raises:
        OperatorError: it is not.
    """
    if type(optimizer) not in (*DIAGONAL, Muon):
        known = ", ".join(kind.__name__ for kind in (*DIAGONAL, Muon))
        raise OperatorError(
            f"The preconditioner of {type(optimizer).__name__} is not known; known are {known}, not their subclasses. "
            "For another diagonal P use linalg.Congruence(Hessian(problem), P.rsqrt())."
        )


def diagonal_preconditioner(
    optimizer: Optimizer, held: Members, problem: Problem
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """P, 1 where there is none, and which parameters have the state that it is made of."""
    P = torch.ones(problem.n, dtype=problem.dtype, device=problem.device)
    moved = torch.zeros(problem.n, dtype=torch.bool, device=problem.device)
    for group, members in held:
        for parameter, where in members:
            own = _of_parameter(optimizer, group, optimizer.state.get(parameter, {}), parameter)
            if own is not None:
                P[where], moved[where] = own.detach().reshape(-1).to(P), True
    return P, moved


def _of_parameter(optimizer: Optimizer, group: Group, state: dict[str, Any], parameter: Tensor) -> Tensor | None:
    """Diagonal P of the update lr·P⁻¹·m at the next step, with the second moments held, None where there is no state yet."""
    if isinstance(optimizer, SGD):
        return torch.ones_like(parameter)
    if isinstance(optimizer, Adam) and "exp_avg_sq" in state:
        steps = float(state["step"]) + 1  # of the next step, which counts before it corrects
        beta1, beta2 = (float(beta) for beta in group["betas"])
        second: Tensor = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        # Bias corrections: of the first moment it lengthens the step, so it divides P (Cohen et al. 2022).
        return float(1 - beta1**steps) * (torch.sqrt(second / float(1 - beta2**steps)) + float(group["eps"]))
    if isinstance(optimizer, RMSprop) and "square_avg" in state:
        second = state["square_avg"] - state["grad_avg"].square() if group["centered"] else state["square_avg"]
        return torch.sqrt(second) + float(group["eps"])
    if isinstance(optimizer, Adagrad) and float(state["step"]) > 0:
        second = state["sum"]
        return (torch.sqrt(second) + float(group["eps"])) * (1 + float(state["step"]) * float(group["lr_decay"]))
    return None


def _refuse_shared(optimizers: Sequence[Optimizer], held: Sequence[Members], problem: Problem) -> None:
    taken = torch.zeros(problem.n, dtype=torch.bool)
    for optimizer, groups in zip(optimizers, held, strict=True):
        for where in (where for _, members in groups for _, where in members):
            if bool(taken[where].any()):
                raise OperatorError(
                    f"Expected each parameter in one optimiser, found one that {type(optimizer).__name__} and another both "
                    "hold. Pass the optimisers that train this model, each once."
                )
            taken[where] = True


def _refuse_unusable(optimizer: Optimizer, P: Float[Tensor, " n"], moved: Bool[Tensor, " n"]) -> None:
    bad = int((moved & ~(P > 0)).sum())
    if bad:
        raise OperatorError(
            f"Expected a positive preconditioner, found zero or NaN for {bad} of {len(P)} parameters of "
            f"{type(optimizer).__name__}. Give it a positive eps, or leave out parameters without gradients by params=."
        )


def _matrix_roots(optimizer: Muon, held: Members, problem: Problem) -> list[MatrixRoot]:
    """P^-½ of each matrix that has momentum."""
    found = []
    for group, members in held:
        for parameter, where in members:
            momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None and bool(momentum.any()):
                root = _muon_root(momentum.detach().to(problem.device, problem.dtype), group)
                found.append(MatrixRoot(where, (momentum.shape[0], momentum.shape[1]), root))
    return found


def _muon_root(momentum: Float[Tensor, "r c"], group: Group) -> Float[Tensor, "s s"]:
    """Root of the matrix that turns the momentum into the step: its eigenvectors U, and √(ratio·φ(σ)/σ) for each σ.

    The Newton–Schulz iteration maps the singular values σ of the momentum over its norm by an odd polynomial φ.
    """
    M = momentum if momentum.shape[0] <= momentum.shape[1] else momentum.T
    norm = M.norm().clamp(min=float(group["eps"]))
    U, sigma, _ = torch.linalg.svd(M / norm, full_matrices=False)
    gain, x = torch.ones_like(sigma), sigma
    a, b, c = group["ns_coefficients"]
    for _ in range(group["ns_steps"]):
        factor = a + b * x.square() + c * x.pow(4)
        gain, x = gain * factor, x * factor
    if bool((gain < 0).any()):
        raise OperatorError(
            f"Expected Newton–Schulz coefficients that keep the sign of every singular value, found {(a, b, c)} with "
            f"{group['ns_steps']} steps, which turn {int((gain < 0).sum())} of {len(gain)} round: Muon has no positive "
            "preconditioner there."
        )
    rows, columns = momentum.shape
    ratio = {"match_rms_adamw": 0.2 * max(rows, columns) ** 0.5}.get(
        group["adjust_lr_fn"] or "original", max(1.0, rows / columns) ** 0.5
    )
    root: Tensor = (U * (ratio * gain / norm).sqrt()) @ U.T
    return root
