"""What a loss refuses, and that a module says what it takes."""

from __future__ import annotations

import inspect
import pydoc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from losses.loss_cases import VARIANTS, Case, cases
from theodolite import losses
from theodolite.losses.checks import Interval
from theodolite.losses.registry import LOSSES, LossModule, keyword_options

LOGITS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 1, 2, 3, 0])
CLASSES = [case for case in cases("classes") if case.options == VARIANTS.get(case.entry.name, [{}])[0]]
REDUCED = [n for n in sorted(LOSSES) if "reduction" in keyword_options(LOSSES[n].function)]


def each(found: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", found, ids=[case.entry.name for case in found])


def module_named(name: str) -> type[LossModule]:
    made = (value for value in vars(losses).values() if inspect.isclass(value) and issubclass(value, LossModule))
    return next(module for module in made if module is not LossModule and module.function.__name__ == name)


@pytest.mark.parametrize("name", REDUCED)
def test_an_unknown_reduction_is_refused_by_function_and_module(name: str) -> None:
    with pytest.raises(ValueError, match=f"'avg' is not a valid value for reduction of {name}"):
        LOSSES[name].function(reduction="avg")
    required = {n: 0.5 for n, p in _options(name).items() if p.default is inspect.Parameter.empty and n != "counts"}
    counts = {"counts": [2, 1]} if "counts" in _options(name) else {}
    with pytest.raises(ValueError, match="'avg' is not a valid value for reduction"):
        module_named(name)(reduction="avg", **required, **counts)


def _options(name: str) -> dict[str, inspect.Parameter]:
    function = LOSSES[name].function
    return {n: inspect.signature(function).parameters[n] for n in keyword_options(function)}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_range_is_of_an_option_and_holds_its_default(name: str) -> None:
    options = _options(name)
    for option, check in LOSSES[name].checks.items():
        default = options[option].default
        if default not in (None, inspect.Parameter.empty):
            check(name, option, default)
        if isinstance(check, Interval):
            with pytest.raises(ValueError, match=rf"{name} expects {option} in .*Found {option} = nan"):
                LOSSES[name].function(**{option: float("nan")})
            with pytest.raises(TypeError, match=f"{name} expects a number in .* for {option}. Found '2'"):
                LOSSES[name].function(**{option: "2"})


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("(0, 1]", (1e-9, 1), (0, 1.1, -1)),
        ("[0, ∞)", (0, 1e300), (-1e-9, float("inf"))),
        ("[1, ∞]", (1, float("inf")), (0.5,)),
        ("(−∞, 0)", (-1e300,), (0, float("-inf"), 2)),
    ],
)
def test_intervals_read_as_in_mathematics(text: str, inside: tuple[float, ...], outside: tuple[float, ...]) -> None:
    assert all(value in Interval(text) for value in inside)
    assert not any(value in Interval(text) for value in outside)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.gce(LOGITS, TARGET, q=-1), r"gce expects q in \(0, 1\]. Found q = -1"),
        (lambda: losses.gce(LOGITS, TARGET, q=0), r"Found q = 0"),
        (lambda: losses.GCELoss(q=2), r"gce expects q in \(0, 1\]. Found q = 2"),
        (lambda: losses.focal(LOGITS, TARGET, gamma=-1), r"focal expects gamma in \[0, ∞\)"),
        (lambda: losses.sce(LOGITS, TARGET, log_zero=1.0), r"log_zero in \(−∞, 0\). Found log_zero = 1.0"),
        (lambda: losses.kd(LOGITS, LOGITS, temperature=0), r"temperature in \(0, ∞\)"),
        (lambda: losses.info_nce(LOGITS, LOGITS, temperature=torch.tensor(-1.0)), "Found temperature = -1.0"),
        (lambda: losses.triplet(LOGITS, TARGET, mining="easy"), "'easy' is not a valid value for mining of triplet"),
        (lambda: losses.tversky(LOGITS.sigmoid(), LOGITS.sigmoid(), over="row"), "valid value for over of tversky"),
    ],
)
def test_options_outside_their_range_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@each(CLASSES)
def test_targets_that_are_no_classes_are_refused(case: Case) -> None:
    name = case.entry.name
    inputs, target = case.inputs()
    with pytest.raises(ValueError, match=rf"{name} expects classes 0 to 3, or ignore_index = -100. Found 4 \(2 of 5"):
        case(inputs, torch.tensor([0, 4, 1, 9, -100]))
    with pytest.raises(ValueError, match=f"{name} expects .*ignore_index = 4. Found -1"):
        case(inputs, torch.tensor([0, 4, 1, -1, 2]), ignore_index=4)
    with pytest.raises(ValueError, match=rf"{name} expects .*Found shapes \(5, 4\) and \(3,\)"):
        case(inputs, target[:3])
    with pytest.raises(ValueError, match=rf"{name} expects logits \(batch, classes, …\). Found shape \(4,\)"):
        case(inputs[0], target[0])
    with pytest.raises(TypeError, match=f"{name} expects floating-point logits. Found torch.int64"):
        case(inputs.long(), target)
    if name != "sparsemax_loss":  # which also takes distributions
        with pytest.raises(TypeError, match=f"{name} expects class indices of dtype int64. Found torch.float64"):
            case(inputs, target.double())
    with pytest.raises(TypeError, match=f"{name} expects class indices of dtype int64. Found torch.bool"):
        case(inputs, target > 1)


