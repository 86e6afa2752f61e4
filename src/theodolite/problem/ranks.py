"""The processes of a data-parallel run, each with a part of the data, that measure as one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import ProblemError, RankError

WIDTH = 12  # numbers in the message that every rank sends when ranks meet; of one length, so that it can always be read
END = "the end of "
TOLERANCE = 1e-6  # relative; parameters are equal to the bit in one run on equal machines, other seeds differ by 1


@dataclass(frozen=True)
class Facts:
    """Numbers that ranks tell each other, each with a name.

    Args:
        equal: on which all ranks must agree.
        unequal: on which no two ranks may agree.
        noted: that may differ.
    """

    equal: Mapping[str, float]
    unequal: Mapping[str, float]
    noted: Mapping[str, float]


@final
class Ranks:
    """A process group, or one process alone, for which everything here is free.

    Ranks *meet* before and after each piece of local work, and tell each other where they are, whether they failed, and numbers
    on which they must agree. So a rank that makes another call, holds other parameters or fails is an error on all ranks, which
    all still come to the same collective, and not a hang.

    Args:
        group: a process group; ``"auto"``, the default group where torch.distributed is initialised; None, this process alone.
    """

    def __init__(self, group: Any = "auto") -> None:
        self.group = _resolved(group)
        self.size = 1 if self.group is None else dist.get_world_size(self.group)
        self.rank = 0 if self.group is None else dist.get_rank(self.group)
        self._inside = 0
        self._told: Exception | None = None

    @property
    def meeting(self) -> bool:
        """Whether this is local work between two meetings, the results of which are going to be combined."""
        return self.size == 1 or self._inside > 0

    @contextmanager
    def step(self, what: str, facts: Callable[[], Facts]) -> Iterator[set[str]]:
        """Local work that all ranks do, between two meetings.

        Args:
            what: what is done, the same on every rank.
            facts: gives what the ranks tell each other before it.

        Yields:
            The names of the noted facts that differ.

        Raises:
            RankError: a rank is at another step, disagrees, fails in this one, or is lost.
        """
        if self.size == 1:
            yield set()
            return
        try:
            with self._telling(what):
                mine = facts()
            differing = self._agree(what, mine)
            self._inside += 1
            try:
                with self._telling(what):
                    yield differing
            finally:
                self._inside -= 1
            self._meet(END + what)
        finally:
            if not self._inside:
                self._told = None  # its traceback holds graphs

    def sum(self, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The sum over ranks, of a tensor of one shape, after a step that all ranks have ended."""
        if self.size == 1:
            return tensor
        with _lost_at("a sum over ranks"):
            total = tensor.detach().contiguous().clone().to(self._device(tensor))
            dist.all_reduce(total, group=self.group)
        return total.to(tensor.device)

    def join(self, rows: Float[Tensor, "c *shape"]) -> Float[Tensor, "d *shape"]:
        """The rows of all ranks, in the order of ranks; each may have another number of them."""
        if self.size == 1:
            return rows
        count = torch.tensor([float(len(rows))], dtype=torch.float64)
        counts = self._gathered(count, what="a gathering of rows").int()[:, 0].tolist()
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        with _lost_at("a gathering of rows"):
            parts = [torch.empty_like(padded, device=self._device(padded)) for _ in counts]
            dist.all_gather(parts, padded.to(self._device(padded)), group=self.group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(rows.device)

    def first(self, tensor: Tensor) -> Tensor:
        """The tensor of the first rank."""
        with _lost_at("taking the first rank's values"):
            values = tensor.detach().clone().to(self._device(tensor))
            dist.broadcast(values, group=self.group, group_src=0)
        return values.to(tensor.device)

    def texts(self, text: str) -> list[str]:
        """What every rank says."""
        if self.size == 1:
            return [text]
        said: list[Any] = [None] * self.size
        with _lost_at("an exchange of words"):
            dist.all_gather_object(said, text, group=self.group)
        return said

    def _agree(self, what: str, facts: Facts) -> set[str]:
        named = {**facts.equal, **facts.unequal, **facts.noted}
        table = self._meet(what, facts=tuple(named.values()))
        columns = dict(zip(named, table.T.tolist(), strict=False))
        for name in facts.equal:
            if _differ(columns[name]):
                raise RankError(
                    f"Expected {name} to be equal on all ranks at {what}, found {_by_rank(columns[name])}. Make the same problem, "
                    "with the same checkpoint and the same seeds, and the same calls on every rank."
                )
        for name in facts.unequal:
            if len(set(columns[name])) < self.size:
                raise RankError(
                    f"Expected {name} to differ from rank to rank, found the same at {what}: every sample would count more than "
                    "once. Give each rank a part of its own, e.g. batches[rank::world_size], or pass group=None to measure on "
                    "each rank alone."
                )
        return {name for name in facts.noted if _differ(columns[name])}

    def _meet(
        self, what: str, *, facts: tuple[float, ...] = (), failure: Exception | None = None
    ) -> Float[Tensor, "size facts"]:
        """Exchange where each rank is, whether it failed, and its facts."""
        message = torch.zeros(WIDTH, dtype=torch.float64)
        message[0], message[1] = _code(what), float(failure is not None)
        message[2 : 2 + len(facts)] = torch.tensor(facts, dtype=torch.float64).nan_to_num()
        table = self._gathered(message, what=what)
        failed = table[:, 1].nonzero()[:, 0].tolist()
        if failed:
            said = self.texts(f"{type(failure).__name__}: {failure}" if failure is not None else "")
            if failure is None:
                raise RankError(
                    f"Expected all ranks to get through {what.removeprefix(END)}, found rank {failed[0]} failing there with "
                    f"{said[failed[0]]}"
                )
        elif len(set(table[:, 0].tolist())) > 1:
            raise RankError(
                f"Expected all ranks to make the same calls, found {_by_rank(self.texts(what))}. Call every measure on all ranks, "
                "also where only one of them writes the result, or pass group=None to measure on one alone."
            )
        return table[:, 2:]

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Tell the other ranks of an error that they do not know."""
        try:
            yield
        except Exception as error:
            if not self._known(error):
                self._told = error
                self._meet(what, failure=error)
            raise

    def _known(self, error: BaseException | None) -> bool:
        """Whether all ranks know of an error: a meeting raised it on all of them, or a step inside this one told them."""
        while error is not None:
            if isinstance(error, RankError) or error is self._told:
                return True
            error = error.__cause__ or error.__context__
        return False

    def _gathered(self, row: Float[Tensor, " w"], *, what: str) -> Float[Tensor, "size w"]:
        device = self._device(row)
        with _lost_at(what):
            rows = [torch.empty_like(row, device=device) for _ in range(self.size)]
            dist.all_gather(rows, row.to(device), group=self.group)
        return torch.stack(rows).cpu()

    def _device(self, tensor: Tensor) -> torch.device:
        """Where the group can carry it: NCCL on its device alone, gloo everything on the CPU, others where it lies."""
        backend = dist.get_backend(self.group)
        if "nccl" in backend:
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu") if backend == "gloo" else tensor.device


def _resolved(group: Any) -> Any:
    if isinstance(group, str) and group != "auto":
        raise ProblemError(f"Expected group to be a process group, 'auto' or None, found {group!r}.")
    if group != "auto":
        return group
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    return dist.group.WORLD


@contextmanager
def _lost_at(what: str) -> Iterator[None]:
    """Name what the ranks were about when one of them did not come."""
    try:
        yield
    except RuntimeError as error:
        raise RankError(
            f"Lost the other ranks at {what}: {error}. One of them has ended, or did not make this call within the timeout of the "
            "process group. Call every measure on all ranks, or pass group=None to measure on one alone."
        ) from error


def _code(what: str) -> float:
    """A number for a text; below 2^52, exact in float64."""
    return float(int(hashlib.sha256(what.encode()).hexdigest()[:13], 16))


def _differ(values: list[float]) -> bool:
    return max(values) - min(values) > TOLERANCE * max(map(abs, values))


def _by_rank(values: list[Any]) -> str:
    return ", ".join(
        f"{value:.9g} on rank {rank}" if isinstance(value, float) else f"rank {rank} at {value}"
        for rank, value in enumerate(values)
    )
