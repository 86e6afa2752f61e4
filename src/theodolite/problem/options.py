"""How a problem is evaluated: mode, precision, pieces, engine, seed, memory and ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from theodolite.errors import ProblemError
from theodolite.problem.arguments import whole

Mode = Literal["eval", "train", "as is"]
Engine = Literal["auto", "retained", "vmap", "fresh", "difference"]
MODES = ("eval", "train", "as is")
ENGINES = ("auto", "retained", "vmap", "fresh", "difference")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keyword arguments of a problem, as ``Problem`` documents them.

    Raises:
        ProblemError: one of them is not known.
    """

    mode: Mode = "eval"
    dtype: torch.dtype | None = None
    microbatch: int | None = None
    engine: Engine = "auto"
    seed: int = 0
    memory: int | None = None
    group: Any = "auto"

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, MODES)
        _one_of("engine", self.engine, ENGINES)
        if self.microbatch is not None:
            whole(microbatch=self.microbatch)
        if self.microbatch is not None and self.microbatch < 1:
            raise ProblemError(f"Expected microbatch to be at least 1 sample or None, found {self.microbatch}.")
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise ProblemError(f"Expected dtype to be a floating-point type, found {self.dtype!r}. Use torch.float64.")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ProblemError(f"Expected {name} to be one of {', '.join(map(repr, allowed))}, found {value!r}.")
