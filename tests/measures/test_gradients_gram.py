"""The Gram matrix of a problem is that of its samples alone, also drawn, grouped, broken; planted truths are found."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from families import BY_NAME, FAMILIES, Family, merged
from theodolite.errors import DataError, OperatorError, ProblemError
from theodolite.measures import gradients
from theodolite.problem import Problem
from theodolite.problem.data import split
from theodolite.records import Log, differences, read

all_families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def per_sample(family: Family) -> tuple[np.ndarray, np.ndarray]:
    """Losses and gradients from problems of one sample each, scaled so that their means are those of the problem."""
    model, batches = family.model_and_data()
    whole = family.problem_of(model, batches)
    denominator = whole.total_weight(whole.totals()[1])
    losses, rows = [], []
    for sample in split(merged(batches)[0], 1):
        one = family.problem_of(model, [sample])
        weight = float(one.totals()[1].sum())
        factor = (one.total_weight(torch.tensor([weight])) if weight else 0.0) * whole.samples / denominator
        losses.append(one.loss() * factor if weight else 0.0)
        rows.append(one.gradient() * factor if weight else torch.zeros(whole.n, dtype=torch.float64))
    return np.array(losses), torch.stack(rows).numpy()


@all_families
def test_the_record_equals_the_samples_alone(family: Family) -> None:
    losses, rows = per_sample(family)
    problem = family.problem()
    update = torch.linspace(-1, 1, problem.n, dtype=torch.float64)
    found = gradients(problem, gram=True, layers=True, update=update)
    scale = np.abs(rows @ rows.T).max()
    np.testing.assert_allclose(found.gram, rows @ rows.T, atol=1e-10 * scale)
    np.testing.assert_allclose(found.sample_losses, losses, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.update_dots, rows @ update.numpy(), atol=1e-9 * np.sqrt(scale) * problem.n)
    for index, where in enumerate(problem.layout.layer_slices.values()):
        np.testing.assert_allclose(found.layer_grams[index], rows[:, where] @ rows[:, where].T, atol=1e-10 * scale)
        np.testing.assert_allclose(
            found.layer_sample_norms[index], np.linalg.norm(rows[:, where], axis=1), atol=1e-7 * np.sqrt(scale)
        )
    assert found.mean_square.value == pytest.approx(found.norm**2, rel=1e-9)
    assert found.sample_losses.mean() == pytest.approx(found.loss, rel=1e-9)
    assert found.parameters == problem.layout.names
    np.testing.assert_allclose(found.coverage, 1, atol=1e-8)
    assert found.indices.tolist() == list(range(problem.samples))


def test_a_draw_is_a_part_of_the_whole_with_its_places() -> None:
    """Batches of unequal shapes are joined in another order when some of their samples are drawn."""
    family = BY_NAME["mlp"]
    whole = gradients(family.problem(), groups="targets")
    drawn = gradients(family.problem(), groups="targets", samples=9, seed=3)
    assert drawn.gram.shape == (9, 9)
    np.testing.assert_allclose(drawn.gram, whole.gram[np.ix_(drawn.indices, drawn.indices)], rtol=1e-9)
    np.testing.assert_allclose(drawn.sample_losses, whole.sample_losses[drawn.indices], rtol=1e-9)
    names = [np.array(record.group_names)[record.groups] for record in (whole, drawn)]
    assert names[0][drawn.indices].tolist() == names[1].tolist()
    assert drawn.norm == whole.norm
    assert "9 samples drawn from 17" in drawn.notes[0]
    assert not differences(drawn, gradients(family.problem(), groups="targets", samples=9, seed=3), ignore={"cost"})


def test_groups_by_labels_and_by_function_are_the_same() -> None:
    family = BY_NAME["mlp"]
    targets = torch.cat([targets for _, targets in family.batches()])
    by_name = gradients(family.problem(), groups="targets", samples=10)
    for groups in (targets, targets.tolist(), lambda batch: batch[1]):
        found = gradients(family.problem(), groups=groups, samples=10)
        assert found.group_names == by_name.group_names
        assert found.groups.tolist() == by_name.groups.tolist()
    domains = gradients(family.problem(), groups=["a"] * 7 + ["b"] * 10)
    assert domains.group_names == ("a", "b")
    assert domains.group_alignment.counts.tolist() == [7, 10]
    with pytest.raises(DataError, match=r"each of 17 samples, found labels of shape \(3,\)"):
        gradients(family.problem(), groups=[0, 1, 2])
    with pytest.raises(DataError, match="Expected groups 'targets'"):
        gradients(family.problem(), groups="classes")
    with pytest.raises(DataError, match="one integer target for each sample"):
        gradients(BY_NAME["mlp-squared"].problem(), groups="targets")


def test_without_a_gram_matrix_all_is_as_before() -> None:
    plain, rich = (gradients(BY_NAME["mlp"].problem(), gram=gram) for gram in (False, "auto"))
    assert plain.gram is None
    assert plain.cost.gradients == 1
    for name in ("loss", "loss_stderr", "norm", "norm_stderr"):
        assert getattr(plain, name) == getattr(rich, name)
    with pytest.raises(ProblemError, match="at least 2 samples"):
        gradients(BY_NAME["mlp"].problem(), samples=1)
    with pytest.raises(ProblemError, match="True, False or 'auto', found 'yes'"):
        inspect.unwrap(gradients)(BY_NAME["mlp"].problem(), gram="yes")


def test_coupled_samples_have_no_gram_matrix() -> None:
    problem = _with_batchnorm()
    found = gradients(problem, gram="auto")
    assert found.gram is None
    assert np.isfinite(found.norm)
    assert "no Gram matrix of per-sample gradients" in found.notes[-1]
    with pytest.raises(OperatorError, match="BatchNorm on batch statistics"):
        gradients(problem, gram=True)


def _with_batchnorm() -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    batch = torch.randn(6, 4, dtype=torch.float64), torch.randint(2, (6,))
    return Problem(model, nn.CrossEntropyLoss(), [batch], mode="train")


def test_a_sample_with_nan_is_marked_and_the_rest_is_read() -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    (inputs, targets), *rest = batches
    broken = inputs.clone()
    broken[2] = torch.nan
    found = gradients(BY_NAME["mlp"].problem_of(model, [(broken, targets), *rest]), groups="targets")
    whole = gradients(BY_NAME["mlp"].problem_of(model, batches), gram=True)
    others = np.delete(np.arange(17), 2)
    assert np.flatnonzero(~found.finite).tolist() == [2]
    np.testing.assert_allclose(found.gram[np.ix_(others, others)], whole.gram[np.ix_(others, others)], rtol=1e-9)
    assert np.isnan(found.loss)
    assert np.isfinite(found.noise_scale.value) or found.noise_dominated
    assert any("NOT finite for 1 of 17 samples (2)" in note for note in found.notes)


def test_scores_of_classifiers_are_norms_at_the_logits() -> None:
    """GraNd of a last layer is EL2N·√(‖h‖² + 1), here of a linear model whose features are the inputs."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(12, 5, dtype=torch.float64), torch.randint(3, (12,))
    found = gradients(Problem(nn.Linear(5, 3).double(), nn.CrossEntropyLoss(), [(inputs, targets)]), gram=True)
    expected = found.el2n * np.sqrt(np.square(inputs.numpy()).sum(1) + 1)
    np.testing.assert_allclose(found.sample_norms, expected, rtol=1e-10)
    assert gradients(BY_NAME["mlp-squared"].problem(), gram=True).el2n is None


