"""Per-sample gradients of every parameter in factored form, from one forward pass and one backward pass for each cotangent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from theodolite.errors import DataError
from theodolite.operators.capture.combined import combined
from theodolite.operators.capture.fallback import one_by_one
from theodolite.operators.capture.learning import Known, layouts_of
from theodolite.operators.capture.passes import Pass, forward
from theodolite.operators.capture.site import Site
from theodolite.operators.capture.use import Use
from theodolite.operators.covariance import refuse_coupled_samples
from theodolite.problem import Chunk, Point, Problem
from theodolite.problem.data import samples_of


def capture(problem: Problem, chunk: Chunk, point: Point | None = None) -> Captured:
    """Run the model on a chunk of data, ready to give per-sample gradients of the loss or of any function of the outputs.

    The model is not changed: operations are intercepted where parameters meet data. What is not covered exactly goes through
    a backward pass for each sample.

    Cost: a forward pass; once for each shape of batch, a backward pass more and two samples alone.

    Args:
        problem: what to differentiate.
        chunk: from ``problem.chunks()``.
        point: parameters and buffers; those of the model by default.

    Raises:
        OperatorError: per-sample gradients are not defined, because something couples the samples.
        DataError: the first dimension of the inputs does not count samples.

    Example:
        >>> import torch
        >>> batch = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
        >>> problem = Problem(torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss(), [batch])
        >>> captured = capture(problem, next(problem.chunks()))
        >>> [(use.parameter, use.kind) for use in captured.uses()]
        [('weight', 'linear'), ('bias', 'shift')]
    """
    refuse_coupled_samples(problem)
    _refuse_other_orders(chunk)
    point = problem.point() if point is None else point
    with problem.session():
        run = forward(problem, chunk, point)
        known = layouts_of(run)
    return Captured(run, known)


class Captured:
    """A forward pass whose per-sample gradients can be had for several cotangents.

    Args:
        run: the forward pass.
        known: where the samples lie at every site.
    """

    def __init__(self, run: Pass, known: Known) -> None:
        self._run = run
        self._known = known

    @property
    def problem(self) -> Problem:
        """What is differentiated."""
        return self._run.problem

    @property
    def chunk(self) -> Chunk:
        """The samples."""
        return self._run.chunk

    @property
    def point(self) -> Point:
        """Where."""
        return self._run.point

    @property
    def known(self) -> Known:
        """What was learnt about batches of this shape, shared between passes."""
        return self._known

    @property
    def sites(self) -> Counter[str]:
        """At how many operations each parameter is read."""
        return Counter(name for site in self._run.sites for name in self._run.behind(site))

    @property
    def samples(self) -> int:
        """Samples in the chunk."""
        return self._run.chunk.samples

    @property
    def outputs(self) -> Tensor | None:
        """What the model returned, None for a problem made by ``Problem.from_loss``."""
        return None if self._run.outputs is None else self._run.outputs.detach()

    @property
    def total(self) -> float:
        """The summed loss of the chunk."""
        return float(self._run.total.detach())

    @property
    def weight(self) -> float:
        """What the summed loss is divided by."""
        return self._run.weight

    @property
    def deviation(self) -> float:
        """Largest relative difference between a sample in the batch and alone, at any operation."""
        return self._known.deviation

    def uses(self, cotangent: Float[Tensor, "b *outputs"] | None = None, *, retain: bool = True) -> list[Use]:
        """Every operation's part in the per-sample gradients; a parameter used several times occurs several times.

        Cost: a backward pass without weight gradients.

        Args:
            cotangent: gradient of the outputs to start from, in their shape; None starts from the summed loss of the chunk.
            retain: whether to keep the graph for another call.

        Returns:
            Uses in the order of the forward pass; those from the fallback last, with ``kind="fallback"``.
        """
        found: list[Use] = []
        missed = self.differentiate(cotangent, found.extend, retain=retain)
        kept = sorted((use for use in found if use.parameter not in missed), key=lambda use: use.site)
        return kept + self.fallback(missed, cotangent)

    def merged(
        self, cotangent: Float[Tensor, "b *outputs"] | None = None, *, retain: bool = True
    ) -> dict[str, list[Use]]:
        """For every parameter its uses with disjoint blocks, so that their Gram matrices and squared norms add up.

        Parameters that no gradient reaches are left out.
        """
        found: dict[str, list[Use]] = {}
        for use in self.uses(cotangent, retain=retain):
            found.setdefault(use.parameter, []).append(use)
        return {name: combined(found[name]) for name in self._run.problem.layout.names if name in found}

    def differentiate(
        self, cotangent: Tensor | None, take: Callable[[list[Use]], None], *, retain: bool
    ) -> tuple[str, ...]:
        """One backward pass that hands over the uses of every site as soon as they are known.

        Returns:
            Names of the parameters whose uses are not all of their gradient, for the fallback.
        """
        run, lost = self._run, self._known.lost

        def receive(site: Site, gradient: Tensor) -> None:
            layout = self._known.layouts.get(site.key)
            if layout is None:
                late.update(run.behind(site))
                return
            take([use for use in run.uses(site, gradient, layout) if use.parameter not in lost])

        late: set[str] = set()
        with run.problem.session():
            missed = run.differentiate(cotangent, receive, retain=retain)
        # Remembered, so that a pass that hands over uses for good knows what to leave out from the start.
        lost.update(late, missed)
        return tuple(name for name in run.problem.layout.names if name in lost)

    def forget(self) -> None:
        """Let go of the inputs of all operations; no further cotangent can be asked for."""
        self._run.recorder.sites.clear()

    def fallback(self, names: tuple[str, ...], cotangent: Tensor | None = None) -> list[Use]:
        """Per-sample gradients of some parameters, one sample after the other."""
        if not names:
            return []
        run = self._run
        return one_by_one(run.problem, run.chunk, run.point, names, cotangent=cotangent)


def _refuse_other_orders(chunk: Chunk) -> None:
    """Check that inputs and targets count samples alike, in their first dimension.

    Raises:
        DataError: they do not.
    """
    found = samples_of(chunk.batch)
    if found != chunk.samples:
        raise DataError(
            f"Expected batches with samples first in every tensor, found inputs with a first dimension of {found} and targets "
            f"of {chunk.samples} samples. Turn the inputs in the batch, and back in the model's forward."
        )
