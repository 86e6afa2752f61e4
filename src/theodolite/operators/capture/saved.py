"""An input of an operation, kept for the backward pass."""

from __future__ import annotations

from torch import Tensor

from theodolite.errors import DerivativeError


class Saved:
    """A tensor that must not have been written to when it is read again.

    Autograd keeps the same storage for its own weight gradient, so that nothing is added to memory.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.detach()
        self._version = self._tensor._version

    @property
    def tensor(self) -> Tensor:
        """The tensor.

        Raises:
            DerivativeError: an operation wrote to it in place meanwhile.
        """
        if self._tensor._version != self._version:
            raise DerivativeError(
                f"Expected the input of an operation to keep its values until the backward pass, found a tensor of shape "
                f"{tuple(self._tensor.shape)} that was written to in place. An ordinary backward pass fails there as well: "
                "replace the in-place operation by a plain one."
            )
        return self._tensor
