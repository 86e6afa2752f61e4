"""Watch a training run through its optimiser, within a time budget, without disturbing it."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import final

from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from theodolite.errors import LogError, ProblemError, TheodoliteWarning
from theodolite.forecasts import Finding, findings
from theodolite.measures.stability import stability_and_vectors
from theodolite.monitor.budget import Budget
from theodolite.operators.problem_operator import certificate_of
from theodolite.problem import Problem, undisturbed
from theodolite.records import Event, Log, Record, Scalars, Snapshot, Stability

# Before any product is timed: the certificate costs at most this many training steps, and a probe this many products.
CERTIFICATE_STEPS = 10.0
EXPECTED_PRODUCTS = 25.0
SNAPSHOT_BYTES = 64 * 2**20

Measure = Callable[[Problem], Record]


@final
class Monitor:
    """Measure a problem every so many optimiser steps, and keep the records in a run log.

    The training loop stays as it is: the optimiser's own hooks call the monitor. Each probe records sharpness against the
    stability bound of the optimiser (``Stability``), a snapshot of the parameters for the trajectory, and whatever
    ``measures`` adds. Training with a monitor equals training without, bit for bit.

    Cost: at most ``budget`` of the training time. The first probe is priced from one timed product, later ones from those
    before; a probe that does not fit waits until it does, and the log says so.

    Args:
        problem: what to measure; fixed data, best of the training distribution. ``mode="train"`` sees what training sees
            of BatchNorm networks.
        optimizer: what trains the model of the problem. Its steps are counted.
        log: folder of the run log; appended to if it exists.
        every: steps between probes; more when the budget is short.
        budget: largest share of the time that probes may take, or None for no limit.
        measures: further functions from the problem to a record, called at each probe.
        tol: relative residual of the sharpness.
        max_products: for each sharpness.
        snapshots: bytes of parameter snapshots to keep in the log.
        strict: raise when a probe fails, instead of logging it, switching that probe off and letting training go on.
        alarm: called with each new finding of severity warning or critical as soon as a probe shows it.
        step: steps that the optimiser has taken before.
        seed: of start vectors.

    Attributes:
        step: optimiser steps so far.

    Raises:
        ProblemError: the optimiser trains none of the problem's parameters, or an option makes no sense.
        LogInUseError: another process writes to the log.

    Example:
        >>> import tempfile, torch
        >>> from theodolite.problem import Problem
        >>> inputs, targets = torch.randn(64, 10), torch.randint(3, (64,))
        >>> model = torch.nn.Linear(10, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> problem = Problem(model, torch.nn.CrossEntropyLoss(), [(inputs, targets)])
        >>> with Monitor(problem, optimizer, log=tempfile.mkdtemp(), every=5, budget=None) as monitor:
        ...     for _ in range(10):
        ...         optimizer.zero_grad()
        ...         loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        ...         loss.backward()
        ...         optimizer.step()
        ...         monitor.log(loss=loss)
        >>> monitor.step
        10
    """

    def __init__(
        self,
        problem: Problem,
        optimizer: Optimizer,
        *,
        log: str | os.PathLike[str],
        every: int = 100,
        budget: float | None = 0.05,
        measures: Sequence[Measure] = (),
        tol: float = 1e-2,
        max_products: int = 60,
        snapshots: int = SNAPSHOT_BYTES,
        strict: bool = False,
        alarm: Callable[[Finding], None] | None = None,
        step: int = 0,
        seed: int = 0,
    ) -> None:
        if every < 1:
            raise ProblemError(f"Expected every to be at least 1 step, found {every}.")
        if budget is not None and not 0 < budget <= 1:
            raise ProblemError(f"Expected budget to be a share of the time in (0, 1], or None, found {budget}.")
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not any(id(parameter) in trained for parameter in problem.model.parameters()):
            raise ProblemError(
                f"Expected an optimizer that trains the problem's {type(problem.model).__name__}, found a "
                f"{type(optimizer).__name__} with none of its parameters. Build the problem on the model that is trained."
            )
        self.problem = problem
        self.optimizer = optimizer
        self.step = step
        self._folder = log
        self._log: Log | None = None
        self._every, self._fraction = every, budget
        self._probes: list[tuple[str, Callable[[], Record | None]]] = [
            ("stability", lambda: self._stability(tol=tol, max_products=max_products, seed=seed)),
            ("snapshot", self._snapshot),
            *((getattr(measure, "__name__", "measure"), partial(measure, problem)) for measure in measures),
        ]
        self._strict, self._alarm = strict, alarm
        self._snapshot_room = snapshots
        self._vectors: Float[Tensor, "j n"] | None = None
        self._seen: list[Stability] = []
        self._raised: set[tuple[str, str]] = set()
        self._waiting = False
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Monitor:
        self._log = Log(self._folder)
        self._budget = Budget(self._fraction)
        self._start = self.step
        self._hooks = [
            self.optimizer.register_step_pre_hook(lambda *_: self._before_step()),
            self.optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]
        share = "no time limit" if self._fraction is None else f"at most {self._fraction:.1%} of the time"
        self._event("started", f"watching {type(self.optimizer).__name__} every {self._every} steps, {share}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        if self._log is None:
            return
        if kind is None:
            self._run("snapshot", self._snapshot)
        share = f"probes took {self._budget.spent:.3g} s, {self._budget.share:.1%} of the time"
        if kind is None:
            self._event("ended", share)
        else:
            self._event("interrupted", f"{kind.__name__}: {error}; {share}")
        self._guarded(self._log.close)
        self._log = None

    def log(self, **values: float | Tensor) -> None:
        """Keep numbers of the training loop, such as ``loss=loss``, at the current number of optimiser steps.

        Args:
            **values: numbers or tensors with one element; a tensor on an accelerator waits for it.

        Raises:
            ProblemError: called outside the ``with`` block.
        """
        if self._log is None:
            raise ProblemError("Expected monitor.log(...) inside the with block, found the monitor not running.")
        self._append(Scalars(step=self.step, values={name: _number(value) for name, value in values.items()}))

    def _before_step(self) -> None:
        due = (self.step - self._start) % self._every == 0
        if not (due or self._waiting) or self._log is None or not self._probes:
            return
        if self._affordable():
            self._waiting = False
            self._probe()
        elif not self._waiting:
            self._waiting = True
            price = self._budget.predicted
            priced = "not priced yet" if price is None else f"expected to take {price:.3g} s"
            self._event("probe deferred", f"the probe due here, {priced}, waits until the time budget allows it")

    def _after_step(self) -> None:
        self.step += 1

    def _affordable(self) -> bool:
        """Whether the budget allows a probe now; prices the first from one timed product."""
        if self._fraction is None:
            return True
        if self._budget.predicted is None:
            taken = self.step - self._start
            if taken == 0 or not self._budget.affords(CERTIFICATE_STEPS * self._budget.elapsed / taken):
                return False
            self._timed("price", self._price)
        price = self._budget.predicted
        return price is not None and self._budget.affords(price)

    def _price(self) -> None:
        """Predict the first probe from the product that the certificate timed on a few samples."""
        certificate = certificate_of(self.problem)
        product = certificate.seconds * self.problem.samples / certificate.samples
        self._budget.learn(EXPECTED_PRODUCTS * product)
        self._event("priced", f"one product takes about {product:.3g} s, a probe about {self._budget.predicted:.3g} s")

    def _probe(self) -> None:
        before = self._budget.spent
        for name, measure in list(self._probes):
            self._timed(name, measure)
        self._budget.learn(self._budget.spent - before)
        self._ring()

    def _timed(self, name: str, measure: Callable[[], Record | None]) -> None:
        start = time.perf_counter()
        try:
            self._run(name, measure)
        finally:
            self._budget.charge(time.perf_counter() - start)

    def _run(self, name: str, measure: Callable[[], Record | None]) -> None:
        """Take one measure undisturbed; a failure is logged and switches it off, and training goes on."""
        try:
            with undisturbed(self.problem.model, copy=False):
                record = measure()
            if record is not None:
                self._append(record)
        except Exception as error:
            if self._strict:
                raise
            self._probes = [probe for probe in self._probes if probe[0] != name]
            if name == "price":
                self._probes = []
            self._event("probe failed", f"{name} switched off after {type(error).__name__}: {error}")
            warnings.warn(
                f"The monitor's {name} failed at step {self.step} and is switched off; training goes on. "
                f"{type(error).__name__}: {error}",
                TheodoliteWarning,
                stacklevel=2,
            )

    def _stability(self, *, tol: float, max_products: int, seed: int) -> Record:
        record, vectors = stability_and_vectors(
            self.problem,
            self.optimizer,
            tol=tol,
            seed=seed,
            start=self._vectors,
            max_products=max_products,
            step=self.step,
        )
        self._vectors = vectors
        self._seen.append(record)
        return record

    def _snapshot(self) -> Record | None:
        """The parameters in single precision, while they fit the room for snapshots."""
        size = 4 * self.problem.n
        if size > self._snapshot_room:
            return None
        self._snapshot_room -= size
        flat = self.problem.layout.flatten(self.problem.point().leaves).detach()
        return Snapshot(step=self.step, parameters=flat.float().cpu().numpy())

    def _ring(self) -> None:
        """Call the alarm for findings that were not there before."""
        if self._alarm is None:
            return
        for finding in findings(self._seen):
            key = (finding.rule, finding.severity)
            if finding.severity != "info" and key not in self._raised:
                self._raised.add(key)
                self._alarm(finding)

    def _event(self, name: str, message: str) -> None:
        self._append(Event(step=self.step, name=name, message=message))

    def _append(self, record: Record) -> None:
        if self._log is not None:
            log = self._log
            self._guarded(lambda: log.append(record))

    def _guarded(self, write: Callable[[], object]) -> None:
        """Write to the log; when that fails, stop watching rather than training."""
        try:
            write()
        except LogError as error:
            log, self._log = self._log, None
            if log is not None:
                with suppress(LogError):
                    log.close()
            if self._strict:
                raise
            warnings.warn(f"The monitor stops, training goes on: {error}", TheodoliteWarning, stacklevel=2)


def _number(value: float | Tensor) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)
