"""What each of two processes does with its half of the data; run by ``torch.multiprocessing.spawn``."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from theodolite.landscapes import plane
from theodolite.measures import density, gradients, spectrum, trace
from theodolite.monitor import Monitor
from theodolite.operators import GGN, Fisher, GradientCovariance, Grouped, Hessian, Jacobian
from theodolite.plans import survey
from theodolite.problem import Problem
from theodolite.records import Stability, read

Part = Callable[[int], Any]
TIMEOUT = timedelta(seconds=60)


def on_two_ranks(part: Part) -> list[Any]:
    """Run ``part(rank)`` on two gloo processes and return what they return, in the order of ranks."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_enter, args=(part, folder), nprocs=2)
        return [torch.load(Path(folder) / str(rank), weights_only=True) for rank in range(2)]


def _enter(rank: int, part: Part, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error", category=UserWarning)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=TIMEOUT)
    torch.save(part(rank), Path(folder) / str(rank))
    dist.destroy_process_group()


def message_of(call: Callable[[], Any]) -> str:
    """Type and text of the error that a call raises; empty without one."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


class Net(nn.Module):
    """Tied embedding, attention without a mask, and BatchNorm, on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        h = torch.tanh(self.norm(h.transpose(1, 2)))
        return self.head(h.transpose(1, 2)).transpose(1, 2)


def net(rank: int = 0) -> nn.Module:
    """The same parameters on every rank, statistics of BatchNorm of its own, as after data-parallel training."""
    torch.manual_seed(0)
    model = Net().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.norm.running_mean = torch.full((4,), 0.1 * rank, dtype=torch.float64)
    return model


def batches() -> list[tuple[Tensor, Tensor]]:
    """Ragged batches with unequal counts of valid tokens."""
    g = torch.Generator().manual_seed(5)
    found = []
    for index, size in enumerate((6, 5, 4, 2, 3)):
        tokens = torch.randint(7, (size, 5), generator=g)
        targets = torch.randint(7, (size, 5), generator=g)
        targets[:, 4 - index % 3 :] = -100
        found.append((tokens, targets))
    return found


def vectors(n: int, k: int, seed: int = 2) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem_of(model: nn.Module, data: list[Any], **options: Any) -> Problem:
    return Problem(model, nn.CrossEntropyLoss(), data, **options)


def measured(problem: Problem) -> dict[str, Any]:
    """All that must not depend on where the data lies."""
    found: dict[str, Any] = {"loss": problem.loss(), "gradient": problem.gradient(), "totals": problem.totals()[0]}
    V = vectors(problem.n, 3)
    for operator in (Hessian, GGN, GradientCovariance):
        A = operator(problem)
        found[f"{A.name} @ V"] = A @ V
        product, left_out, weights = A.by_chunk(V)
        found |= {f"{A.name} by chunk": product, f"{A.name} left out": left_out, f"{A.name} weights": weights}
        found[f"{A.name} chunks"] = A.chunks
    centred = GradientCovariance(problem, centered=True)
    product, left_out, _ = centred.by_chunk(V)
    found |= {"fisher @ V": Fisher(problem) @ V, "centred @ V": centred @ V, "centred by chunk": product}
    found |= {"centred left out": left_out, "form": Fisher(problem).quadratic(V[:, 0]).value}
    found["block @ v"] = (
        Hessian(problem).block("head.*" if "head.weight" in problem.layout.names else "embedding.*") @ V[:28]
    )
    pairs = spectrum(problem, k=2, tol=1e-6)
    found["eigenvalues"] = torch.tensor(pairs.eigenvalues)
    found["data errors"] = torch.tensor(pairs.data_stderr)
    found["trace"] = trace(problem, probes=4).value
    found["density"] = torch.tensor(density(problem, probes=1, steps=8).nodes)
    norms = gradients(problem)
    found["norms"] = torch.tensor(norms.layer_norms)
    found["norm errors"] = torch.tensor(norms.layer_norm_stderrs)
    found["samples"] = norms.samples
    return found


def measure_on(rank: int) -> dict[str, Any]:
    """Everything with half of the batches, and through a data-parallel wrapper; then with a criterion that sums."""
    model = net(rank)
    half = batches()[rank::2]
    found = measured(problem_of(model, half))
    wrapped = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    found["wrapped"] = Hessian(problem_of(wrapped, half)) @ vectors(model_size(model), 1)[:, 0]
    summed = Problem(model, nn.CrossEntropyLoss(reduction="sum"), half)
    found["summed"] = summed.gradient()
    found["microbatched"] = problem_of(model, half, microbatch=2).loss()
    found["buffers"] = model.norm.running_mean.clone()
    whole = problem_of(model, half)
    parts = [whole.take(8), *whole.split_halves(), summed.take(8)]
    found["parts"] = [part.samples for part in parts]
    weights = [part.totals()[1].sum() for part in parts[1:3]]
    found["of halves"] = sum(w * part.gradient() for w, part in zip(weights, parts[1:3], strict=True)) / sum(weights)
    found["digest"] = whole.digest()
    found["surveyed"] = surveyed(whole)
    found["monitored"] = monitored(whole, rank)
    return found


def surveyed(problem: Problem) -> list[Any]:
    """A survey into one log that was begun and is resumed: how many records there are, a norm, a plane."""
    (log,) = set(problem.ranks.texts(tempfile.mkdtemp())[:1])
    survey(problem, measures=["gradients"], log=log)
    measures = ["gradients", lambda part: plane(part, points=3)]
    records = survey(problem, measures=measures, log=log)
    problem.ranks.texts("the log is written")
    return [len(read(log)), records[0].norm, torch.tensor(records[1].losses)]


def monitored(problem: Problem, rank: int) -> list[int]:
    """Steps of the probes of a data-parallel training whose ranks probe at different times."""
    wrapped = nn.parallel.DistributedDataParallel(problem.model.train())
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.01)
    inputs, targets = batches()[rank]
    with (
        tempfile.TemporaryDirectory() as log,
        Monitor(problem, optimizer, log=log, every=1 + rank, budget=None, strict=True),
    ):
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(wrapped(inputs), targets).backward()
            optimizer.step()
        return [record.step for record in read(log).records if isinstance(record, Stability)]


