"""Laws of learned links: gradients of convex functions, proper for every parameter."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.nn import functional as F

from theodolite.losses import ConvexGradient, LegendreLink


def block(size: int = 3, seed: int = 0) -> ConvexGradient:
    torch.manual_seed(seed)
    made = ConvexGradient(size, width=8, depth=3).double()
    with torch.no_grad():
        made.convexity.fill_(2.0)
        for shift in made.shifts:
            shift.normal_()
    return made


def test_block_is_the_gradient_of_a_convex_function() -> None:
    made = block()
    for seed in range(5):
        x = 3 * torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        J = jacobian(made, x)
        torch.testing.assert_close(J, J.T, atol=1e-12, rtol=1e-12)
        assert float(torch.linalg.eigvalsh(J)[0]) > float(F.softplus(made.identity.detach()))


def test_block_is_the_gradient_of_the_network_it_names() -> None:
    made = block()

    def network(x: Tensor) -> Tensor:
        z = F.softplus(made.skips[0] @ x + made.shifts[0])
        for raw, skip, shift in zip(made.passes, list(made.skips)[1:], list(made.shifts)[1:], strict=True):
            z = F.softplus(F.softplus(raw) / 8 @ z + skip @ x + shift)
        value = F.softplus(made.convexity) * (F.softplus(made.out) / 8 @ z)
        return value + F.softplus(made.identity) * x.square().sum() / 2

    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(made(x), torch.autograd.grad(network(x), x)[0])


def test_link_is_monotone() -> None:
    made, generator = block(), torch.Generator().manual_seed(1)
    x, y = (5 * torch.randn(100, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    assert float(((made(x) - made(y)) * (x - y)).sum(1).min().detach()) > 0


def test_link_without_networks_is_multinomial_logistic() -> None:
    link = LegendreLink(4, blocks=2).double()
    with torch.no_grad():
        for made in link.blocks:
            made.convexity.fill_(-800.0)
            made.identity.fill_(math.log(math.e - 1))
    z, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 3, 0])
    expected = F.cross_entropy(torch.cat([z, torch.zeros(6, 1, dtype=torch.float64)], 1), y)
    torch.testing.assert_close(link(z, y), expected)


def test_link_recovers_the_posteriors_of_a_discrete_toy() -> None:
    """Free scores of three inputs through a random link: properness does not depend on its parameters."""
    q = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]], dtype=torch.float64)
    torch.manual_seed(3)
    link = LegendreLink(3, blocks=2, width=8).double()
    with torch.no_grad():
        for made in link.blocks:
            made.convexity.fill_(1.0)
    link.reduction = "none"
    scores = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        single = torch.stack([link(scores, torch.full((3,), k)) for k in range(3)], 1)
        value = (q * single).sum()
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(torch.softmax(link.logits(scores.detach()), 1).detach(), q, atol=1e-5, rtol=0.0)


def test_link_differentiates_twice_and_batches() -> None:
    made = block()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(made, (x,))
    torch.testing.assert_close(torch.func.vmap(made)(x), made(x))
