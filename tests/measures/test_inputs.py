"""Gradients in the inputs: oracles, axioms of integrated gradients, the log-Sobolev bound, masks and retraining."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn

from theodolite.errors import DataError, OperatorError, ProblemError
from theodolite.measures import diffroar, gradient_norm_term, input_gradients, integrated_gradients
from theodolite.measures.diffroar import kept_inputs, loss_gradients
from theodolite.problem import Problem
from theodolite.records import Log, differences, read


def classifier(*, samples: int = 12, width: int = 5, seed: int = 0, activation: type[nn.Module] = nn.Tanh) -> Problem:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, 7), activation(), nn.Linear(7, 3)).double()
    inputs, targets = torch.randn(samples, width, dtype=torch.float64), torch.randint(3, (samples,))
    return Problem(model, nn.CrossEntropyLoss(), [(inputs[:5], targets[:5]), (inputs[5:], targets[5:])])


def whole(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = zip(*problem.batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_gradients_of_loss_logit_and_any_value_equal_autograd() -> None:
    problem = classifier()
    inputs, targets = whole(problem)
    leaf = inputs.clone().requires_grad_()
    logits = problem.model(leaf)
    values = {
        "loss": nn.functional.cross_entropy(logits, targets, reduction="none"),
        "logit": logits[torch.arange(12), targets],
        lambda outputs, targets: outputs.square().sum(1): logits.square().sum(1),
    }
    for of, value in values.items():
        found = input_gradients(problem, of=of)
        expected = torch.autograd.grad(value.sum(), leaf, retain_graph=True)[0]
        np.testing.assert_allclose(found.values, value.detach(), rtol=1e-10)
        np.testing.assert_allclose(found.gradients, expected, rtol=1e-9, atol=1e-14)
    assert found.of == "<lambda>"
    assert found.shape == (5,)
    loss = input_gradients(problem)
    assert loss.values.mean() == pytest.approx(problem.loss())
    assert loss.mean_square.value == pytest.approx(np.square(loss.gradients).sum(1).mean())
    assert loss.share_on(np.arange(5)).value == pytest.approx(1.0)
    assert loss.share_on(np.array([1])).value + loss.share_on(np.array([0, 2, 3, 4])).value == pytest.approx(1.0)


def test_integrated_gradients_are_complete() -> None:
    """Completeness: 32 nodes leave less than 1e-4 of the change on a smooth network, and more nodes leave less."""
    problem = classifier()
    for of in ("logit", "loss"):
        found = integrated_gradients(problem, of=of)
        assert np.abs(found.gaps).max() < 1e-8 * np.abs(found.changes).max()
        gaps = [np.abs(integrated_gradients(problem, of=of, nodes=nodes).gaps).max() for nodes in (1, 4, 16)]
        assert gaps[0] > gaps[1] > gaps[2]
    kinked = integrated_gradients(classifier(activation=nn.ReLU))
    assert 0 < kinked.relative_gap < 0.05
    assert "quadrature error" in kinked.summary()[1]


def test_integrated_gradients_of_a_linear_function_take_one_node() -> None:
    torch.manual_seed(0)
    inputs, baseline = torch.randn(6, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    model = nn.Linear(4, 1).double()
    problem = Problem(model, nn.MSELoss(), [(inputs, torch.zeros(6, 1, dtype=torch.float64))])
    found = integrated_gradients(problem, of=lambda outputs, _: outputs[:, 0], baseline=baseline, nodes=1)
    np.testing.assert_allclose(found.attributions, (model.weight.detach() * (inputs - baseline)).numpy(), rtol=1e-12)


class Saturated(nn.Module):
    """1 − relu(1 − x₀), which ignores x₁ and is symmetric in nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.scale * (1 - torch.relu(1 - inputs[:, :1]))


