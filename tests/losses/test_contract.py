"""Laws that every loss keeps."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import theodolite.losses as room
from losses.loss_cases import Case, cases
from theodolite.losses.registry import LOSSES, LossModule, module_of

ALL = cases()
CLASSES = cases("classes")
SPLIT = [case for case in ALL if "reduction" in inspect.signature(case.entry.function).parameters and not case.whole]
CLOSED = [case for case in CLASSES if case.entry.gradient is not None]
CURVED = [case for case in CLASSES if case.entry.hessian is not None]


def each(found: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", found, ids=[case.id for case in found])


def free_inputs(case: Case, inputs: tuple[Tensor, ...]) -> tuple[list[int], tuple[Tensor, ...]]:
    free = case.free(inputs)
    return free, tuple(inputs[i].clone().requires_grad_() for i in free)


@each(ALL)
@pytest.mark.parametrize(
    "every", [pytest.param(False, id="projected"), pytest.param(True, id="entry by entry", marks=pytest.mark.slow)]
)
def test_first_and_second_derivatives_equal_differences(case: Case, every: bool) -> None:
    """Along random directions by default."""
    inputs = case.inputs()
    free, leaves = free_inputs(case, inputs)

    def function(*given: Tensor) -> Tensor:
        merged = list(inputs)
        for i, value in zip(free, given, strict=True):
            merged[i] = value
        return case(*merged)

    assert gradcheck(function, leaves, fast_mode=not every)
    gradients = torch.autograd.grad(function(*leaves).sum(), leaves, create_graph=True)
    if any(gradient.requires_grad for gradient in gradients):  # else piecewise linear: the second derivative is 0
        assert gradgradcheck(function, leaves, gen_non_contig_grad_outputs=True, fast_mode=not every)


@each(CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_gradient_and_curvature_are_finite_at_extreme_logits(case: Case, dtype: torch.dtype) -> None:
    rows = [[1e4, -1e4, 0.0, 0.0], [-1e4, 1e4, 0.0, 3.0], [1e4] * 4, [-1e4] * 4, [0.0] * 4, [1e4, -1e4, 1e4, -1e4]]
    logits = torch.tensor(rows, dtype=dtype, requires_grad=True)
    for label in range(4):
        value = case(logits, torch.full((len(rows),), label), reduction="none")
        (gradient,) = torch.autograd.grad(value.sum(), logits, create_graph=True)
        assert value.isfinite().all(), value
        assert gradient.isfinite().all(), gradient
        if gradient.requires_grad:
            (curvature,) = torch.autograd.grad(gradient.sin().sum(), logits)
            assert curvature.isfinite().all(), curvature


@each(CLASSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_computed_in_float32(case: Case, dtype: torch.dtype) -> None:
    logits, target = case.inputs()
    half = (3 * logits).to(dtype).requires_grad_()
    value = case(half, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, case(half.detach().float(), target))
    value.backward()
    assert half.grad is not None
    assert half.grad.dtype == dtype
    assert half.grad.isfinite().all()


@each(SPLIT)
def test_reductions_agree(case: Case) -> None:
    inputs = case.inputs()
    single = case(*inputs, reduction="none")
    torch.testing.assert_close(case(*inputs, reduction="sum"), single.sum())
    divisor = module_of(case.entry.function, "Module")(**case.options).divisor(*inputs)
    torch.testing.assert_close(case(*inputs, reduction="mean"), single.sum() / divisor)
    if case.entry.count is None:
        assert divisor == single.numel()


@each(CLASSES)
def test_samples_are_independent_and_the_batch_has_no_order(case: Case) -> None:
    logits, target = case.inputs()
    order = torch.tensor([3, 0, 4, 1, 2])
    single = case(logits, target, reduction="none")
    torch.testing.assert_close(case(logits[order], target[order], reduction="none"), single[order])
    torch.testing.assert_close(case(logits[1:2], target[1:2], reduction="none"), single[1:2])


@each(CLASSES)
def test_ignored_targets_count_nothing(case: Case) -> None:
    logits, target = case.inputs()
    logits.requires_grad_()
    some = target.clone()
    some[[1, 3]] = -100
    kept = torch.tensor([0, 2, 4])
    torch.testing.assert_close(case(logits, some), case(logits[kept], target[kept]))
    (gradient,) = torch.autograd.grad(case(logits, some), logits)
    assert (gradient[[1, 3]] == 0).all()
    every = torch.full_like(target, -100)
    nothing = case(logits, every)
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert nothing == 0
    assert (gradient == 0).all()
    moved = torch.where(some == -100, 3, torch.where(some == 3, 0, some))
    torch.testing.assert_close(case(logits, moved, ignore_index=3), case(logits, torch.where(moved == 3, -100, moved)))


@each(CLASSES)
def test_class_weights_enter_as_in_cross_entropy(case: Case) -> None:
    logits, target = case.inputs()
    weight = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64)
    single = case(logits, target, reduction="none")
    torch.testing.assert_close(case(logits, target, weight=weight, reduction="none"), weight[target] * single)
    expected = (weight[target] * single).sum() / weight[target].sum()
    torch.testing.assert_close(case(logits, target, weight=weight), expected)


@each(CLASSES)
def test_pixels_are_samples(case: Case) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(4, (2, 3, 5), generator=generator)
    single = case(logits, target, reduction="none")
    assert single.shape == target.shape
    torch.testing.assert_close(single[1, 2, 4], case(logits[1:, :, 2, 4], target[1:, 2, 4]))


@each(CLOSED)
def test_closed_gradient_equals_autograd(case: Case) -> None:
    logits, target = case.inputs()
    logits.requires_grad_()
    (expected,) = torch.autograd.grad(case(logits, target, reduction="sum"), logits)
    closed = case.entry.gradient
    assert closed is not None
    torch.testing.assert_close(closed(logits.detach(), target, **case.options), expected, atol=1e-12, rtol=1e-10)


@each(CURVED)
def test_closed_hessian_equals_autograd(case: Case) -> None:
    logits, target = case.inputs()
    closed = case.entry.hessian
    assert closed is not None
    found = closed(logits, target, **case.options)
    dense = torch.stack(
        [
            torch.autograd.functional.hessian(lambda z, i=i: case(z[None], target[i : i + 1]), logits[i])
            for i in range(len(target))
        ]
    )
    torch.testing.assert_close(found.dense(), dense, atol=1e-12, rtol=1e-10)
    v = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(found @ v, (dense @ v[:, :, None])[:, :, 0], atol=1e-12, rtol=1e-10)


@each(CURVED)
def test_module_curvature_is_that_of_the_reduced_loss(case: Case) -> None:
    logits, target = case.inputs()
    target[2] = -100
    weight = torch.tensor([0.5, 2.0, 0.3, 1.5], dtype=torch.float64)
    module = module_of(case.entry.function, "Module")(weight=weight, **case.options)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(module(logits, target), logits, create_graph=True)
    v = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    product = torch.zeros_like(v)
    if gradient.requires_grad:
        (product,) = torch.autograd.grad((gradient * v).sum(), logits)
    with torch.no_grad():
        torch.testing.assert_close(module.output_gradient(logits, target), gradient.detach(), atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(module.output_hessian(logits, target) @ v, product, atol=1e-12, rtol=1e-10)


@each(CLASSES)
def test_vmap_over_an_ensemble_equals_the_loop(case: Case) -> None:
    _, target = case.inputs()
    stack = torch.stack([case.inputs(seed)[0] for seed in range(3)])
    together = torch.func.vmap(lambda z: case(z, target))(stack)
    torch.testing.assert_close(together, torch.stack([case(z, target) for z in stack]))
    gradients = torch.func.vmap(torch.func.grad(lambda z: case(z, target)))(stack)
    assert gradients.shape == stack.shape


@pytest.mark.slow
def test_every_classification_loss_compiles_without_a_graph_break() -> None:
    # in its own process: the shape checks of the test run are not traceable
    script = """
