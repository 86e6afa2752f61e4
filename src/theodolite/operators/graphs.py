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
    """A product on one chunk, linear in its vector; the sum over chunks is the operator up to a factor.

    Args:
        leaves: the parameters that the graph was built on.
        weight: weight of the chunk.
    """

    def __init__(self, leaves: Tensors, weight: float) -> None:
        self.leaves = leaves
        self.weight = weight

    @abstractmethod
    def vector(self, v: Tensors) -> Tensors:
        """The product with one vector, given as one tensor for each parameter; returned so by square operators."""

    def loop(self, rows: Float[Tensor, "k n"], layout: Layout) -> Float[Tensor, "k m"]:
        """Products with k vectors, one after the other."""
        return torch.stack([layout.flatten(self.vector(layout.unflatten(row))) for row in rows])

    def block(self, rows: Float[Tensor, "k n"], layout: Layout, *, width: int) -> Float[Tensor, "k m"]:
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


class OutputGraph(Graph):
    """The Jacobian J of the outputs of one chunk, and its transpose.

    J v is the derivative of Jᵀu in u, so that only reverse mode is needed; it has all operators that forward mode lacks.

    Attributes:
        held: bytes that are kept beside what autograd saves.
    """

    def __init__(self, outputs: Tensor, leaves: Tensors, weight: float) -> None:
        super().__init__(leaves, weight)
        self.outputs = outputs
        self.held = outputs.nbytes
        # One number seen as many: the derivative is taken in it, its values are never used.
        self._dual = outputs.new_zeros(()).expand(outputs.shape).detach().requires_grad_()
        pulled: Sequence[Tensor] = ()
        if outputs.requires_grad:
            pulled = torch.autograd.grad(outputs, leaves, self._dual, create_graph=True, materialize_grads=True)
        self._active = [index for index, part in enumerate(pulled) if part.requires_grad]
        self._pulled = tuple(pulled[index] for index in self._active)

    def vector(self, v: Tensors) -> Tensors:
        return (self.push(v),)

    def push(self, v: Tensors) -> Tensor:
        """J v, of the shape of the outputs."""
        if not self._active:
            return torch.zeros_like(self.outputs)
        directions = tuple(v[index] for index in self._active)
        (pushed,) = torch.autograd.grad(self._pulled, self._dual, directions, retain_graph=True, materialize_grads=True)
        return pushed

    def pull(self, u: Tensor) -> Tensors:
        """Jᵀu, one tensor for each parameter."""
        if not self.outputs.requires_grad:
            return tuple(torch.zeros_like(leaf) for leaf in self.leaves)
        return torch.autograd.grad(self.outputs, self.leaves, u, retain_graph=True, materialize_grads=True)

    def adjoint_forms(self, *, seed: int) -> tuple[float, float]:
        """⟨w, J Jᵀw⟩ and ‖Jᵀw‖² for a random w, equal where J and Jᵀ are adjoint."""
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(self.outputs.shape, generator=generator, dtype=torch.float64).to(self.outputs)
        pulled = self.pull(w)
        backward = sum(float(part.double().square().sum()) for part in pulled)
        return float((w.double() * self.push(pulled).double()).sum()), backward


class SandwichGraph(OutputGraph):
    """Products with JᵀΛJ, where J is the Jacobian of the outputs and Λ acts on the outputs."""

    def __init__(self, outputs: Tensor, leaves: Tensors, weight: float, curvature: Callable[[Tensor], Tensor]) -> None:
        super().__init__(outputs, leaves, weight)
        self._curvature = curvature

    def vector(self, v: Tensors) -> Tensors:
        if not self._active:
            return tuple(torch.zeros_like(leaf) for leaf in self.leaves)
        return self.pull(self._curvature(self.push(v)))
