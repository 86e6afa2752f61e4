"""Parts of the data: the samples that come first in one seeded order, and what is left of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from theodolite.problem.data import map_tensors, tensors_of

Rows = Int[Tensor, " _"]  # each batch has a number of rows of its own


@final
class Drawn:
    """Chosen samples of batches, each batch walked once and what is left of it joined with the rest where shapes allow.

    Ten samples out of a hundred batches would else be ten evaluations. Samples are joined whose tensors agree in all but the
    first dimension, as sequences padded to one length do, and the others stay apart: the loss is a sum over samples, which
    no way to cut it into batches changes.

    Args:
        batches: re-iterable.
        sizes: samples of each batch.
        chosen: the rows to take of each batch, ascending.
    """

    def __init__(self, batches: Iterable[Any], sizes: Sequence[int], chosen: Sequence[Rows]) -> None:
        self._batches, self._sizes, self._chosen = batches, sizes, chosen
        self._largest = max(sizes)

    def __iter__(self) -> Iterator[Any]:
        waiting: dict[Any, list[Any]] = {}
        held: dict[Any, int] = {}
        for batch, size, rows in zip(self._batches, self._sizes, self._chosen, strict=True):
            if len(rows) == size:
                yield batch
            elif len(rows):
                form = _form(batch, size), tuple(_by_sample(tensor, size) for tensor in tensors_of(batch))
                if held.get(form, 0) + len(rows) > self._largest:
                    yield _joined(waiting.pop(form), form[1])
                    held[form] = 0
                waiting.setdefault(form, []).append(_picked(batch, size, rows))
                held[form] = held.get(form, 0) + len(rows)
        for (_, sampled), pieces in waiting.items():
            yield _joined(pieces, sampled)


def first_samples(sizes: Sequence[int], *, count: int, seed: int) -> tuple[list[Rows], list[Rows]]:
    """The rows of each batch that come first in a random order of all samples, and the others.

    Args:
        sizes: samples of each batch.
        count: how many come first; smaller counts under the same seed are contained in larger ones.
        seed: of the order.
    """
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed))
    first = torch.zeros(sum(sizes), dtype=torch.bool)
    first[order[:count]] = True
    parts = first.split(list(sizes))
    return [part.nonzero()[:, 0] for part in parts], [(~part).nonzero()[:, 0] for part in parts]


def first_batches(sizes: Sequence[int], *, count: int, seed: int) -> tuple[list[Rows], list[Rows]]:
    """The same by whole batches, as few as hold ``count`` samples: where the samples of a batch are coupled."""
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).tolist()
    first, held = set(), 0
    for index in order:
        if held >= count:
            break
        first.add(index)
        held += sizes[index]
    nothing = torch.arange(0)
    whole = [torch.arange(size) for size in sizes]
    return (
        [rows if index in first else nothing for index, rows in enumerate(whole)],
        [nothing if index in first else rows for index, rows in enumerate(whole)],
    )


def _picked(batch: Any, size: int, rows: Rows) -> Any:
    """Those rows of every tensor that has a row for each sample; other tensors go whole, as they do when a batch is cut."""
    return map_tensors(batch, lambda tensor: tensor[rows.to(tensor.device)] if _by_sample(tensor, size) else tensor)


def _joined(pieces: list[Any], sampled: Sequence[bool]) -> Any:
    """Pieces of one form as one batch: the tensors with a row for each sample one after the other."""
    if len(pieces) == 1:
        return pieces[0]
    columns = zip(zip(*map(tensors_of, pieces), strict=True), sampled, strict=True)

    def join(_: Tensor) -> Tensor:
        column, by_sample = next(columns)
        return torch.cat(column) if by_sample else column[0]

    return map_tensors(pieces[0], join)


def _by_sample(tensor: Tensor, size: int) -> bool:
    return tensor.dim() > 0 and tensor.shape[0] == size


def _form(tree: Any, size: int) -> object:
    """What two batches must share to be joined: structure, shapes but for the first dimension, and all that is no sample."""
    if isinstance(tree, Tensor):
        return (tree.shape[1:], tree.dtype, tree.device) if _by_sample(tree, size) else id(tree)
    if isinstance(tree, Mapping):
        return type(tree), tuple((key, _form(value, size)) for key, value in tree.items())
    if isinstance(tree, list | tuple):
        return type(tree), tuple(_form(value, size) for value in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = dataclasses.fields(tree)
        return type(tree), tuple((field.name, _form(getattr(tree, field.name), size)) for field in fields)
    return tree if isinstance(tree, bool | int | float | str | None) else id(tree)
