"""K-FAC: Kronecker factors for the blocks of a GGN or Fisher, and EKFAC, which corrects their eigenvalues."""

from __future__ import annotations

from abc import abstractmethod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.linalg import BlockDiagonal, RotatedDiagonal
from theodolite.operators.blockwise import BlockwiseCurvature
from theodolite.operators.factorisation import Factorisation, Form, factorise
from theodolite.operators.pullbacks import Pullbacks
from theodolite.problem import Problem

# Entries of rotated per-sample gradients at a time.
PIECE = 2**22


class KroneckerFactored(BlockwiseCurvature):
    """Blocks in the eigenbases of Kronecker factors; all other parameters in exact blocks.

    Args:
        problem: what to differentiate.
        sharing: how positions that share a weight are treated: ``"expand"`` as independent, ``"reduce"`` summed.
        kind: ``"exact"``, ``"mc"`` or ``"empirical"``.
        draws: random vectors a sample of ``"mc"``.
        seed: of the random vectors.
    """

    def __init__(
        self, problem: Problem, *, sharing: str = "expand", kind: str = "exact", draws: int = 1, seed: int = 0
    ) -> None:
        self.sharing = sharing
        super().__init__(problem, kind=kind, draws=draws, seed=seed)

    def _assemble(self, pullbacks: Pullbacks) -> BlockDiagonal:
        found = factorise(pullbacks, sharing=self.sharing)
        self.forms = _in_words(found)
        bases = [_diagonalised(left, right, pullbacks.problem.dtype) for left, right in found.factors]
        blocks = self._blocks(pullbacks, found.forms, bases)
        blocks += [exact.diagonalised(pullbacks.scale) for exact in found.exact.values()]
        indices = [*(form.index.reshape(-1) for form in found.forms), *(exact.index for exact in found.exact.values())]
        return BlockDiagonal(blocks, indices=indices)

    @abstractmethod
    def _blocks(
        self, pullbacks: Pullbacks, forms: tuple[Form, ...], kronecker: list[RotatedDiagonal]
    ) -> list[RotatedDiagonal]:
        """What stands for the weights, given the Kronecker product of each."""


@final
class KFAC(KroneckerFactored):
    """Every weight's block as one Kronecker product of the covariances of its inputs and of its output gradients.

    Biases are folded into the weights beside which they are added, convolutions are matrices on unfolded inputs, and a
    weight that is used several times has the positions of all its uses. Parameters that no Kronecker product covers have
    exact blocks: dense up to 512 entries (norms, lone biases), diagonal beyond (embeddings, also where they are tied to
    the output layer); ``forms`` says which has which.

    Exact for one data point, and for linear networks under squared error, each in the sharing that fits.

    As a preconditioner of conjugate gradients, ``cg(..., preconditioner=approximation.inverse(damping=δ))``, it pays where the
    GGN has full rank and δ is far below its bulk (359 products became 83 on 600 samples and 82 parameters). With more parameters
    than outputs in the data most eigenvalues are δ, one cluster that plain conjugate gradients meet in one step and a
    preconditioner spreads: there it costs up to four times the products.

    Cost: a forward pass, the backward passes of ``ggn_diagonal``, and an eigendecomposition of each factor.

    Args:
        problem: what to differentiate.
        sharing: ``"expand"`` takes positions that share a weight (of a sequence, of an image) for independent, as they are
            where the loss is a sum over them; ``"reduce"`` sums their gradients and averages their inputs, as where they
            are averaged before the loss.
        kind: ``"exact"``, ``"mc"`` or ``"empirical"``.
        draws: random vectors a sample of ``"mc"``.
        seed: of the random vectors.

    Raises:
        OperatorError: per-sample gradients are not defined, or the criterion is not convex in the outputs.

    Example:
        >>> inputs, targets = torch.randn(64, 10), torch.randint(3, (64,))
        >>> problem = Problem(nn.Linear(10, 3), nn.CrossEntropyLoss(), [(inputs, targets)])
        >>> approximation = KFAC(problem)
        >>> (approximation.inverse(damping=1e-2) @ problem.gradient()).shape
        torch.Size([33])

    References:
        Martens, Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature" (2015).
        Grosse, Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers" (2016).
        Eschenhagen, Immer, Turner, Schneider, Hennig, "Kronecker-factored approximate curvature for modern neural network
        architectures" (2023).
    """

    def _blocks(
        self, pullbacks: Pullbacks, forms: tuple[Form, ...], kronecker: list[RotatedDiagonal]
    ) -> list[RotatedDiagonal]:
        return kronecker