import sys, torch
sys.path.insert(0, "tests")
from losses.loss_cases import cases
for case in cases("classes"):
    logits, target = case.inputs()
    compiled = torch.compile(lambda z, y: case(z, y), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, target), case(logits, target))
    torch.compiler.reset()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


MODULES = sorted(
    (value for value in vars(room).values() if inspect.isclass(value) and issubclass(value, LossModule)),
    key=lambda made: made.__name__,
)


REQUIRED: dict[str, dict[str, object]] = {
    "LDAMLoss": {"counts": [3, 1]},
    "VSLoss": {"counts": [3, 1]},
    "IntegratedRiskLoss": {"counts": [3, 1]},
    "RegressionByClassesLoss": {"edges": (0.5,)},
    "NumberTokenLoss": {"values": (1.0, 2.0)},
    "EasyLLPLoss": {"prior": 0.3},
}


def test_every_loss_is_exported_with_its_module() -> None:
    made = {module.function.__name__ for module in MODULES if module is not LossModule}
    assert made == set(LOSSES)
    assert set(LOSSES) <= set(room.__all__)


@pytest.mark.parametrize("made", MODULES, ids=lambda made: made.__name__)
def test_module_survives_pickle_and_says_its_name(made: type[LossModule]) -> None:
    if made is LossModule:
        return
    assert getattr(sys.modules[made.__module__], made.__name__) is made
    options = REQUIRED.get(made.__name__, {})
    module = made(**options)
    assert type(pickle.loads(pickle.dumps(module))) is made
    assert repr(copy.deepcopy(module)) == f"{made.__name__}({', '.join(f'{k}={v}' for k, v in options.items())})"


@each(ALL)
def test_module_equals_function(case: Case) -> None:
    inputs = case.inputs()
    module = module_of(case.entry.function, "Module")(**case.options)
    torch.testing.assert_close(module(*inputs), case(*inputs))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_docstring_names_the_paper(name: str) -> None:
    doc = inspect.getdoc(LOSSES[name].function) or ""
    assert "References:" in doc
    assert re.search(r"(19|20)\d\d", doc.split("References:")[1])
    assert ">>>" in doc


def test_module_names_unknown_options() -> None:
    with pytest.raises(TypeError, match="FocalLoss has no option 'gama'; its options are gamma, weight"):
        room.FocalLoss(gama=2.0)


def test_module_keeps_tensor_options_as_buffers_and_parameters_as_parameters() -> None:
    module = room.FocalLoss(gamma=1.0, weight=torch.ones(3))
    assert repr(module) == "FocalLoss(gamma=1.0, weight=(3,))"
    assert set(module.state_dict()) == {"weight"}


def test_module_without_closed_form_says_so() -> None:
    with pytest.raises(NotImplementedError, match="dual_focal has no closed-form hessian"):
        room.DualFocalLoss().output_hessian(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))
