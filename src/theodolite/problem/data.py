"""Batches as fixed data: walked again and again, split, moved, and compared between passes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence, Sized
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from theodolite.errors import DataError, NotDeterministicError
from theodolite.problem.guard import random_state, restore_random_state, seed_everything

# Batches of a loader are kept after the first pass while they fit this; beyond it the loader is walked at every pass.
KEEP_BYTES = 2 * 2**30


class Batches:
    """Fixed data that can be walked many times, equal at every walk.

    A list or tuple is used as it is. Anything else is kept in memory after its first walk while it fits ``keep`` bytes,
    and walked again at every pass beyond, each batch compared with its fingerprint from the first pass.

    Args:
        source: a re-iterable of batches.
        keep: bytes of batches to keep in memory.

    Raises:
        DataError: ``source`` cannot be walked twice, or shuffles.
    """

    def __init__(self, source: Iterable[Any], *, keep: int = KEEP_BYTES) -> None:
        _refuse_unfixed(source)
        self._source = _own_view(source)
        self._kept: list[Any] | None = list(source) if isinstance(source, list | tuple) else None
        self._fingerprints: list[tuple[float, ...]] = []
        self._keep = keep
        self._first: Any = None
        self._first_fingerprint: tuple[float, ...] | None = None

    def __iter__(self) -> Iterator[Any]:
        if self._kept is not None:
            yield from self._kept
        elif self._fingerprints:
            yield from self._walk_again()
        else:
            yield from self._walk_first()

    @property
    def is_list(self) -> bool:
        """Whether the batches were given as a list or tuple, which cannot change between passes."""
        return isinstance(self._source, list | tuple)

    @property
    def in_memory(self) -> bool:
        """Whether a walk costs no loading."""
        return self._kept is not None

    def first(self) -> Any:
        """The first batch, the same object at every call: starting a loader's workers takes seconds."""
        if self._first is None:
            self._first = next(iter(self))
        return self._first

    def first_fingerprint(self) -> tuple[float, ...]:
        """That of the first batch, computed once."""
        if self._first_fingerprint is None:
            self._first_fingerprint = fingerprint(self.first())
        return self._first_fingerprint

    def first_again(self) -> Any:
        """The first batch of a fresh walk under other random numbers, to compare with the first pass.

        Raises:
            DataError: there is none, because the source is exhausted after one pass.
        """
        for batch in _apart(self._source, seed=torch.initial_seed() + 1):
            return batch
        raise DataError(
            f"Expected batches that can be walked many times, found a {type(self._source).__name__} that gave batches once "
            "and none the second time: it is exhausted after one pass. Pass list(batches)."
        )

    def _walk_first(self) -> Iterator[Any]:
        kept: list[Any] | None = []
        fingerprints, held = [], 0
        for batch in _apart(self._source):
            fingerprints.append(fingerprint(batch))
            held += sum(tensor.nbytes for tensor in tensors_of(batch))
            if kept is not None:
                kept.append(batch)
            if held > self._keep:
                kept = None
            yield batch
        if not fingerprints:
            raise _empty()
        self._fingerprints, self._kept = fingerprints, kept

    def _walk_again(self) -> Iterator[Any]:
        expected, count = len(self._fingerprints), 0
        for batch in _apart(self._source):
            count += 1
            if count <= expected:
                now, before = fingerprint(batch), self._fingerprints[count - 1]
                if now != before:
                    raise NotDeterministicError(cause_of_change(now, before, where=f"batch {count - 1}"))
                yield batch
        if count != expected:
            raise NotDeterministicError(
                f"Expected {expected} batches as in the first pass, found {count}. The loader does not "
                "give the same data at every pass: pass a list of batches, or a loader without random sampling."
            )


def _own_view(source: Iterable[Any]) -> Iterable[Any]:
    """The source, for a DataLoader with persistent workers a copy with workers of its own.

    Such a loader has one iterator, and a second ``iter()`` would end the training epoch that is under way.
    """
    if isinstance(source, DataLoader) and source.persistent_workers:
        view = copy.copy(source)
        view._iterator = None
        return view
    return source


def _apart(source: Iterable[Any], *, seed: int | None = None) -> Iterator[Any]:
    """Walk a loader on a random stream of its own: DataLoader draws at every iter(), from torch's global generator or from
    the one that it was given, which a loader for training may share."""
    generator = getattr(source, "generator", None)
    if isinstance(generator, torch.Generator):
        before = generator.get_state()
        try:
            yield from _on_own_stream(source, seed=seed)
        finally:
            generator.set_state(before)
    else:
        yield from _on_own_stream(source, seed=seed)


def _on_own_stream(source: Iterable[Any], *, seed: int | None) -> Iterator[Any]:
    outer = random_state()
    if seed is not None:
        seed_everything(seed)
    iterator: Iterator[Any] | None = None
    inner = random_state()
    while True:
        outer = outer if iterator is None else random_state()
        try:
            restore_random_state(inner)
            iterator = iter(source) if iterator is None else iterator
            batch = next(iterator)
            inner = random_state()
        except StopIteration:
            return
        finally:
            restore_random_state(outer)
        yield batch


