"""Watch a training run through its optimiser, within a time budget, without disturbing it."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import final

from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from theodolite.errors import ProblemError, TheodoliteWarning
from theodolite.forecasts import Finding
from theodolite.measures.stability import stability_and_vectors
from theodolite.monitor.alarm import Alarm
from theodolite.monitor.budget import Budget
from theodolite.monitor.journal import Journal
from theodolite.monitor.pricing import expected_products
from theodolite.monitor.probe import Probe
from theodolite.operators.pricing import product_seconds
from theodolite.problem import Problem, undisturbed
from theodolite.records import Event, Record, Scalars, Snapshot, Stability

# In training steps, for a chunk of the problem as large as a training batch: the certificate, the checks and the two
# products of one chunk, before anything is timed; and a product with that chunk where timing it failed.
PRICING_STEPS = 20.0
PRODUCT_STEPS = 4.0
SNAPSHOT_BYTES = 64 * 2**20

Measure = Callable[[Problem], Record]


@final
class Monitor:
    """Measure a problem every so many optimiser steps, and keep the records in a run log.

    The training loop stays as it is: the optimiser's own hooks call the monitor. Each probe records sharpness against the
    stability bound of the optimiser (``Stability``), a snapshot of the parameters for the trajectory, and whatever
    ``measures`` adds. Training with a monitor equals training without, bit for bit.

    Cost: at most ``budget`` of the training time. What is due waits in a queue until the budget affords its expected cost,
    in order and without overtaking, and the log says so. The first ``Stability`` is priced from one timed product, and
    everything later by what it took the last time. Nothing tells what a measure of yours will take before it ran once:
    its first run waits until ``Stability`` has run and counts as much as that. Where it takes more, the share is exceeded
    once, and nothing runs until it is made up for.

    Args:
        problem: what to measure; fixed data, best of the training distribution. ``mode="train"`` sees what training sees
            of BatchNorm networks. In a data-parallel run each rank measures its own data, unless the problem names a ``group``.
        optimizer: what trains the model of the problem. Its steps are counted.
        log: folder of the run log; appended to if it exists.
        every: steps between probes; more when the budget is short.
        budget: largest share of the time that probes may take, or None for no limit.
        measures: further functions from the problem to a record, called at each probe. They may write to the model, which
            is put back from a copy.
        tol: relative residual of the sharpness.
        max_products: for each sharpness.
        snapshots: bytes of parameter snapshots to keep in the log.
        strict: raise when a probe fails, instead of logging it, switching that probe off and letting training go on.
        alarm: called with each new finding of severity warning or critical as soon as a probe shows it: the edge of
            stability over all readings so far, the other rules on the newest. What it writes to the model is undone; the
            optimiser is its own to change. It is charged, and switched off when it fails, like a probe.
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
        ...         monitor.log(loss=loss)
        ...         loss.backward()
        ...         optimizer.step()
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
        own = {id(parameter) for name, parameter in problem.model.named_parameters() if name in problem.layout.slices}
        if not trained & own:
            raise ProblemError(
                f"Expected an optimizer that trains the problem's {type(problem.model).__name__}, found a "
                f"{type(optimizer).__name__} with none of its parameters. Build the problem on the model that is trained."
            )
        if problem.ranks.size > 1 and problem.options.group == "auto":
            # Probes start by each rank's clock; ranks that waited for one another would hold up the training.
            problem = problem.replace(group=None)
        self.problem = problem
        self.optimizer = optimizer
        self.step = step
        self._folder = log
        self._journal: Journal | None = None
        self._every, self._fraction = every, budget
        self._max_products = max_products
        self._stability = Probe("stability", partial(self._measure, tol=tol, max_products=max_products, seed=seed))
        self._snapshots = Probe("snapshot", self._snapshot)
        yours = (
            Probe(getattr(measure, "__name__", "measure"), partial(measure, problem), copy=True) for measure in measures
        )
        self._probes = [self._stability, self._snapshots, *yours]
        self._strict = strict
        bell = None if alarm is None else Alarm(alarm, problem.model)
        self._alarm = None if bell is None else Probe("alarm", lambda: bell.ring(self._seen))
        self._snapshot_room = snapshots
        self._vectors: Float[Tensor, "j n"] | None = None
        self._seen: list[Stability] = []
        self._queue: list[Probe] = []
        self._deferred = False
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Monitor:
        self._journal = Journal(self._folder, strict=self._strict)
        self._budget = Budget(self._fraction)
        self._start = self.step
        self._queue, self._deferred = [], False
        share = "no time limit" if self._fraction is None else f"at most {self._fraction:.1%} of the time"
        self._event("started", f"watching {type(self.optimizer).__name__} every {self._every} steps, {share}")
        self._hooks = [
            self.optimizer.register_step_pre_hook(lambda *_: self._before_step()),
            self.optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        journal = self._journal
        assert journal is not None
        try:
            if kind is None and journal.open and self._snapshots in self._probes:
                self._run(self._snapshots)
            share = f"probes took {self._budget.spent:.3g} s, {self._budget.share:.1%} of the time"
            if kind is None:
                self._event("ended", share)
                self._tell_if_nothing_was_measured()
            else:
                self._event("interrupted", f"{kind.__name__}: {error}; {share}")
        finally:
            journal.close()
            self._journal = None

    def _tell_if_nothing_was_measured(self) -> None:
        """A run too short for its budget ends without a reading, which must not go unnoticed."""
        if self._seen or self._fraction is None or self._stability not in self._probes or self.step == self._start:
            return
        price = self._stability.predicted
        expected = "" if price is None else f" (a reading is expected to take {price:.3g} s)"
        message = (
            f"no reading fitted the time budget of {self._fraction:.0%} in {self._budget.elapsed:.3g} s of training{expected}. "
            "Raise budget=, use a problem with fewer samples, or budget=None for short runs."
        )
        self._event("nothing measured", message)
        warnings.warn(f"The monitor measured nothing: {message}", TheodoliteWarning, stacklevel=3)

    def log(self, **values: float | Tensor) -> None:
        """Keep numbers of the training loop, such as ``loss=loss``, at the current number of optimiser steps.

        Call it before ``optimizer.step()``: a loss then stands at the step whose parameters it was computed with, like the
        readings of the probes. Nothing happens once the log was given up because it could not be written.

        Args:
            **values: numbers or tensors with one element; a tensor on an accelerator waits for it.

        Raises:
            ProblemError: called outside the ``with`` block.
        """
        if self._journal is None:
            raise ProblemError("Expected monitor.log(...) inside the with block, found the monitor not running.")
        if self._journal.open:
            numbers = {name: _number(value) for name, value in values.items()}
            self._journal.append(Scalars(step=self.step, values=numbers))

    def _before_step(self) -> None:
        """Put what is due into the queue, and take from its head what the budget affords."""
        due = (self.step - self._start) % self._every == 0
        if due:
            self._queue += [probe for probe in self._probes if probe not in self._queue]
        while self._watching and self._queue and self._affordable(self._queue[0]):
            self._take(self._queue.pop(0))
        if due and self._queue and not self._deferred:
            price = self._price_of(self._queue[0])
            priced = "not priced yet" if price is None else f"expected to take {price:.3g} s"
            self._event("probe deferred", f"{self._queue[0].name}, {priced}, waits until the time budget allows it")
        self._deferred = bool(self._queue)

    @property
    def _watching(self) -> bool:
        return self._journal is not None and self._journal.open

    def _after_step(self) -> None:
        self.step += 1

    def _affordable(self, probe: Probe) -> bool:
        """Whether the budget allows a probe now; prices the first from a timed product."""
        if self._fraction is None:
            return True
        if self._stability.predicted is None:
            taken = self.step - self._start
            if taken == 0 or not self._budget.affords(PRICING_STEPS * self._budget.elapsed / taken):
                return False
            self._price(self._budget.elapsed / taken)
        price = self._price_of(probe)
        return price is not None and self._budget.affords(price)

    def _price_of(self, probe: Probe) -> float | None:
        """What a probe is expected to take; before its first run as much as stability, which stands before it."""
        return self._stability.predicted if probe.predicted is None else probe.predicted

    def _price(self, step_seconds: float) -> None:
        """Predict the first reading of stability; where no product can be timed, which the probe may survive, assume."""
        start = time.perf_counter()
        try:
            with undisturbed(self.problem.model, copy=False):
                product = product_seconds(self.problem)
                products = expected_products(self.problem, self.optimizer, max_products=self._max_products)
            message = f"one product takes about {product:.3g} s"
        except Exception as error:
            product, products = PRODUCT_STEPS * step_seconds, self._max_products
            message = f"one product is assumed to take {product:.3g} s after {type(error).__name__}: {error}"
        finally:
            self._budget.charge(time.perf_counter() - start)
        self._stability.learn(products * product)
        self._event("priced", f"{message}; a reading of stability about {self._stability.predicted:.3g} s")

    def _take(self, probe: Probe) -> None:
        readings = len(self._seen)
        self._timed(probe)
        if len(self._seen) > readings and self._alarm is not None:
            self._timed(self._alarm)

    def _timed(self, probe: Probe) -> None:
        """Run a probe, charge what it takes and expect as much of the next run."""
        start = time.perf_counter()
        try:
            self._run(probe)
        finally:
            seconds = time.perf_counter() - start
            self._budget.charge(seconds)
            probe.learn(seconds)

    def _run(self, probe: Probe) -> None:
        """Take one measure undisturbed; a failure is logged and switches it off, and training goes on."""
        try:
            with undisturbed(self.problem.model, copy=probe.copy):
                record = probe.measure()
            if record is not None and self._journal is not None:
                self._journal.append(record if record.step is not None else record.replace(step=self.step))
        except Exception as error:
            if self._strict:
                raise
            self._probes = [other for other in self._probes if other is not probe]
            if probe is self._alarm:
                self._alarm = None
            self._event("probe failed", f"{probe.name} switched off after {type(error).__name__}: {error}")
            warnings.warn(
                f"The monitor's {probe.name} failed at step {self.step} and is switched off; training goes on. "
                f"{type(error).__name__}: {error}",
                TheodoliteWarning,
                stacklevel=2,
            )

    def _measure(self, *, tol: float, max_products: int, seed: int) -> Record:
        record, self._vectors = stability_and_vectors(
            self.problem,
            self.optimizer,
            tol=tol,
            seed=seed,
            start=self._vectors,
            max_products=max_products,
            step=self.step,
        )
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

    def _event(self, name: str, message: str) -> None:
        if self._journal is not None:
            self._journal.append(Event(step=self.step, name=name, message=message))


def _number(value: float | Tensor) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)
