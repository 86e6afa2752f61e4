"""Parameters that are NaN or infinite, by name, and the errors that they explain."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from theodolite.errors import NonFiniteError

NAMED = 3  # parameters that a message names


def non_finite_loss(
    value: float, *, where: str = "the current parameters", parameters: Mapping[str, Tensor] | None = None
) -> NonFiniteError:
    """The error for a loss that has no derivatives.

    Args:
        value: of the loss.
        where: in words.
        parameters: of the model by name, to be named if they are not finite either.
    """
    culprits = non_finite_in_words(parameters or {})
    cause = f", as are {culprits}" if culprits else ""
    return NonFiniteError(
        f"Expected a finite loss at {where}, found {value}{cause}. Derivatives do not exist there. Check the inputs for NaN, and "
        "whether training has diverged (an earlier checkpoint may still be finite)."
    )


def refuse_non_finite(parameters: Mapping[str, Tensor]) -> None:
    """Raise if a parameter is NaN or infinite.

    Cost: one pass over the parameters.

    Raises:
        NonFiniteError: one is.
    """
    if culprits := non_finite_in_words(parameters):
        raise NonFiniteError(
            f"Expected finite parameters, found {culprits}. Training has diverged, or the checkpoint is damaged: load an earlier "
            "one, or leave them out with params= if the model's outputs do not depend on them."
        )


def non_finite_in_words(parameters: Mapping[str, Tensor]) -> str:
    """How many entries of which parameters are NaN or infinite; empty where none is."""
    bad = {name: int((~torch.isfinite(tensor.detach())).sum()) for name, tensor in parameters.items()}
    named = [f"{count:,} of {parameters[name].numel():,} entries of {name}" for name, count in bad.items() if count]
    more = f" and {len(named) - NAMED} more parameters" if len(named) > NAMED else ""
    return f"NaN or infinity in {', '.join(named[:NAMED])}{more}" if named else ""