def test_values_that_cannot_be_read_are_not() -> None:
    """Under transforms; shapes are still known there."""
    targets = TARGET.expand(3, -1)
    values = torch.func.vmap(lambda y: losses.gce(LOGITS, y))(targets)
    torch.testing.assert_close(values, losses.gce(LOGITS, TARGET).expand(3))
    with pytest.raises(ValueError, match=r"Found shapes \(5, 4\) and \(3,\)"):
        torch.func.vmap(lambda y: losses.gce(LOGITS, y))(targets[:, :3])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: losses.sigmoid_focal(LOGITS, torch.full((5, 4), 7.0)), ValueError, r"labels in \[0, 1\]. Found .* 7"),
        (lambda: losses.sigmoid_focal(LOGITS, torch.ones(5, 4).long()), TypeError, "use labels.float()"),
        (lambda: losses.asymmetric(LOGITS, LOGITS[:, :1].sigmoid()), ValueError, r"shapes \(5, 4\) and \(5, 1\)"),
        (lambda: losses.quantile(LOGITS, LOGITS[:, :1]), ValueError, r"shape of the predictions. Found .*\(5, 1\)"),
        (lambda: losses.dice(LOGITS[..., None], LOGITS[..., None] ** 0), ValueError, "Apply softmax or sigmoid"),
        (lambda: losses.density_normalised_edge(LOGITS, TARGET + 1), ValueError, "classes 0 to 3"),
    ],
)
def test_labels_values_and_masks_are_checked_too(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_sparsemax_of_nan_is_nan() -> None:
    """As cross-entropy has it: a training that diverged is seen in its loss, not in an index error."""
    broken = LOGITS * torch.nan
    assert F.cross_entropy(broken, TARGET).isnan()
    assert losses.sparsemax_loss(broken, TARGET).isnan()


COUNTED: dict[str, Callable[[Any], Any]] = {
    "ldam_margins": losses.ldam_margins,
    "drw_weights": losses.drw_weights,
    "ldam": lambda counts: losses.ldam(LOGITS[:, :3], TARGET % 3, counts=counts),
    "vs_loss": lambda counts: losses.vs_loss(LOGITS[:, :3], TARGET % 3, counts=counts),
    "integrated_risk": lambda counts: losses.integrated_risk(LOGITS[None, :, :3], TARGET % 3, counts=counts),
}


@pytest.mark.parametrize("name", COUNTED)
def test_counts_are_any_sequence_without_an_empty_class(name: str) -> None:
    function = COUNTED[name]
    torch.testing.assert_close(function([1, 3, 10]), function(torch.tensor([1, 3, 10])))
    torch.testing.assert_close(function((1.0, 3.0, 10.0)), function(torch.tensor([1, 3, 10])))
    with pytest.raises(ValueError, match=f"{name} expects .* every class in counts. Found that class 1 has 0: leave"):
        function([3, 0, 10])
    with pytest.raises(ValueError, match="class 0 has -1, class 2 has nan"):
        function([-1, 2, float("nan")])


@pytest.mark.parametrize("module", [losses.LDAMLoss, losses.VSLoss, losses.IntegratedRiskLoss])
def test_modules_of_counts_refuse_when_they_are_made(module: Any) -> None:
    with pytest.raises(ValueError, match="class 1 has 0"):
        module(counts=[4, 0])
    with pytest.raises(ValueError, match=r"counts of shape \(classes,\). Found \(\)"):
        module(counts=torch.tensor(3))
    with pytest.raises(TypeError, match=rf"{module.__name__} needs counts, as {module.__name__}\(counts=…\)"):
        module()


def test_weights_go_from_equal_to_inverse_counts() -> None:
    counts = [1, 4, 20]
    inverse = 1 / torch.tensor(counts, dtype=torch.float64)
    expected = (3 * inverse / inverse.sum()).float()
    torch.testing.assert_close(losses.drw_weights(counts, beta=1.0), expected)
    torch.testing.assert_close(losses.drw_weights(counts, beta=1 - 1e-9), expected)
    torch.testing.assert_close(losses.drw_weights(counts, beta=0.0), torch.ones(3))
    for beta in (-0.1, 2.0, float("nan")):
        with pytest.raises(ValueError, match=r"drw_weights expects beta in \[0, 1\]"):
            losses.drw_weights(counts, beta=beta)


def test_a_module_takes_its_options_by_name() -> None:
    made: Any = losses.GCELoss
    with pytest.raises(TypeError, match=r"GCELoss takes its options by name, as GCELoss\(q=0.5\); they are q, weight"):
        made(0.5)


def test_help_shows_options_defaults_ranges_and_paper() -> None:
    assert str(inspect.signature(losses.GCELoss)).startswith("(*, q: 'float' = 0.7, weight:")
    page = pydoc.plain(pydoc.render_doc(losses.GCELoss))
    assert "class GCELoss(theodolite.losses.registry.LossModule)" in page
    assert "q (in (0, 1]; default 0.7): " in page
    assert "weight, ignore_index, reduction (default None, -100, 'mean'): as in" in page
    assert "Zhang and Sabuncu 2018" in page
    assert "counts (required): training examples of each class." in (losses.VSLoss.__doc__ or "")


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_module_documents_every_option_of_its_function(name: str) -> None:
    doc = module_named(name).__doc__ or ""
    assert "References:\n    " in doc
    named = [n.strip() for line in doc.splitlines() if line.startswith("    ") for n in line.split(" (")[0].split(",")]
    assert set(keyword_options(LOSSES[name].function)) <= set(named)