class Rewritten(Saturated):
    """The same function as a minimum."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.clamp(inputs[:, :1], max=1.0)


def test_axioms_of_integrated_gradients() -> None:
    """Sensitivity where the gradient saturates, none of what is not used, and equal attributions of equal functions."""
    data = [(torch.tensor([[2.0, 5.0]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))]
    problems = [Problem(model, nn.MSELoss(), data) for model in (Saturated(), Rewritten())]
    first, second = (
        integrated_gradients(problem, of=lambda outputs, _: outputs[:, 0], nodes=64) for problem in problems
    )
    assert input_gradients(problems[0], of=lambda outputs, _: outputs[:, 0]).gradients.tolist() == [[0.0, 0.0]]
    assert first.attributions[0, 0] == pytest.approx(1.0, abs=0.03)
    assert first.attributions[0, 1] == 0
    np.testing.assert_allclose(first.attributions, second.attributions, atol=1e-12)


def test_what_has_no_input_gradient_is_refused() -> None:
    tokens = Problem(
        nn.Sequential(nn.Embedding(4, 3), nn.Flatten(), nn.Linear(6, 2)),
        nn.CrossEntropyLoss(),
        [(torch.randint(4, (5, 2)), torch.randint(2, (5,)))],
    )
    with pytest.raises(OperatorError, match=r"int64 of shape \(5, 2\)\. Nothing has a derivative in tokens"):
        input_gradients(tokens)
    with pytest.raises(ProblemError, match="'loss', 'logit', or a function"):
        inspect.unwrap(input_gradients)(classifier(), of=3)
    with pytest.raises(DataError, match="one value for each of 5 samples"):
        input_gradients(classifier(), of=lambda outputs, targets: outputs)
    regression = Problem(nn.Linear(2, 2), nn.MSELoss(), [(torch.randn(4, 2), torch.randn(4, 2))])
    with pytest.raises(DataError, match="Expected logits"):
        input_gradients(regression, of="logit")
    with pytest.raises(ProblemError, match="nodes=0"):
        integrated_gradients(classifier(), nodes=0)


def test_the_logit_of_an_ignored_sample_is_none_of_its_classes() -> None:
    model, inputs = nn.Linear(3, 2).double(), torch.randn(4, 3, dtype=torch.float64)
    for ignored in (-100, 7):
        targets = torch.tensor([0, ignored, 1, ignored])
        problem = Problem(model, nn.CrossEntropyLoss(ignore_index=ignored), [(inputs, targets)])
        found = input_gradients(problem, of="logit")
        np.testing.assert_array_equal(found.gradients[[1, 3]], 0)
        np.testing.assert_array_equal(found.values[[1, 3]], 0)
        np.testing.assert_allclose(found.gradients[[0, 2]], model.weight.detach().numpy())


# ------------------------------------------------------------------------------------------------------- PAC-Bayes


class Shape(nn.Module):
    """A loss of one Gaussian input: 1 + a·x + b·x²/2."""

    def __init__(self, slope: float, bend: float) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.tensor([slope, bend], dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 1 + self.coefficients[0] * inputs + self.coefficients[1] * inputs.square() / 2


def gaussian(model: nn.Module, *, samples: int = 401) -> Problem:
    """Inputs at the quantiles of a normal distribution: means are its integrals."""
    grid = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    inputs = torch.special.ndtri(grid)[:, None]
    return Problem(model, lambda outputs, _: outputs.mean(), [(inputs, torch.zeros_like(inputs))])


@pytest.mark.parametrize("reach", [0.05, 0.5, 1.0])
def test_the_term_bounds_the_cumulant_and_is_exact_for_linear_losses(reach: float) -> None:
    """ln M(β) + βEℓ ≤ (σ²β/2)∫: equal for a linear loss, (u − ln(1 + u))/2 against u·ln(1 + u)/2 for x²/2 (u = βσ²)."""
    linear, bent = (gaussian(Shape(*shape)) for shape in ((0.7, 0.0), (0.0, 1.0)))
    found = gradient_norm_term(linear, noise=1.0, temperature=reach * linear.samples)
    assert found.complexity.value / linear.samples == pytest.approx(0.5 * 0.7**2 * reach**2, rel=2e-2)
    found = gradient_norm_term(bent, noise=1.0, temperature=reach * bent.samples)
    term = found.complexity.value / bent.samples
    assert term == pytest.approx(reach * math.log1p(reach) / 2, rel=2e-2)
    assert term >= (reach - math.log1p(reach)) / 2
    assert term <= found.crude(10.0) / bent.samples
    assert np.isnan(found.complexity.stderr)
    bound = found.bound(0.5, divergence=2.0)
    assert bound.value == pytest.approx(0.5 + (2.0 + math.log(20) + found.complexity.value) / found.temperature)


def test_draws_of_a_prior_have_errors_and_seeds() -> None:
    problem = classifier()
    one, again = (gradient_norm_term(problem, noise=0.1, prior_scale=0.3, draws=24, seed=2) for _ in range(2))
    assert not differences(one, again, ignore={"cost"})
    other = gradient_norm_term(problem, noise=0.1, prior_scale=0.3, draws=24, seed=3)
    gap = abs(one.gradient_norm.value - other.gradient_norm.value)
    assert gap < 4 * math.hypot(one.gradient_norm.stderr, other.gradient_norm.stderr)
    here = gradient_norm_term(problem, noise=0.1)
    assert here.gradient_squares.shape == (1,)
    assert here.gradient_norm.value == pytest.approx(input_gradients(problem).mean_square.value)
    with pytest.raises(ProblemError, match=r"temperature=-1\.0"):
        gradient_norm_term(problem, noise=0.1, temperature=-1.0)
    with pytest.raises(ProblemError, match=r"Expected a centre of .* numbers.* found shape \(1,\)"):
        inspect.unwrap(gradient_norm_term)(problem, noise=0.1, centre=torch.zeros(1))
    with pytest.raises(ValueError, match=r"confidence between 0 and 1, for example 0.95, found 1.0"):
        here.bound(0.1, divergence=1.0, confidence=1.0)


def test_deeper_relu_networks_have_a_larger_term_at_initialisation() -> None:
    terms = []
    for depth in (1, 4, 8):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Linear(20, 20), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(20, 3)).double()
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=2 / math.sqrt(20))  # above He: signals grow with depth
        inputs, targets = torch.randn(40, 20, dtype=torch.float64), torch.randint(3, (40,))
        problem = Problem(model, nn.CrossEntropyLoss(), [(inputs, targets)])
        terms.append(gradient_norm_term(problem, noise=0.1).gradient_norm.value)
    assert terms[0] < terms[1] < terms[2]


# -------------------------------------------------------------------------------------------------------- DiffROAR


def blocks(samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A signal block and a block of noise, either first: BlockMNIST in small."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(2, (samples,), generator=generator)
    signal = torch.randn(samples, 6, generator=generator) + (2.0 * targets[:, None] - 1)
    null = torch.randn(samples, 6, generator=generator)
    first = torch.rand(samples, generator=generator) < 0.5
    inputs = torch.where(first[:, None], torch.cat([signal, null], 1), torch.cat([null, signal], 1))
    return inputs, targets, torch.cat([first[:, None].expand(-1, 6), ~first[:, None].expand(-1, 6)], 1)


def fit(inputs: torch.Tensor, targets: torch.Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model.eval()


def test_the_right_attribution_scores_and_its_reverse_and_chance_do_not() -> None:
    (inputs, targets, mask), (tests, answers, masks) = blocks(300, 0), blocks(300, 1)
    signal = {300: {id(inputs): mask, id(tests): masks}}

    def oracle(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return signal[300][id(x)].float()

    def chance(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.rand(x.shape, generator=torch.Generator().manual_seed(len(x) + int(x is tests)))

    data = (inputs, targets), (tests, answers)
    (right,) = diffroar(fit, *data, attribution=oracle, fractions=[0.5], repeats=2).scores
    (reverse,) = diffroar(fit, *data, attribution=lambda *a: -oracle(*a), fractions=[0.5], repeats=2).scores
    (random,) = diffroar(fit, *data, attribution=chance, fractions=[0.5], repeats=2).scores
    print(f"oracle {right}, reverse {reverse}, random {random}")
    assert right.value > 0.3
    assert reverse.value < -0.3
    assert abs(random.value) < 3 * random.stderr


def test_masks_keep_exactly_their_share_and_what_makes_no_sense_is_refused() -> None:
    scores = torch.rand(7, 3, 5)
    for fraction in (0.01, 0.3, 0.5, 1.0):
        for side in ("top", "bottom"):
            kept = kept_inputs(scores, fraction=fraction, side=side)
            assert (kept.flatten(1).sum(1) == math.ceil(fraction * 15)).all()
    assert (kept_inputs(scores, fraction=0.2, side="top") & kept_inputs(scores, fraction=0.2, side="bottom")).sum() == 0
    assert kept_inputs(torch.rand(1, 100), fraction=0.07, side="top").sum() == 7  # 0.07 · 100 is a rounding above 7
    inputs, targets, _ = blocks(20, 0)
    with pytest.raises(ProblemError, match="finite attributions, found 240 entries"):
        diffroar(fit, (inputs, targets), (inputs, targets), attribution=lambda m, x, y: x / 0)
    with pytest.raises(ProblemError, match="fractions between 0 and 1"):
        diffroar(fit, (inputs, targets), (inputs, targets), fractions=[0.0])
    with pytest.raises(ProblemError, match="shape of the inputs"):
        diffroar(fit, (inputs, targets), (inputs, targets), attribution=lambda m, x, y: x[:, 0])
    model = nn.Linear(12, 2)
    leaf = inputs.clone().requires_grad_()
    nn.functional.cross_entropy(model(leaf), targets, reduction="sum").backward()
    torch.testing.assert_close(loss_gradients(model, inputs, targets), leaf.grad.abs())


def test_a_log_keeps_them(tmp_path) -> None:  # type: ignore[no-untyped-def]
    problem = classifier()
    inputs, targets, _ = blocks(20, 0)
    found = [
        input_gradients(problem),
        integrated_gradients(problem, nodes=3),
        gradient_norm_term(problem, noise=0.1),
        diffroar(fit, (inputs, targets), (inputs, targets), fractions=[0.5], repeats=1),
    ]
    with Log(tmp_path / "run") as log:
        for record in found:
            log.append(record)
    for record, kept in zip(found, read(tmp_path / "run").records, strict=True):
        assert not differences(kept, record, ignore={"context"})
        assert record.summary()
