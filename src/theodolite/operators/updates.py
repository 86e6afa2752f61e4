"""The step that an optimiser would take next, without taking it."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from theodolite.errors import ProblemError
from theodolite.problem import Problem


def next_update(
    problem: Problem, optimizer: Optimizer, *, gradient: Float[Tensor, " n"] | None = None
) -> Float[Tensor, " n"]:
    """θ' − θ of the optimiser's own next step, from a copy of its state.

    The gradient is that of the problem, not of the next training batch, and it is not clipped. Parameters of the problem
    that the optimiser does not hold do not move.

    Cost: one gradient unless it is given; a copy of the optimiser's parameters and state.

    Args:
        problem: where the gradient is taken.
        optimizer: read, never written; its hooks are not called.
        gradient: of the problem, if it is known already.

    Raises:
        ProblemError: the optimiser holds no parameter of the problem, or its step needs a closure.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> problem = Problem(model, torch.nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 1))])
        >>> update = next_update(problem, torch.optim.SGD(model.parameters(), lr=0.5))
        >>> torch.allclose(update, -0.5 * problem.gradient(), atol=1e-6)
        True
    """
    slices, named = problem.layout.slices, dict(problem.model.named_parameters())
    places = {id(named[name]): where for name, where in slices.items()}
    clone = copy.deepcopy(optimizer)  # drops the hooks, which are no part of an optimiser's pickled state
    pairs = [
        (before, after)
        for old, new in zip(optimizer.param_groups, clone.param_groups, strict=True)
        for before, after in zip(old["params"], new["params"], strict=True)
    ]
    if not any(id(before) in places for before, _ in pairs):
        raise ProblemError(
            f"Expected an optimiser of the problem's parameters, found {type(optimizer).__name__} with {len(pairs)} tensors, "
            f"none of which is among {', '.join(problem.layout.names[:4])}. Pass the one that trains problem.model."
        )
    flat = problem.gradient() if gradient is None else gradient
    for before, after in pairs:
        where = places.get(id(before))
        after.grad = None if where is None else flat[where].to(after).view_as(after).clone()
    try:
        clone.step()
    except TypeError as error:
        raise ProblemError(
            f"Expected an optimiser whose step() takes no closure, found {type(optimizer).__name__}: {error}. Give the update "
            "itself as a direction."
        ) from error
    update = torch.zeros(problem.n, dtype=problem.dtype, device=problem.device)
    for before, after in pairs:
        if id(before) in places:
            update[places[id(before)]] = (after.detach() - before.detach()).reshape(-1).to(update)
    return update