def _refuse_unfixed(source: object) -> None:
    if isinstance(source, Tensor) or not isinstance(source, Iterable):
        raise DataError(
            f"Expected batches: an iterable of (inputs, targets), found {type(source).__name__}. "
            "Wrap a single batch in a list: [(inputs, targets)]."
        )
    if isinstance(source, Iterator):
        raise DataError(
            f"Expected batches that can be walked many times, found a {type(source).__name__}, which is exhausted after "
            "one pass. Pass list(batches), or the loader itself instead of iter(loader)."
        )
    if isinstance(source, Mapping):
        raise DataError("Expected an iterable of batches, found one mapping. Wrap a single batch in a list: [batch].")
    if _known_empty(source):
        raise _empty()
    if isinstance(source, DataLoader) and not isinstance(source.dataset, IterableDataset):
        sampler = getattr(source.batch_sampler, "sampler", source.sampler)
        if isinstance(sampler, RandomSampler):
            raise NotDeterministicError(
                "Expected the same batches at every pass, found a DataLoader that shuffles (RandomSampler). Every product "
                "would see other data. Use shuffle=False, or pass a list of batches: list(itertools.islice(loader, k))."
            )


def _known_empty(source: object) -> bool:
    with suppress(TypeError):  # a loader over a stream has a __len__ that raises
        return isinstance(source, Sized) and len(source) == 0
    return False


def _empty() -> DataError:
    return DataError("Expected at least one batch, found none: the batches are empty. Check the loader or the list.")


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """All tensors in a batch: a tensor, or nested tuples, lists, mappings and dataclasses."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors_of(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors_of(value)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from tensors_of(getattr(tree, field.name))


def map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A batch of the same structure with ``function`` applied to every tensor."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return _with_values(tree, {key: map_tensors(value, function) for key, value in tree.items()})
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(value, function) for value in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(map_tensors(value, function) for value in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        changes = {field.name: map_tensors(getattr(tree, field.name), function) for field in dataclasses.fields(tree)}
        return dataclasses.replace(cast(Any, tree), **changes)
    return tree


def _with_values(tree: Mapping[Any, Any], values: dict[Any, Any]) -> Mapping[Any, Any]:
    """A mapping of the same type, such as a tokenizer's BatchEncoding, whose entries are also attributes."""
    if type(tree) is dict or not isinstance(tree, MutableMapping):
        return values
    other = copy.copy(tree)
    other.update(values)
    return other


def samples_of(tree: Any) -> int:
    """Number of samples in a batch: the first dimension of its first tensor."""
    for tensor in tensors_of(tree):
        if tensor.dim() > 0:
            return tensor.shape[0]
    raise DataError(
        f"Expected a batch with a tensor whose first dimension counts samples, found {type(tree).__name__} without any. "
        "Put tensors into tuples, lists, mappings or dataclasses."
    )


def split(tree: Any, size: int) -> list[Any]:
    """Cut a batch along its first dimension into pieces of at most ``size`` samples.

    Tensors whose first dimension is not the number of samples go whole into every piece.
    """
    samples = samples_of(tree)
    if samples <= size:
        return [tree]
    return [piece(tree, start, start + size) for start in range(0, samples, size)]


def piece(tree: Any, start: int, stop: int) -> Any:
    """Samples ``start`` to ``stop`` of a batch, cut as ``split`` cuts it."""
    samples = samples_of(tree)

    def cut(tensor: Tensor) -> Tensor:
        return tensor[start:stop] if tensor.dim() > 0 and tensor.shape[0] == samples else tensor

    return map_tensors(tree, cut)


def move(tree: Any, *, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Bring a batch to ``device``, and its floating-point tensors to ``dtype``; made in inference mode, it is copied."""

    def place(tensor: Tensor) -> Tensor:
        usable = tensor.clone() if tensor.is_inference() else tensor
        return usable.to(device, dtype if tensor.is_floating_point() else None)

    with torch.inference_mode(False):
        return map_tensors(tree, place)


def fingerprint(tree: Any) -> tuple[float, ...]:
    """A few numbers that change when a batch changes or is reordered: sizes, and sums weighted by position."""
    numbers: list[float] = []
    for tensor in tensors_of(tree):
        flat = tensor.detach().reshape(-1).to(torch.float64)
        # Multiples of the golden ratio modulo 1: evenly spaced weights would give many orders of class labels one sum.
        positions = torch.arange(flat.numel(), dtype=torch.float64, device=flat.device)
        weights = 1.0 + torch.frac(positions * 0.6180339887498949)
        numbers += [float(flat.numel()), float(torch.nan_to_num(flat).dot(weights))]
    return tuple(numbers)


def cause_of_change(now: Sequence[float], before: Sequence[float], *, where: str) -> str:
    """Say that data changed between passes, and the likely cause."""
    changed = [index for index, (a, b) in enumerate(zip(now, before, strict=False)) if a != b]
    targets_too = len(now) != len(before) or (len(before) - 1) in changed
    cause = (
        "inputs and targets changed together, so the loader probably shuffles; use shuffle=False"
        if targets_too
        else "the targets are the same but the inputs changed, so there is probably random augmentation; switch it off"
    )
    return (
        f"Expected the same data at every pass, found other data in {where} at the second: {cause}, or pass a list of "
        "batches, which is fixed."
    )
