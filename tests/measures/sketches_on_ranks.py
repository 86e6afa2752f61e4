"""What each of two processes sketches of its half of the data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from theodolite.errors import RankError
from theodolite.measures import gradient_sketch
from theodolite.problem import Problem

SIZES = (5, 3, 4, 2)


def data() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(k, 12, generator=g, dtype=torch.float64), torch.randint(4, (k,), generator=g)) for k in SIZES]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).double()


def on_rank(rank: int) -> dict[str, object]:
    # Two chunks on the first rank, one on the second.
    batches = data()[:2] if rank == 0 else [tuple(map(torch.cat, zip(*data()[2:], strict=True)))]
    problem = Problem(network(), nn.CrossEntropyLoss(), batches)
    found = [gradient_sketch(problem, size=64, repeats=8, seed=seed) for seed in range(4)]
    rough = gradient_sketch(problem, size=64, repeats=8, exact=False)
    drawn = gradient_sketch(problem, size=64, samples=8)
    alone = gradient_sketch(problem.replace(group=None), size=64)
    try:
        gradient_sketch(problem, size=64 + rank)
        message = ""
    except RankError as error:
        message = str(error)
    return {
        "grams": torch.stack([torch.tensor(record.gram) for record in found]),
        "stderrs": torch.stack([torch.tensor(record.stderrs) for record in found]),
        "agreement": torch.tensor([record.agreement for record in found]),
        "ranks": torch.tensor(found[0].ranks),
        "indices": torch.tensor(found[0].indices),
        "exact without more passes": torch.tensor(rough.exact),
        "drawn": torch.stack([torch.tensor(drawn.ranks), torch.tensor(drawn.indices)]),
        "alone": len(alone.gram),
        "covariance trace": torch.tensor([found[0].covariance_trace.value, found[0].covariance_trace.stderr]),
        "other sizes": message,
    }