def test_order_of_samples_and_scale_of_the_loss() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(10, 5, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64)
    model = nn.Linear(5, 2).double()
    order = torch.randperm(10)
    found = gradients(Problem(model, nn.MSELoss(), [(inputs, targets)]), gram=True)
    turned = gradients(Problem(model, nn.MSELoss(), [(inputs[order], targets[order])]), gram=True)
    np.testing.assert_allclose(turned.gram, found.gram[np.ix_(order, order)], rtol=1e-9, atol=1e-14)
    scaled = gradients(
        Problem(model, lambda out, target: 3 * (out - target).square().mean(), [(inputs, targets)]), gram=True
    )
    np.testing.assert_allclose(scaled.gram, 9 * found.gram, rtol=1e-9, atol=1e-13)
    assert scaled.noise_scale.value == pytest.approx(found.noise_scale.value)


def test_relabelled_samples_are_found() -> None:
    """After training on clean labels, a tenth of them is flipped: they have the largest norms and oppose the rest."""
    torch.manual_seed(0)
    centres = 3 * torch.eye(4, 8)
    targets = torch.arange(200) % 4
    inputs = centres[targets] + 0.6 * torch.randn(200, 8)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    planted = torch.randperm(200)[:20]
    targets[planted] = (targets[planted] + 1) % 4
    found = gradients(Problem(model, nn.CrossEntropyLoss(), [(inputs, targets)]), gram=True).attribution
    first = set(found.indices[:20].tolist())
    recall = len(first & set(planted.tolist())) / 20
    flagged = set(found.outliers.tolist())
    print(f"recall {recall:.2f}; {len(flagged)} flagged, of which planted {len(flagged & set(planted.tolist()))}")
    assert recall >= 0.9
    assert len(flagged & set(planted.tolist())) >= 18


