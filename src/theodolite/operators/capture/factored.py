"""Per-sample gradients as sums of outer products, g_i = Σ_t δ_it ⊗ a_it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Num
from torch import Tensor

from theodolite.operators.capture.use import FEW, Block, Kind, Use, Work

# Products of factors at a time.
PRODUCTS = 2**20


class Factored(Use):
    """A weight that is applied linearly: outer products of inputs and output gradients, summed over positions.

    The gradient of a block (L, K) is Σ_t D_it ⊗ A_it; of a ``transposed`` one, (K, L), its transpose.

    Args:
        block: the part of the parameter that is read.
        kind: ``"linear"`` or ``"convolution"`` (inputs unfolded).
        site: number of the operation.
        A: inputs.
        D: gradients of the outputs.
        transposed: whether the weight has inputs first, (K, L).
    """

    def __init__(
        self,
        block: Block,
        kind: Kind,
        site: int,
        *,
        A: Float[Tensor, "b t k"],
        D: Float[Tensor, "b t l"],
        transposed: bool = False,
    ) -> None:
        super().__init__(block, kind, site, A.shape[0])
        self.A = A
        self.D = D
        self.transposed = transposed

    @property
    def left(self) -> Tensor:
        """The factor along the rows of the block."""
        return self.A if self.transposed else self.D

    @property
    def right(self) -> Tensor:
        """The factor along its columns."""
        return self.D if self.transposed else self.A

    @property
    def positions(self) -> int:
        """Outer products of each sample."""
        return self.A.shape[1]

    @property
    def nbytes(self) -> int:
        return self.A.nbytes + self.D.nbytes

    def slab(self, start: int, stop: int, work: Work | None = None) -> Float[Tensor, "b r c"]:
        left, right = self.left[:, :, start:stop].transpose(1, 2), self.right
        out = None if work is None else work.like(right, self.samples, stop - start, right.shape[2])
        return torch.mul(left, right, out=out) if self.positions == 1 else torch.bmm(left, right, out=out)

    def dots(self, direction: Float[Tensor, "..."]) -> Float[Tensor, " b"]:
        return ((self.left @ direction.reshape(self.block.rows, -1)) * self.right).flatten(1).sum(1)

    def take(self, index: Num[Tensor, " s"]) -> Factored:
        return Factored(self.block, self.kind, self.site, A=self.A[index], D=self.D[index], transposed=self.transposed)

    def norms(self) -> Float[Tensor, " b"]:
        L, K, T = self.block.rows, self.block.columns, self.positions
        if T * (L + K) >= L * K:
            return super().norms()
        products = (self.left @ self.left.transpose(1, 2)) * (self.right @ self.right.transpose(1, 2))
        # Rounding may leave a sum of squares a hair below zero.
        return products.flatten(1).sum(1).double().cpu().clamp_min(0).sqrt()

    def gram(self, other: Use | None = None) -> Float[Tensor, "b c"]:
        other = self if other is None else other
        if isinstance(other, Factored) and self._by_products(other):
            return self._products(other)
        return super().gram(other)

    def _by_products(self, other: Factored) -> bool:
        """Whether products of factors cost less arithmetic than materialised gradients.

        B C T S (L + K) against (B T + C S) L K + B C L K multiplications.
        """
        L, K = self.block.rows, self.block.columns
        B, C, T, S = self.samples, other.samples, self.positions, other.positions
        materialised = (B * T + (0 if other is self else C * S)) * L * K + B * C * L * K
        return materialised >= B * C * T * S * (L + K)

    def _products(self, other: Factored) -> Float[Tensor, "b c"]:
        """Σ_ts ⟨left_it, left_js⟩ ⟨right_it, right_js⟩, for a few samples at a time; with itself half of them."""
        B, C, T, S = self.samples, other.samples, self.positions, other.positions
        step = max(1, PRODUCTS // max(1, T * C * S))
        if other is self and B >= FEW:
            step = min(step, -(-B // 2))
        left, right = other.left.reshape(C * S, -1).T, other.right.reshape(C * S, -1).T
        found = torch.empty(B, C, dtype=torch.float64)
        for start in range(0, B, step):
            mine, theirs = slice(start, start + step), start if other is self else 0
            products = self.left[mine].flatten(0, 1) @ left[:, theirs * S :]
            products.mul_(self.right[mine].flatten(0, 1) @ right[:, theirs * S :])
            if T * S > 1:
                products = products.reshape(-1, T, C - theirs, S).sum((1, 3))
            part = products.cpu()
            found[mine, theirs:] = part
            if other is self:
                found[theirs:, mine] = part.T
        return found


def concatenated(uses: list[Factored]) -> Factored:
    """Uses of one weight at several sites as one use with the positions of all."""
    first = uses[0]
    if len(uses) == 1:
        return first
    return Factored(
        first.block,
        first.kind,
        first.site,
        A=torch.cat([use.A for use in uses], dim=1),
        D=torch.cat([use.D for use in uses], dim=1),
        transposed=first.transposed,
    )