def model_size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def disagree_on(rank: int) -> dict[str, str]:
    """What every rank says when they do not do the same; the group stays usable after each."""
    model, half = net(), batches()[rank::2]
    problem = problem_of(model, half)
    v = vectors(problem.n, 1)[:, 0]
    said = {"calls": message_of(problem.loss if rank == 0 else problem.gradient)}
    said["vectors"] = message_of(lambda: Hessian(problem) @ vectors(problem.n, 1, seed=rank)[:, 0])
    said["numbers of vectors"] = message_of(lambda: Hessian(problem) @ vectors(problem.n, 1 + rank))
    said["data"] = message_of(problem_of(model, batches()).loss)
    said["seeds"] = message_of(problem_of(model, half, seed=rank).loss)
    said["selections"] = message_of(problem_of(model, half, params="embedding.*" if rank else None).loss)
    broken = [(tokens + 100 * rank, targets) for tokens, targets in half]
    said["failing"] = message_of(problem_of(model, broken).loss)
    poisoned = net()
    if rank:
        with torch.no_grad():
            poisoned.attention.in_proj_bias[0] = float("nan")
    said["parameters"] = message_of(problem_of(poisoned, half).gradient)
    overflowing = Problem(model, Overflows(rank), half)
    said["overflow"] = message_of(overflowing.gradient)
    said["alone"] = message_of(lambda: list(problem.chunks()))
    said["rows"] = message_of(lambda: Jacobian(problem))
    said["groups"] = message_of(lambda: Grouped(problem, by=lambda batch: batch[1][:, 0]))
    said["synchronised"] = message_of(synchronised(half).loss)
    said["after all"] = message_of(lambda: Hessian(problem) @ v)
    said["one rank alone"] = message_of(problem_of(model, half, group=None).loss) if rank == 0 else ""
    if rank == 0:  # the other ends without it
        said["lost"] = message_of(problem.loss)
    return said


def everything_on(rank: int) -> dict[str, Any]:
    """Both in one start of processes; the second part ends with one rank lost."""
    return {"measured": measure_on(rank), "said": disagree_on(rank)}


class Overflows(nn.Module):
    """A criterion that overflows on the second rank alone."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.factor = float("inf") if rank else 1.0

    def forward(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        return outputs.square().sum() * self.factor, float(len(targets))


def synchronised(half: list[Any]) -> Problem:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(net())
    return problem_of(model, half, mode="train")
