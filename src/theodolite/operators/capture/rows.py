"""Per-sample gradients as they are, one row for each sample."""

from __future__ import annotations

from jaxtyping import Float, Num
from torch import Tensor

from theodolite.operators.capture.use import Block, Kind, Use, Work


class Rows(Use):
    """Materialised per-sample gradients: of biases, norm layers, and whatever has no factors.

    Args:
        block: the part of the parameter that is read.
        kind: ``"shift"``, ``"scale"``, ``"other"``, ``"fallback"`` or ``"convolution"``.
        site: number of the operation, -1 for gradients from a fallback.
        gradients: the gradient of each sample in the shape of the block.
    """

    def __init__(self, block: Block, kind: Kind, site: int, gradients: Float[Tensor, "b *shape"]) -> None:
        super().__init__(block, kind, site, gradients.shape[0])
        self.gradients = gradients.reshape(gradients.shape[0], block.rows, -1)

    @property
    def nbytes(self) -> int:
        return self.gradients.nbytes

    def slab(self, start: int, stop: int, work: Work | None = None) -> Float[Tensor, "b r c"]:
        return self.gradients[:, start:stop]

    def dots(self, direction: Float[Tensor, "..."]) -> Float[Tensor, " b"]:
        return self.gradients.flatten(1) @ direction.reshape(-1)

    def take(self, index: Num[Tensor, " s"]) -> Rows:
        return Rows(self.block, self.kind, self.site, self.gradients[index])
