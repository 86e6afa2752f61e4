"""What each of two processes finds on its slices of vectors; run by ``torch.multiprocessing.spawn``."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distributed.worker import batches, message_of, net, problem_of
from theodolite.linalg import (
    Dense,
    Diagonal,
    LinearOperator,
    Sharded,
    block_lanczos,
    cg,
    decompose,
    diagonal,
    funm_multiply,
    hutchinson,
    hutchpp,
    lanczos,
    minres,
    slq,
    xtrace,
)
from theodolite.operators import Hessian

N = 41


def matrix(*, squared: bool = False) -> Tensor:
    """Symmetric, of both signs unless squared, with separated ends."""
    generator = torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64))
    values = torch.cat([torch.tensor([-6.0, -4.0, 9.0, 7.0, 5.0]), torch.linspace(1, 2, N - 5)]).double()
    M = Q * (values**2 if squared else values) @ Q.T
    return (M + M.T) / 2


def answers(A: LinearOperator, *, positive: LinearOperator | None = None) -> dict[str, Tensor]:
    """All that must not depend on how vectors are held; vectors themselves in the slices of this rank."""
    whole = torch.randn(N, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    B, parts = whole[A.dots.own] if A.dots.group else whole, [slice(0, 7), slice(3, 40, 3), slice(30, N)]
    positive = Dense(matrix(squared=True)) if positive is None else positive
    pairs = lanczos(A, k=3, which="both", tol=1e-11)
    warm = lanczos(A, k=2, start=pairs.vectors[:1], tol=1e-11)
    run = decompose(A, k=2, steps=14, probes=4, parts=parts)
    assert run.quadrature is not None
    rules = slq(A, probes=3, steps=6, deflate=pairs)
    estimate = hutchinson(A, probes=5, parts=parts, deflate=pairs, memory=3000)
    solved, indefinite = cg(positive, B, tol=1e-12), minres(A, B, tol=1e-12)
    assert bool(solved.converged.all() and indefinite.converged.all())
    return {
        "values": pairs.values,
        "vectors": pairs.vectors,
        "products": torch.tensor([float(pairs.products), float(run.products)]),
        "start": warm.vectors,
        "traces": torch.tensor([run.trace.value, run.trace.stderr, run.square.value, hutchpp(A, products=12).value]),
        "traces of parts": run.trace.parts,
        "measure": torch.cat([run.quadrature.nodes, run.quadrature.weights]),
        "rules": torch.cat([rules.nodes, rules.weights]),
        "hutchinson": torch.cat([estimate.samples, estimate.parts]),
        "diagonal": diagonal(A, probes=3, deflate=pairs).value,
        "function": funm_multiply(A, B[:, 0].contiguous(), torch.exp, tol=1e-12).x,
        "cg": solved.x,
        "minres": indefinite.x,
    }


def on_slices(rank: int) -> dict[str, Any]:
    """Everything on slices of this rank."""
    group = dist.group.WORLD
    A, positive = Sharded(Dense(matrix()), group), Sharded(Dense(matrix(squared=True)), group)
    small = lanczos(A, k=2, tol=1e-11, memory=12 * A.vector_bytes)
    b = torch.ones(A.shape[0], dtype=torch.float64)
    spoilt = b.clone()
    spoilt[3] = float("nan") if rank else 1.0
    H = Hessian(problem_of(net(rank), batches()[rank::2]))
    return {
        "answers": answers(A, positive=positive),
        "restarts": small.restarts,
        "restarted": small.values,
        "hessian": (lanczos(Sharded(H, group), k=2, tol=1e-6).values, lanczos(H, k=2, tol=1e-6).values),
        "said": {
            "dense": message_of(A.dense),
            "sketch": message_of(lambda: xtrace(A, products=8)),
            "blocks": message_of(lambda: block_lanczos(A, k=2, block=2)),
            "shifted": message_of(lambda: A.shift(1.0)),
            "preconditioned": message_of(lambda: cg(positive, b, preconditioner=Diagonal(b))),
            "narrow": message_of(lambda: Sharded(Dense(torch.ones(1, 1)), group)),
            "twice": message_of(lambda: Sharded(A, group)),
            "not finite here": message_of(lambda: cg(positive, spoilt)),
            "not finite": message_of(lambda: A @ spoilt),
        },
    }
