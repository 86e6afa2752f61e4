"""What a survey will cost, before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from theodolite.operators.pricing import Prices, prices
from theodolite.plans.menu import Measure, Measurement, chosen
from theodolite.problem import Problem
from theodolite.records import Cost

# In gradients, where no time has been taken: two products and more, a third of the work forward.
USUAL = Prices(product=2.2, gradient=1.0, forward=0.35)
UNKNOWN = 10.0


@final
@dataclass(frozen=True, kw_only=True)
class Quote:
    """What each measure of a survey is expected to cost on this machine.

    Args:
        items: name and expected cost of each measure, with seconds; None where nobody knows.
        prices: seconds of one product, gradient and forward pass, as timed.
    """

    items: tuple[tuple[str, Cost | None], ...]
    prices: Prices

    @property
    def total(self) -> Cost:
        """All that is known together."""
        return sum((cost for _, cost in self.items if cost is not None), Cost())

    def __str__(self) -> str:
        lines = [f"{name}: {'unknown' if cost is None else cost}" for name, cost in self.items]
        one = self.prices
        return "\n".join(
            [
                *lines,
                f"in all about {self.total}; one product {one.product:.2g} s, one gradient {one.gradient:.2g} s, "
                f"one forward pass {one.forward:.2g} s",
            ]
        )


def quote(problem: Problem, *, measures: str | Sequence[str | Measure] = "standard") -> Quote:
    """What a survey will cost, from one timed product, gradient and forward pass.

    Products are those that Lanczos usually takes; a spectrum whose wanted eigenvalues lie close together takes more.

    Cost: the checks and the certificate of the problem, which the survey needs anyway, and a few passes over one chunk.

    Args:
        problem: what to survey.
        measures: as for ``survey``.

    Returns:
        The expected cost of each measure and of all.

    Raises:
        ProblemError: a name is unknown, or the problem cannot be surveyed.
        DerivativeError: second derivatives are missing or wrong.

    Example:
        >>> import torch
        >>> inputs, targets = torch.randn(64, 10), torch.randint(3, (64,))
        >>> problem = Problem(torch.nn.Linear(10, 3), torch.nn.CrossEntropyLoss(), [(inputs, targets)])
        >>> quote(problem, measures=["trace"]).total.products
        32.0
    """
    asked = chosen(problem, measures)
    found = prices(problem)
    return Quote(items=tuple((each.name, _priced(each.expected, found)) for each in asked), prices=found)


def shares(asked: Sequence[Measurement]) -> list[float]:
    """The share of the work that each of several measurements is expected to be."""
    work = [UNKNOWN if each.expected is None else USUAL.seconds(each.expected) for each in asked]
    return [each / sum(work) for each in work]


def _priced(cost: Cost | None, prices: Prices) -> Cost | None:
    return None if cost is None else replace(cost, seconds=prices.seconds(cost))
