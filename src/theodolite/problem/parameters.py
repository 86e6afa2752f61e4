"""Which parameters are surveyed, and how they are laid out in one flat vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import ParameterError

Selection = str | Sequence[str] | Callable[[str, nn.Parameter], bool] | None


@dataclass(frozen=True)
class Layout:
    """Names, shapes and positions of the parameters in a flat vector, in the order of ``named_parameters()``.

    Args:
        names: names of the selected parameters; a tied weight has its first name only.
        shapes: their shapes.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each parameter."""
        return tuple(shape.numel() for shape in self.shapes)

    @property
    def n(self) -> int:
        """Number of parameters altogether."""
        return sum(self.sizes)

    @property
    def slices(self) -> dict[str, slice]:
        """Where each parameter lies in the flat vector."""
        found, start = {}, 0
        for name, size in zip(self.names, self.sizes, strict=True):
            found[name] = slice(start, start + size)
            start += size
        return found

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Parameter names of each layer: the module that owns them, e.g. ``blocks.0.attn.q_proj``."""
        found: dict[str, list[str]] = {}
        for name in self.names:
            found.setdefault(name.rpartition(".")[0] or name, []).append(name)
        return {layer: tuple(names) for layer, names in found.items()}

    @property
    def layer_slices(self) -> dict[str, slice]:
        """Where each layer lies in the flat vector; the parameters of a module follow one another."""
        slices = self.slices
        return {layer: slice(slices[names[0]].start, slices[names[-1]].stop) for layer, names in self.layers.items()}

    def flatten(self, tensors: Sequence[Tensor]) -> Float[Tensor, " n"]:
        """Concatenate one tensor for each parameter."""
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    def unflatten(self, flat: Float[Tensor, " n"]) -> tuple[Tensor, ...]:
        """Views of a flat vector with the shapes of the parameters."""
        return tuple(part.view(shape) for part, shape in zip(flat.split(self.sizes), self.shapes, strict=True))

    def unflatten_rows(self, rows: Float[Tensor, "k n"]) -> tuple[Tensor, ...]:
        """Views of k flat vectors, each of shape (k, *parameter)."""
        k = rows.shape[0]
        parts = rows.split(self.sizes, dim=1)
        return tuple(part.reshape(k, *shape) for part, shape in zip(parts, self.shapes, strict=True))

    def flatten_rows(self, tensors: Sequence[Tensor]) -> Float[Tensor, "k n"]:
        """Inverse of ``unflatten_rows``."""
        return torch.cat([tensor.reshape(tensor.shape[0], -1) for tensor in tensors], dim=1)


def select_parameters(model: nn.Module, selection: Selection) -> dict[str, nn.Parameter]:
    """Trainable floating-point parameters of ``model`` that match ``selection``.

    Args:
        model: where to look.
        selection: a glob (``"blocks.*.attn.*"``), several globs, a predicate of name and parameter, or None for all.
            A glob also matches a module's name, and then takes all parameters below it.

    Raises:
        ParameterError: nothing matches, one of several globs matches nothing, or what matches is frozen.
    """
    named = dict(model.named_parameters())
    chosen = {name: parameter for name, parameter in named.items() if _matches(name, parameter, selection)}
    trainable = {
        name: parameter
        for name, parameter in chosen.items()
        if parameter.requires_grad and parameter.is_floating_point()
    }
    asked = "any parameter" if selection is None else f"params={selection!r}"
    idle = (
        [] if isinstance(selection, str) or callable(selection) else [p for p in selection or () if not _hits(named, p)]
    )
    if trainable and not idle:
        return trainable
    if trainable:
        raise ParameterError(
            f"Every pattern of {asked} must match a parameter of {type(model).__name__}, found none for "
            f"{', '.join(map(repr, idle))}. It has {len(named)} parameters: {_some(named)}."
        )
    if chosen:
        raise ParameterError(
            f"Expected trainable parameters for {asked}, found {len(chosen)} that match but all are frozen or not "
            f"floating-point ({_some(chosen)}). Set requires_grad_(True) on those to survey."
        )
    raise ParameterError(
        f"No parameter of {type(model).__name__} matches {asked}. It has {len(named)} parameters: {_some(named)}."
    )


def _hits(named: Mapping[str, nn.Parameter], pattern: str) -> bool:
    return any(_matches(name, parameter, pattern) for name, parameter in named.items())


def _matches(name: str, parameter: nn.Parameter, selection: Selection) -> bool:
    if selection is None:
        return True
    if callable(selection):
        return bool(selection(name, parameter))
    patterns = [selection] if isinstance(selection, str) else selection
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for pattern in patterns)


def _some(named: Mapping[str, object], *, limit: int = 8) -> str:
    names = list(named)
    return ", ".join(names[:limit]) + (f", … ({len(names) - limit} more)" if len(names) > limit else "") or "none"
