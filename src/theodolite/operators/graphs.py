"""Differentiated graphs of one chunk, kept so that products with many vectors share the forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.problem import Layout

Tensors = tuple[Tensor, ...]


class Graph(ABC):
    """A symmetric product on one chunk, linear in its vector; the sum over chunks is the operator up to a factor.

    Args:
        leaves: the parameters that the graph was built on.
        weight: weight of the chunk.
    """

    def __init__(self, leaves: Tensors, weight: float) -> None:
        self.leaves = leaves
        self.weight = weight

    @abstractmethod
    def vector(self, v: Tensors) -> Tensors:
        """The product with one vector, given and returned as one tensor for each parameter."""

    def loop(self, rows: Float[Tensor, "k n"], layout: Layout) -> Float[Tensor, "k n"]:
        """Products with k vectors, one after the other."""
        return torch.stack([layout.flatten(self.vector(layout.unflatten(row))) for row in rows])

    def block(self, rows: Float[Tensor, "k n"], layout: Layout, *, width: int) -> Float[Tensor, "k n"]:
        """Products with k vectors, ``width`` at a time through one vectorised backward pass.

        ``is_grads_batched=True`` would do the same but falls back to loops for convolutions, norms and activations and
        crashes on GroupNorm; ``vmap`` over ``autograd.grad`` has batching rules for all of them.
        """

        def one(*v: Tensor) -> Tensors:
            return self.vector(v)

        parts = [
            layout.flatten_rows(torch.func.vmap(one)(*layout.unflatten_rows(piece))) for piece in rows.split(width)
        ]
        return torch.cat(parts)


class GradientGraph(Graph):
    """Hessian products by reverse-over-reverse: the gradient of ⟨∇L, v⟩ on the retained graph of ∇L.

    References:
        Pearlmutter, "Fast exact multiplication by the Hessian" (1994).
    """

    def __init__(self, gradient: Tensors, leaves: Tensors, weight: float) -> None:
        super().__init__(leaves, weight)
        self._active = [index for index, part in enumerate(gradient) if part.requires_grad]
        self._gradient = tuple(gradient[index] for index in self._active)

    def vector(self, v: Tensors) -> Tensors:
        if not self._active:
            return tuple(torch.zeros_like(leaf) for leaf in self.leaves)
        return torch.autograd.grad(
            self._gradient,
            self.leaves,
            tuple(v[index] for index in self._active),
            retain_graph=True,
            materialize_grads=True,
        )


class SandwichGraph(Graph):
    """Products with JᵀΛJ, where J is the Jacobian of the outputs and Λ acts on the outputs.

    J v is the derivative of Jᵀu in u, so that only reverse mode is needed; it has all operators that forward mode lacks.
    """

    def __init__(self, outputs: Tensor, leaves: Tensors, weight: float, curvature: Callable[[Tensor], Tensor]) -> None:
        super().__init__(leaves, weight)
        self._outputs = outputs
        self._curvature = curvature
        self._dual = torch.zeros_like(outputs, requires_grad=True)
        pulled: Sequence[Tensor] = ()
        if outputs.requires_grad:
            pulled = torch.autograd.grad(outputs, leaves, self._dual, create_graph=True, materialize_grads=True)
        self._active = [index for index, part in enumerate(pulled) if part.requires_grad]
        self._pulled = tuple(pulled[index] for index in self._active)

    def vector(self, v: Tensors) -> Tensors:
        if not self._active:
            return tuple(torch.zeros_like(leaf) for leaf in self.leaves)
        directions = tuple(v[index] for index in self._active)
        (pushed,) = torch.autograd.grad(self._pulled, self._dual, directions, retain_graph=True, materialize_grads=True)
        return torch.autograd.grad(
            self._outputs, self.leaves, self._curvature(pushed), retain_graph=True, materialize_grads=True
        )

    def adjoint_forms(self, *, seed: int) -> tuple[float, float]:
        """⟨w, J Jᵀw⟩ and ‖Jᵀw‖² for a random w, equal where J and Jᵀ are adjoint."""
        if not self._outputs.requires_grad:
            return 0.0, 0.0
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(self._outputs.shape, generator=generator, dtype=torch.float64).to(self._outputs)
        pulled = torch.autograd.grad(self._outputs, self.leaves, w, retain_graph=True, materialize_grads=True)
        backward = sum(float(part.double().square().sum()) for part in pulled)
        if not self._active:
            return 0.0, backward
        directions = tuple(pulled[index] for index in self._active)
        (pushed,) = torch.autograd.grad(self._pulled, self._dual, directions, retain_graph=True, materialize_grads=True)
        return float((w.double() * pushed.double()).sum()), backward