@final
class EKFAC(KroneckerFactored):
    """K-FAC with the eigenvalues replaced by the diagonal of the Fisher in the eigenbasis of its factors.

    No diagonal in that basis is nearer to the block in the Frobenius norm, K-FAC's own included.

    Cost: twice that of ``KFAC``: the data is walked a second time.

    Args:
        problem: what to differentiate.
        sharing: as for ``KFAC``; decides the eigenbasis, the eigenvalues are exact sums over positions.
        kind: ``"exact"``, ``"mc"`` or ``"empirical"``.
        draws: random vectors a sample of ``"mc"``, the same in both walks.
        seed: of the random vectors.

    Raises:
        OperatorError: as for ``KFAC``.

    References:
        George, Laurent, Bouthillier, Ballas, Vincent, "Fast approximate natural gradient descent in a Kronecker-factored
        eigenbasis" (2018).
    """

    def _blocks(
        self, pullbacks: Pullbacks, forms: tuple[Form, ...], kronecker: list[RotatedDiagonal]
    ) -> list[RotatedDiagonal]:
        wide = torch.promote_types(self.dtype, torch.float32)
        totals = [torch.zeros(block.values.shape, dtype=wide, device=self.device) for block in kronecker]
        for pullback in pullbacks:
            for form, block, total in zip(forms, kronecker, totals, strict=True):
                factors = form.factors(pullback)
                if factors is not None:
                    rows, columns = form.ordered(*factors)
                    total += _squares(_turned(rows, block.left), _turned(columns, block.right)).to(wide)
        return [
            RotatedDiagonal((total * pullbacks.scale).to(self.dtype), left=block.left, right=block.right)
            for total, block in zip(totals, kronecker, strict=True)
        ]


def _diagonalised(left: Tensor, right: Tensor, dtype: torch.dtype) -> RotatedDiagonal:
    """The Kronecker product of two covariances in its eigenbasis; rounding below zero is taken off."""
    (a, U), (b, V) = torch.linalg.eigh(left), torch.linalg.eigh(right)
    values = torch.outer(a.clamp_min(0.0), b.clamp_min(0.0))
    return RotatedDiagonal(values.to(dtype), left=U.to(dtype), right=V.to(dtype))


def _turned(side: Float[Tensor, "b t s"], rotation: Float[Tensor, "s s"] | None) -> Float[Tensor, "b t s"]:
    return side if rotation is None else side @ rotation


def _squares(rows: Float[Tensor, "b t r"], columns: Float[Tensor, "b t c"]) -> Float[Tensor, "r c"]:
    """Squares of Σ_t rows ⊗ columns, summed over samples, a few of which are held at a time."""
    if rows.shape[1] == 1:
        return rows[:, 0].square().T @ columns[:, 0].square()
    step = max(1, PIECE // (rows.shape[2] * columns.shape[2]))
    pieces = zip(rows.split(step), columns.split(step), strict=True)
    return torch.stack([torch.bmm(left.mT, right).square().sum(0) for left, right in pieces]).sum(0)


def _in_words(found: Factorisation) -> dict[str, str]:
    words = {name: "exact block" if block.dense else "exact diagonal" for name, block in found.exact.items()}
    for form in found.forms:
        words[form.block.parameter] = "Kronecker" if form.bias is None else f"Kronecker with {form.bias.parameter}"
        if form.bias is not None:
            words[form.bias.parameter] = f"Kronecker with {form.block.parameter}"
    return words