def test_opposed_tasks_are_flagged_and_agreeing_ones_are_not() -> None:
    """Three tasks on one linear model: two share their weights, the third asks for the opposite."""
    g = torch.Generator().manual_seed(0)
    inputs = torch.randn(120, 6, generator=g, dtype=torch.float64)
    sign = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)[torch.arange(120) % 3]
    targets = (sign * inputs.sum(1))[:, None] + 0.3 * torch.randn(120, 1, generator=g, dtype=torch.float64)
    model = nn.Linear(6, 1).double()
    nn.init.zeros_(model.weight)
    names = np.array(["north", "east", "south"])[np.arange(120) % 3]
    found = gradients(Problem(model, nn.MSELoss(), [(inputs, targets)]), groups=names)
    assert {frozenset(pair) for pair in found.group_alignment.conflicts()} == {
        frozenset({"north", "south"}),
        frozenset({"east", "south"}),
    }
    north, east = (found.group_names.index(name) for name in ("north", "east"))
    assert found.group_alignment.cosines[north, east] > 0.5
    assert found.layer_group_alignment[found.layers[0]].conflicts() == found.group_alignment.conflicts()


def test_steps_by_batch_size_follow_the_trade_off() -> None:
    """On a noisy quadratic, at a tenth of the best rate of each batch size, steps to a hundredth of the loss are as predicted."""
    g = torch.Generator().manual_seed(0)
    size = 20
    inputs = torch.randn(512, size, generator=g, dtype=torch.float64)
    start = torch.ones(size, dtype=torch.float64)
    model = nn.Linear(size, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(start)
    found = gradients(
        Problem(model, nn.MSELoss(), [(inputs, torch.zeros(512, 1, dtype=torch.float64))]), gram=True, samples=512
    )
    low, high = found.noise_scale_interval()
    assert low < size + 1 < high  # of x xᵀθ with x normal: tr Σ = (d + 1)|θ|²
    sizes = np.array([4, 16, 64])
    predicted, _ = found.trade_off(sizes.astype(float))
    least = _steps(start, batch=16_384, rate=0.1, generator=g)
    for batch, ratio in zip(sizes.tolist(), predicted.tolist(), strict=True):
        taken = np.mean([_steps(start, batch=batch, rate=0.1 / ratio, generator=g) for _ in range(4)])
        print(f"batch {batch}: predicted {ratio:.2f}, measured {taken / least:.2f}")
        assert taken / least == pytest.approx(ratio, rel=0.2)


def _steps(start: torch.Tensor, *, batch: int, rate: float, generator: torch.Generator) -> int:
    """Of SGD on ½E(xᵀθ)² with fresh normal x, until the loss is a hundredth."""
    theta, steps = start.clone(), 0
    while float(theta.square().sum()) > 0.01 * float(start.square().sum()):
        x = torch.randn(batch, len(theta), generator=generator, dtype=torch.float64)
        theta -= rate * (x.T @ (x @ theta)) / batch
        steps += 1
    return steps


def test_a_log_keeps_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = gradients(BY_NAME["mlp"].problem(), groups="targets", step=3)
    with Log(tmp_path / "run") as log:
        log.append(found)
    assert not differences(read(tmp_path / "run").records[0], found, ignore={"context"})


def test_the_training_is_not_disturbed() -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    gradients(BY_NAME["mlp"].problem_of(model, batches), groups="targets", samples=9)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
