"""Dot products of single uses equal those of their materialised gradients, whichever way they are computed."""

from __future__ import annotations

import pytest
import torch

from operators.capture.oracle import gram, relative
from theodolite.operators.capture import Factored, Lookup, Rows
from theodolite.operators.capture.combined import Combined
from theodolite.operators.capture.use import FEW, Use, Work, slabs, whole_block

EXACT = 1e-12


def factored(*, samples: int = 5, positions: int, rows: int, columns: int, transposed: bool = False) -> Factored:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(samples, positions, rows, generator=generator, dtype=torch.float64)
    right = torch.randn(samples, positions, columns, generator=generator, dtype=torch.float64)
    A, D = (left, right) if transposed else (right, left)
    return Factored(whole_block("w", (rows, columns)), "linear", 0, A=A, D=D, transposed=transposed)


def lookup(*, vocabulary: int, samples: int = 5, positions: int = 7) -> Lookup:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (samples, positions), generator=generator)
    D = torch.randn(samples, positions, 3, generator=generator, dtype=torch.float64)
    return Lookup(whole_block("table", (vocabulary, 3)), 0, ids=ids, D=D)


USES: dict[str, Use] = {
    "materialised": factored(positions=6, rows=3, columns=4),
    "products of one position": factored(positions=1, rows=30, columns=40),
    "products of positions": factored(positions=2, rows=30, columns=40, transposed=True),
    "many samples": factored(samples=FEW + 1, positions=40, rows=5, columns=4),
    "several slabs": factored(samples=8, positions=300, rows=300, columns=600),
    "a few samples at a time": factored(samples=40, positions=40, rows=300, columns=300),
    "rare rows": lookup(vocabulary=1000),
    "common rows": lookup(vocabulary=2),
    "one row": lookup(vocabulary=1),
}


@pytest.mark.parametrize("name", USES)
def test_dot_products_are_those_of_the_gradients(name: str) -> None:
    use = USES[name]
    rows = use.materialise()
    assert relative(use.gram(), gram(rows)) < EXACT
    assert relative(use.gram(), use.gram().T) < EXACT
    some = torch.tensor([3, 0])
    assert relative(use.gram(use.take(some)), gram(rows)[:, some]) < EXACT
    assert relative(use.norms(), rows.flatten(1).norm(dim=1)) < EXACT


def test_both_ways_of_an_embedding_are_taken() -> None:
    rare, common = USES["rare rows"], USES["common rows"]
    assert isinstance(rare, Lookup)
    assert isinstance(common, Lookup)
    assert rare._by_pairs()
    assert not common._by_pairs()
    assert relative(common._pairs(), gram(common.materialise())) < EXACT


@pytest.mark.parametrize("name", USES)
def test_slabs_in_one_place_are_slabs(name: str) -> None:
    use, work = USES[name], Work()
    for start, stop in slabs(use):
        assert torch.equal(use.slab(start, stop, work), use.slab(start, stop))


def test_a_sum_leaves_its_parts_alone() -> None:
    """A slab of rows is a view of them, which the next part must not be added to in place."""
    table = USES["common rows"]
    assert isinstance(table, Lookup)
    rows = Rows(table.block, "other", 0, torch.ones(table.samples, *table.block.shape, dtype=torch.float64))
    total = Combined([rows, table])
    expected = gram(rows.materialise() + table.materialise())
    assert relative(total.gram(), expected) < EXACT
    assert torch.equal(rows.gradients, torch.ones_like(rows.gradients))
