"""A forward pass with its sites, differentiated as often as wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.utils.checkpoint
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from theodolite.errors import OperatorError
from theodolite.operators.capture.interception import Recorder
from theodolite.operators.capture.layouts import Layout
from theodolite.operators.capture.origins import Parameters, sources, uses_of
from theodolite.operators.capture.site import Site
from theodolite.operators.capture.use import Use
from theodolite.problem import Chunk, Point, Problem
from theodolite.problem.data import tensors_of
from theodolite.problem.objective import CriterionObjective, pair

# First derivatives exist for every attention kernel, and the fused ones are faster.
ANY_ATTENTION = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]


@dataclass(eq=False)
class Pass:
    """What one forward pass left: loss, outputs, and the sites where parameters met data.

    Args:
        total: the summed loss.
        weight: what it is divided by.
        outputs: what the criterion takes, None for a loss function of model and batch.
        recorder: the sites.
        point: parameters, whose leaves the sites were cut from.
    """

    problem: Problem
    chunk: Chunk
    point: Point
    total: Float[Tensor, ""]
    weight: float
    outputs: Tensor | None
    recorder: Recorder

    @property
    def sites(self) -> list[Site]:
        """Operations that read parameters and data, in the order of the forward pass."""
        return self.recorder.sites

    @cached_property
    def parameters(self) -> Parameters:
        """The selected parameters."""
        return Parameters(self.problem.layout.names, self.point.leaves)

    def differentiate(
        self,
        cotangent: Tensor | None,
        take: Callable[[Site, Tensor], None],
        *,
        retain: bool,
        root: Site | None = None,
        with_loss: bool = False,
    ) -> tuple[str, ...]:
        """One backward pass; ``take`` gets every site with the gradient of its output as soon as it is known.

        Args:
            cotangent: gradient of the outputs to start from; None starts from the loss.
            take: what to do with the gradients.
            retain: whether to keep the graph for another pass.
            root: start from the output of this site, with ``cotangent`` there.
            with_loss: add the gradient of the loss to what starts from ``cotangent``.

        Returns:
            Names of the parameters that are reached outside the sites as well.
        """
        if root is not None:
            return self._backward(root.edge, cotangent, take, retain=retain)
        start = self.total if cotangent is None else self._projected(cotangent)
        if cotangent is not None and with_loss:
            start = start + self.total
        return self._backward(start, None, take, retain=retain) if start.requires_grad else ()

    def _projected(self, cotangent: Tensor) -> Tensor:
        """The scalar that has ``cotangent`` for its gradient by the outputs.

        From outputs and cotangent themselves torch starts only after it has imported its symbolic algebra, 36 MB, to
        compare the two shapes.
        """
        if self.outputs is None:
            raise OperatorError(
                "Expected a problem with outputs, which a cotangent can be given for; found one made by Problem.from_loss. "
                "Use Problem(model, criterion, batches), or cotangent=None for the loss."
            )
        return (self.outputs * cotangent).sum()

    def _backward(
        self, start: Any, cotangent: Tensor | None, take: Callable[[Site, Tensor], None], *, retain: bool
    ) -> tuple[str, ...]:
        edges = [site.edge for site in self.sites if site.first]

        def listen(index: int, gradient: Tensor) -> None:
            take(self.sites[index], gradient)
            if not retain:
                self.sites[index].operands.clear()  # lets go of the inputs, as autograd does

        self.recorder.delivery.listener = listen
        try:
            found = torch.autograd.grad(
                [start], [*edges, *self.point.leaves], [cotangent], retain_graph=retain, allow_unused=True
            )
        finally:
            self.recorder.delivery.listener = None
        left = zip(self.problem.layout.names, found[len(edges) :], strict=True)
        return tuple(name for name, gradient in left if gradient is not None)

    def behind(self, site: Site) -> set[str]:
        """Names of the parameters that a site reads, also through what was computed from them."""
        return {name for operand in site.operands for name in sources(operand.tensor, self.parameters)}

    def uses(self, site: Site, gradient: Tensor, layout: Layout) -> list[Use]:
        """The uses of parameters at a site."""
        parameters = self.parameters
        return [use for operand in site.operands for use in uses_of(operand, site.index, gradient, layout, parameters)]


def forward(problem: Problem, chunk: Chunk, point: Point) -> Pass:
    """Run the model on a chunk and record where parameters meet data."""

    def run(model: nn.Module) -> Pass:
        recorder = Recorder(dict(zip(problem.layout.names, point.leaves, strict=True)), tensors_of(chunk.batch))
        outputs = None
        with sdpa_kernel(ANY_ATTENTION), plain_checkpoints(), recorder:
            objective = problem.objective
            if isinstance(objective, CriterionObjective):
                found = objective.outputs(model, chunk.batch)
                total, weight = objective.loss.evaluate(found, pair(chunk.batch)[1])
                outputs = found if isinstance(found, Tensor) else getattr(found, "logits", None)
            else:
                total, weight = objective.evaluate(model, chunk.batch)
        return Pass(problem, chunk, point, total, weight, outputs, recorder)

    return problem.call(run, point, chunk=chunk.index)


@contextmanager
def plain_checkpoints() -> Iterator[None]:
    """Run activation checkpoints as if they were not there.

    Under reentrant ones operations have no gradients, and what others compute again in the backward pass must be what was
    computed in the forward pass, where recurrent layers go step by step. The inputs of operations are kept in any case.
    """
    module: Any = torch.utils.checkpoint
    before = module.CheckpointFunction, module._checkpoint_without_reentrant_generator
    module.CheckpointFunction, module._checkpoint_without_reentrant_generator = _Plain, _nothing
    try:
        yield
    finally:
        module.CheckpointFunction, module._checkpoint_without_reentrant_generator = before


class _Plain:
    """Stands in for torch's reentrant checkpoint."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


def _nothing(*args: Any, **kwargs: Any) -> Iterator[None]:
    """Stands in for what torch does before and after the forward pass of a checkpoint that is not reentrant."""
    yield
