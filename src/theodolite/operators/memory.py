"""How many bytes a graph keeps alive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class SavedBytes:
    """Bytes of the tensors saved for backward, each storage counted once."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        self.total = 0
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in known}

    def count(self, tensor: Tensor) -> Tensor:
        """Hook for saved tensors: counts and passes through."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor


@contextmanager
def counting_saved_bytes(known: Iterable[Tensor]) -> Iterator[SavedBytes]:
    """Count what autograd saves inside the context, except storages in ``known`` (parameters live anyway)."""
    counter = SavedBytes(known)
    with torch.autograd.graph.saved_tensors_hooks(counter.count, lambda tensor: tensor):
        yield counter
