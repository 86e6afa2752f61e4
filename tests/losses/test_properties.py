"""The contract of losses of logits and classes, over drawn batches of any size, class count, weights and ignored targets."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from losses.loss_cases import Case, cases
from theodolite.losses.registry import LossModule, module_of

# losses whose options hold a tensor of four classes are drawn with four
CLASSES = cases("classes")
FIXED = {"ldam", "vs_loss"}
relaxed = settings(max_examples=50, deadline=None)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Case, Tensor, Tensor, Tensor]:
    """A loss, logits of at most ±60, targets of which some are ignored, and class weights."""
    case = draw(st.sampled_from(CLASSES))
    classes = 4 if case.entry.name in FIXED else draw(st.integers(2, 6))
    samples = draw(st.integers(1, 6))
    seed, scale = draw(st.integers(0, 10_000)), draw(st.sampled_from([0.0, 0.01, 1.0, 20.0]))
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(samples, classes, generator=generator, dtype=torch.float64)).clamp(-60, 60)
    target = torch.randint(classes, (samples,), generator=generator)
    target[torch.rand(samples, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = -100
    return case, logits, target, torch.rand(classes, generator=generator, dtype=torch.float64) + 0.1


def module(case: Case, **options: object) -> LossModule:
    return module_of(case.entry.function, "Module")(**case.options, **options)


@relaxed
@given(batches())
def test_reductions_weights_and_ignored_targets(drawn: tuple[Case, Tensor, Tensor, Tensor]) -> None:
    case, logits, target, weight = drawn
    plain = case(logits, target, reduction="none")
    single = case(logits, target, weight=weight, reduction="none")
    ignored = target == -100
    assert bool((single[ignored] == 0).all())
    scales = torch.where(ignored, 0.0, weight[target.clamp(min=0)])
    torch.testing.assert_close(single, scales * plain)
    torch.testing.assert_close(case(logits, target, weight=weight, reduction="sum"), single.sum())
    mean = case(logits, target, weight=weight)
    torch.testing.assert_close(mean, single.sum() / scales.sum() if bool(scales.any()) else torch.zeros_like(mean))
    torch.testing.assert_close(case(logits, target, weight=7 * weight), mean)
    assert module(case, weight=weight).divisor(logits, target) == float(scales.sum())


@relaxed
@given(batches(), st.randoms(use_true_random=False))
def test_samples_have_no_order_and_no_influence_on_each_other(
    drawn: tuple[Case, Tensor, Tensor, Tensor], random: object
) -> None:
    case, logits, target, weight = drawn
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(random.randrange(10**6)))
    single = case(logits, target, weight=weight, reduction="none")
    torch.testing.assert_close(case(logits[order], target[order], weight=weight, reduction="none"), single[order])
    torch.testing.assert_close(case(logits[:1], target[:1], weight=weight, reduction="none"), single[:1])


@relaxed
@given(batches())
def test_values_and_gradients_are_finite_and_ignored_rows_have_none(
    drawn: tuple[Case, Tensor, Tensor, Tensor],
) -> None:
    case, logits, target, weight = drawn
    leaf = logits.requires_grad_()
    value = case(leaf, target, weight=weight)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert math.isfinite(value.item())
    assert bool(gradient.isfinite().all())
    assert bool((gradient[target == -100] == 0).all())


@relaxed
@given(batches())
def test_closed_forms_are_the_derivatives_of_the_reduced_loss(drawn: tuple[Case, Tensor, Tensor, Tensor]) -> None:
    case, logits, target, weight = drawn
    if case.entry.hessian is None:
        return
    leaf, made = logits.requires_grad_(), module(case, weight=weight)
    (gradient,) = torch.autograd.grad(made(leaf, target), leaf, create_graph=True)
    v = torch.ones_like(logits).cumsum(1)
    product = torch.zeros_like(v)
    if gradient.requires_grad:
        (product,) = torch.autograd.grad((gradient * v).sum(), leaf)
    size = 1e-9 * (1 + float(product.abs().max()) + float(gradient.detach().abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(made.output_gradient(logits, target), gradient.detach(), atol=size, rtol=1e-7)
        torch.testing.assert_close(made.output_hessian(logits, target) @ v, product, atol=size, rtol=1e-6)


@relaxed
@given(batches(), st.floats(-50, 50))
def test_losses_through_cross_entropy_depend_on_nothing_else(
    drawn: tuple[Case, Tensor, Tensor, Tensor], shift: float
) -> None:
    """Equal cross-entropy means equal loss: the logits may be shifted, and all classes but the true one renamed."""
    case, logits, target, _ = drawn
    if case.entry.name not in {
        "focal",
        "poly",
        "poly_focal",
        "comp_sum",
        "dco",
        "gce",
        "mae",
        "rce",
        "sce",
        "agce",
        "aul",
        "js",
    }:
        return
    other = logits.flip(1) + shift
    where = torch.where(target == -100, -100, logits.shape[1] - 1 - target)
    same = F.cross_entropy(other, where, reduction="none")
    torch.testing.assert_close(same, F.cross_entropy(logits, target, reduction="none"), atol=1e-9, rtol=1e-9)
    found, moved = (case(z, y, reduction="none") for z, y in ((logits, target), (other, where)))
    torch.testing.assert_close(moved, found, atol=1e-7, rtol=1e-6)
