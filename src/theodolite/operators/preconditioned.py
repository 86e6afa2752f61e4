"""The Hessian as a preconditioned optimiser sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from theodolite.linalg import LinearOperator
from theodolite.operators.hessian import Hessian
from theodolite.operators.preconditioner import InverseRoot, inverse_root, state_version
from theodolite.problem import Problem
from theodolite.records import Cost


@final
class PreconditionedHessian(LinearOperator):
    """P^-½ H P^-½, with P from the state of a live optimiser whose step is θ ← θ − lr·P⁻¹·m with a momentum m.

    Its largest eigenvalue is what the learning rate meets: with P held fixed and an averaged momentum, the iteration on a
    quadratic diverges above 2(1+β)/((1−β)·lr), for Adam 38/lr. P is the identity for SGD; √v̂ + ε with the bias corrections
    of the next step for Adam, AdamW, RMSprop and Adagrad.

    Muon multiplies its momentum M from the shorter side by a matrix: its step is lr·ρ·U φ(Σ) Vᵀ, where UΣVᵀ = M/‖M‖, φ is
    the polynomial of its Newton–Schulz iteration and ρ its correction for the shape. That is lr·P⁻¹M with
    P⁻¹ = ρ·U diag(φ(σ)/σ) Uᵀ/‖M‖ ⊗ I, close to (M Mᵀ)^-½ ⊗ I, one side of Shampoo's metric. What is measured is the
    curvature in that metric at the momentum held now. How the metric itself turns with the gradient is left out, as it is for
    Adam, but Muon's turns as fast as its momentum. torch iterates in bfloat16: along singular values below 0.4 % of ‖M‖ its step
    is amplified rounding, which no metric gives. Weight decay is left out.

    Parameters that are not held or have not been stepped have zero rows and columns. The state is read anew when it, an option
    of the optimiser or the parameters have changed.

    Cost: that of a Hessian product.

    Args:
        problem: what to differentiate.
        optimizer: SGD, Adam, AdamW, RMSprop, Adagrad or Muon, or several that share the parameters; never written to.

    Attributes:
        hessian: H.
        unstepped: number of parameters left out.

    Raises:
        OperatorError: an update rule is not known, or nothing has been stepped yet.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> problem = Problem(model, torch.nn.CrossEntropyLoss(), [(torch.randn(8, 3), torch.randint(2, (8,)))])
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> problem.model(torch.randn(4, 3)).sum().backward()
        >>> optimizer.step()
        >>> (PreconditionedHessian(problem, optimizer) @ torch.ones(8)).shape
        torch.Size([8])

    References:
        Cohen et al., "Adaptive gradient methods at the edge of stability" (2022).
        Gupta, Koren, Singer, "Shampoo: preconditioned stochastic tensor optimization" (2018).
        Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
    """

    def __init__(self, problem: Problem, optimizer: Optimizer | Sequence[Optimizer]) -> None:
        super().__init__(shape=(problem.n, problem.n), dtype=problem.dtype, device=problem.device, symmetric=True)
        self.hessian = Hessian(problem)
        self._optimizers = (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer)
        self._version: tuple[object, ...] | None = None
        self._root = self._read()

    @property
    def unstepped(self) -> int:
        """Number of parameters that are left out because they are not held or have no state."""
        return self._read().unstepped

    @property
    def cost(self) -> Cost:
        """What the operator has cost so far."""
        return self.hessian.cost

    def to_parameters(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """P^-½ v: the direction in the parameters of one in the preconditioned space, such as an eigenvector."""
        return self._read().times(v[:, None])[:, 0]

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        root = self._read()
        return root.times(self.hessian @ root.times(V))

    def _read(self) -> InverseRoot:
        problem = self.hessian.problem
        version = (*problem.point().version, *state_version(self._optimizers, problem))
        if version != self._version:
            self._root, self._version = inverse_root(self._optimizers, problem), version
        return self._root

    def _expression(self) -> str:
        return "P^-½·Hessian·P^-½"
