"""M-FAC: the damped inverse of the empirical Fisher of a sliding window of gradients."""

from __future__ import annotations

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg import LinearOperator

PIECE = 2**18  # columns of the window that are in double precision at a time


@final
class MFAC(LinearOperator):
    """(λI + 1/m Σ g gᵀ)⁻¹ over the last m gradients that were added, by the Woodbury identity.

    Until the window is full the missing gradients count as zero. Inner products, the m×m Cholesky factor and the sums of
    a product are in double precision whatever the gradients are in: λ divides what is left of a difference, so that rounding
    grows with ‖F‖/λ.

    Cost: O(mn) for a product; O(mn + m²) for adding or removing a gradient. Memory: m gradients.

    Args:
        n: length of the gradients.
        window: m, how many gradients are kept.
        damping: λ.
        dtype: of the gradients, and of the vectors that the operator multiplies.
        device: where they live.

    Raises:
        OperatorError: the window is empty or the damping is not positive.

    Example:
        >>> import torch
        >>> from theodolite.operators import MFAC
        >>> inverse = MFAC(3, window=2, damping=0.5, dtype=torch.float64)
        >>> inverse.add(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
        >>> (inverse @ torch.ones(3, dtype=torch.float64)).tolist()
        [1.0, 2.0, 2.0]

    References:
        Frantar, Kurtic, Alistarh, "M-FAC: efficient matrix-free approximations of second-order information" (2021).
    """

    def __init__(
        self,
        n: int,
        *,
        window: int,
        damping: float,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if window < 1:
            raise OperatorError(f"Expected a window of at least one gradient, found {window}.")
        if not (damping > 0 and math.isfinite(damping)):
            raise OperatorError(
                f"Expected a positive damping, found {damping}: {window} gradients span no more than {window} of {n} "
                "directions, and without damping the matrix has no inverse."
            )
        super().__init__(shape=(n, n), dtype=dtype, device=device, symmetric=True)
        self.window = window
        self.damping = damping
        self._ring = torch.zeros(window, n, dtype=dtype, device=device)
        self._order: list[int] = []  # rows of the ring, oldest first
        self._cholesky = torch.zeros(0, 0, dtype=torch.float64, device=device)  # of mλI + ⟨g_i, g_j⟩, oldest first

    @property
    def held(self) -> int:
        """How many gradients the window holds."""
        return len(self._order)

    @property
    def gradients(self) -> Float[Tensor, "h n"]:
        """The gradients in the window, oldest first."""
        return self._ring[self._order]

    def add(self, gradient: Float[Tensor, "..."]) -> None:
        """Take in a gradient; the oldest one leaves a full window.

        Cost: one pass over the window, and O(m²).

        Args:
            gradient: of shape (n,).

        Raises:
            OperatorError: the gradient does not fit.
            NonFiniteError: it is NaN or infinite; the window is left as it was.
        """
        self._refuse_misfit(gradient)
        if gradient.ndim != 1:
            raise OperatorError(
                f"Expected one gradient of shape ({self.shape[1]},), found {tuple(gradient.shape)}. Add them one by one."
            )
        if not bool(torch.isfinite(gradient).all()):
            bad = int((~torch.isfinite(gradient)).sum())
            raise NonFiniteError(
                f"Expected a finite gradient, found {bad} of {gradient.numel()} entries that are NaN or infinite. "
                "The window is unchanged."
            )
        if self.held == self.window:
            self.remove()
        row = next(row for row in range(self.window) if row not in self._order)
        self._ring[row] = gradient.detach()
        self._append(row)

    def remove(self) -> None:
        """Forget the oldest gradient.

        Cost: O(m²).

        Raises:
            OperatorError: the window is empty.
        """
        if not self._order:
            raise OperatorError("Expected a window with gradients to remove one from, found it empty.")
        self._order.pop(0)
        self._cholesky = rank_one_update(self._cholesky[1:, 1:], self._cholesky[1:, 0])

    def logdet(self) -> float:
        """log det(λI + 1/m Σ g gᵀ).

        Cost: O(m).
        """
        pivots = float(self._cholesky.diagonal().log().sum())
        return self.shape[0] * math.log(self.damping) + 2 * pivots - self.held * math.log(self.window * self.damping)

    def _append(self, row: int) -> None:
        """Border the Cholesky factor by the inner products with a new row of the ring."""
        order = [*self._order, row]
        products = self._inner(self._ring[row][:, None])[order, 0]
        bordered = torch.zeros(len(order), len(order), dtype=torch.float64, device=self.device)
        bordered[:-1, :-1] = self._cholesky
        if self._order:
            side = torch.linalg.solve_triangular(self._cholesky, products[:-1, None], upper=False)[:, 0]
            bordered[-1, :-1] = side
            products[-1] -= side.square().sum()
        # What the damping adds is a lower bound of the pivot, which rounding may not undercut.
        bordered[-1, -1] = (products[-1].clamp_min(0.0) + self.window * self.damping).sqrt()
        self._cholesky, self._order = bordered, order

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        if not self._order:
            return V / self.damping
        inner = self._inner(V)[self._order]
        weights = torch.zeros(self.window, V.shape[1], dtype=torch.float64, device=self.device)
        weights[self._order] = torch.cholesky_solve(inner, self._cholesky)
        result = torch.empty_like(V)
        for rows, block, out in zip(*(self._pieces(part) for part in (self._ring.T, V, result)), strict=True):
            out.copy_((block.double() - rows.double() @ weights) / self.damping)
        return result

    def _inner(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        """Inner products with every row of the ring, in double precision."""
        total = torch.zeros(self.window, V.shape[1], dtype=torch.float64, device=self.device)
        for rows, block in zip(self._pieces(self._ring.T), self._pieces(V), strict=True):
            total += rows.T.double() @ block.double()
        return total

    def _pieces(self, V: Float[Tensor, "n k"]) -> tuple[Tensor, ...]:
        pieces: tuple[Tensor, ...] = V.split(max(1, PIECE // self.window))
        return pieces


def rank_one_update(L: Float[Tensor, "m m"], x: Float[Tensor, " m"]) -> Float[Tensor, "m m"]:
    """The Cholesky factor of L Lᵀ + x xᵀ.

    With p = L⁻¹x the factor is L·chol(I + p pᵀ), and chol(I + p pᵀ) has a closed form in the sums s_j = 1 + Σ_{i≤j} p_i², so
    that the whole update is a cumulative sum instead of m dependent steps.

    Cost: O(m²).

    Args:
        L: lower triangular with a positive diagonal.
        x: the update.

    References:
        Gill, Golub, Murray, Saunders, "Methods for modifying matrix factorizations" (1974), method C1.
    """
    if not len(x):
        return L
    p = torch.linalg.solve_triangular(L, x[:, None], upper=False)[:, 0]
    sums = 1.0 + torch.cumsum(p.square(), 0)
    before = torch.cat([sums.new_ones(1), sums[:-1]])
    weighted = L * p
    # Σ_{k>j} L_ik p_k, from the right so that the small tails are summed first.
    tails = torch.cumsum(weighted.flip(1), 1).flip(1) - weighted
    updated: Tensor = L * (sums / before).sqrt() + tails * (p / (sums * before).sqrt())
    return updated
