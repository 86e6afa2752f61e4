"""Losses between two checkpoints: closed forms on quadratics, ends bit for bit, statistics of BatchNorm as named."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from families import BY_NAME
from theodolite.errors import CheckpointError, ProblemError
from theodolite.landscapes.paths import bezier, match, path
from theodolite.landscapes.paths.curve import straight
from theodolite.landscapes.paths.derivatives import slopes_at
from theodolite.landscapes.paths.statistics import recalibrated
from theodolite.landscapes.paths.traveller import Traveller
from theodolite.problem import Problem
from theodolite.records import Log, Path, Snapshot, read
from theodolite.records.barriers import heights


def saddle(sizes: tuple[int, ...] = (5, 5, 5, 5)) -> tuple[Problem, Tensor]:
    """−(x·w − y)², whose deviation from the chord is t(1−t)(x·Δ)² for every sample, and all samples x."""
    g = torch.Generator().manual_seed(0)
    model = nn.Linear(4, 1, bias=False).double()
    batches = [
        (torch.randn(size, 4, generator=g).double(), torch.randn(size, 1, generator=g).double()) for size in sizes
    ]
    problem = Problem.from_loss(model, lambda model, batch: -(model(batch[0]) - batch[1]).square().mean(), batches)
    return problem, torch.cat([x for x, _ in batches])


def ends(n: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=g, dtype=torch.float64), torch.randn(n, generator=g, dtype=torch.float64)


def two_nets() -> tuple[Problem, nn.Module, nn.Module]:
    """Convolutional nets with BatchNorm whose parameters and statistics differ."""
    family = BY_NAME["convnet"]
    model, batches = family.model_and_data()
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in [*second.parameters(), second.norm1.running_mean, second.norm2.running_var]:
            value.add_(0.3 * torch.rand(value.shape, generator=g, dtype=value.dtype))
        second.norm1.num_batches_tracked.fill_(7)
    return family.problem_of(model, batches), first, second


def test_barrier_and_its_error_are_those_of_the_quadratic() -> None:
    problem, samples = saddle()
    first, second = ends()
    found = path(problem, first, second, points=11)
    squares = (samples @ (second - first)).square().numpy()
    np.testing.assert_allclose(found.deviations[0], found.ts * (1 - found.ts) * squares.mean(), atol=1e-12)
    chunks = squares.reshape(4, 5).mean(1) / 4
    barrier = found.barrier()
    assert barrier.value == pytest.approx(chunks.mean(), rel=1e-12)
    assert barrier.stderr == pytest.approx(chunks.std(ddof=1) / 2, rel=1e-9)
    assert barrier.degrees == 3
    assert found.distances[0] == pytest.approx(float((second - first).norm()))


def test_the_prediction_is_exact_on_a_quadratic_with_the_error_of_what_it_predicts() -> None:
    problem, _ = saddle((5, 3, 6))
    found = path(problem, *ends(), points=5)
    assert found.predicted is not None
    assert found.predicted_stderrs is not None
    np.testing.assert_allclose(found.predicted, found.deviations[0], atol=1e-12)
    np.testing.assert_allclose(found.predicted_stderrs, found.stderrs[0], atol=1e-12)
    assert found.predicted_barrier.value == pytest.approx(found.barrier().value, rel=1e-10)
    assert found.prediction_error < 1e-9
    assert (found.cost.gradients, found.cost.products, found.cost.forwards) == (2, 2, 5)


def test_the_prediction_is_held_against_the_line_that_it_is_of() -> None:
    problem, first, second = two_nets()
    other = path(problem, first, second, points=5, batchnorm="recalibrated")
    both = path(problem, first, second, points=5, batchnorm=("recalibrated", "interpolated"))
    assert np.isnan(other.prediction_error)
    assert both.prediction_error == path(problem, first, second, points=5, batchnorm="interpolated").prediction_error


def test_what_belongs_to_other_checkpoints_is_no_part_of_a_path() -> None:
    torch.manual_seed(0)
    one, two, three = (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(3))
    problem = Problem(one, nn.MSELoss(), [(torch.randn(6, 3), torch.randn(6, 2))])
    found = match(problem, one, two)
    assert path(problem, one, two, points=3, aligned=found, predict=False).profiles == ("linear", "aligned")
    for ends in ((one, three), (three, two)):
        with pytest.raises(ProblemError, match=r"match\(problem, start, end\) found, found it of other checkpoints"):
            path(problem, *ends, points=3, aligned=found)
    with pytest.raises(ProblemError, match="names of their own, found 'linear'"):
        path(problem, one, two, points=3, curves={"linear": bezier(problem, one, two, steps=1)})


def test_pieces_of_batches_are_not_recalibrated_on() -> None:
    problem, first, second = two_nets()
    with pytest.raises(ProblemError, match=r"whole batches on one process .* found microbatch=2 and 1 ranks"):
        path(problem.replace(microbatch=2), first, second, points=3)


def test_definitions_of_the_barrier_differ_by_what_the_ends_lose() -> None:
    ts = np.linspace(0, 1, 5)
    losses = np.array([1.0, 2.0, 4.0, 3.5, 3.0])
    chord, larger, mean, connectivity = heights(losses, ts)
    assert (chord, larger, mean, connectivity) == (2.0, 1.0, 2.0, -2.0)
    assert heights(np.array([2.0, 1.0, -3.0, 1.0, 2.0]), ts).tolist() == [0, 0, 0, 5]
    assert np.isnan(heights(np.array([2.0, np.nan, 1.0, 1.0, 2.0]), ts)).all()


@pytest.mark.parametrize("statistics", ["interpolated", "stored"])
def test_the_ends_are_those_of_the_checkpoints_bit_for_bit(statistics: str) -> None:
    problem, first, second = two_nets()
    found = path(problem, first.state_dict(), second, points=3, batchnorm=statistics)  # type: ignore[arg-type]
    losses = [BY_NAME["convnet"].problem_of(end, problem.batches).loss() for end in (first, second)]
    assert found.losses[0, [0, -1]].tolist() == losses
    assert found.stderrs[0, [0, -1]].tolist() == [0, 0]
    assert found.profiles == ({"interpolated": "linear"}.get(statistics, f"linear, {statistics}"),)


def test_statistics_between_the_ends_are_what_their_name_says() -> None:
    problem, first, second = two_nets()
    found = path(problem, first, second, points=5, batchnorm=("interpolated", "stored", "recalibrated"))
    middle = copy.deepcopy(first)
    oracle = BY_NAME["convnet"].problem_of(middle, problem.batches)
    with torch.no_grad():
        for value, other in zip(middle.parameters(), second.parameters(), strict=True):
            value.copy_(0.75 * value + 0.25 * other)
    assert found.losses[1, 1] == pytest.approx(oracle.loss(), rel=1e-12)
    for norm, other in ((middle.norm1, second.norm1), (middle.norm2, second.norm2)):
        norm.running_mean = 0.75 * norm.running_mean + 0.25 * other.running_mean
        norm.running_var = 0.75 * norm.running_var + 0.25 * other.running_var
    assert found.losses[0, 1] == pytest.approx(oracle.loss(), rel=1e-12)
    sizes = [len(y) for _, y in problem.batches]
    for norm in (middle.norm1, middle.norm2):
        norm.reset_running_stats()
    for count, (x, _) in enumerate(problem.batches, start=1):
        for norm in (middle.norm1, middle.norm2):
            norm.momentum = sizes[count - 1] / sum(sizes[:count])
        middle.train()(x)
    assert found.losses[2, 1] == pytest.approx(oracle.loss(), rel=1e-12)


def test_a_recalibrated_barrier_does_not_depend_on_what_the_ends_have_stored() -> None:
    problem, first, second = two_nets()
    scrambled = [copy.deepcopy(end) for end in (first, second)]
    for end, shift in zip(scrambled, (1.0, -2.0), strict=True):
        for norm in (end.norm1, end.norm2):
            norm.running_mean.add_(shift)
            norm.running_var.mul_(5.0)
    found, other = (
        path(problem, *pair, points=5, batchnorm="recalibrated", predict=False) for pair in ((first, second), scrambled)
    )
    np.testing.assert_array_equal(other.losses, found.losses)
    np.testing.assert_array_equal(other.height_stderrs, found.height_stderrs)
    traveller = Traveller(problem)
    for end, loss in zip((first, second), found.losses[0, [0, -1]], strict=True):
        assert traveller.read(recalibrated(traveller, traveller.state_of(end))).loss == loss
    stored = [BY_NAME["convnet"].problem_of(end, problem.batches).loss() for end in (first, second)]
    assert any(f"the ends have losses {stored[0]:.6g} and {stored[1]:.6g}" in note for note in found.notes)
    assert found.cost.forwards == 5 * 2 + 2


def test_recalibrated_statistics_are_those_of_the_activations() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=g).double()
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    problem = Problem(model, nn.MSELoss(), [(x[:8], torch.zeros(8, 4).double()), (x[8:], torch.zeros(4, 4).double())])
    traveller = Traveller(problem)
    state = recalibrated(traveller, traveller.state())
    hidden = model[0](x).detach()
    torch.testing.assert_close(state["1.running_mean"], hidden.mean(0), rtol=1e-12, atol=1e-12)
    variance = (hidden[:8].var(0) * 8 + hidden[8:].var(0) * 4) / 12
    torch.testing.assert_close(state["1.running_var"], variance, rtol=1e-12, atol=1e-12)
    assert traveller.problem.model[1].momentum == 0.1


def two_instance_nets() -> tuple[Problem, nn.Module, nn.Module]:
    """Convolutions with InstanceNorm, whose stored statistics are used at mode="eval"."""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    nets = [
        nn.Sequential(
            nn.Conv1d(1, 2, 2), nn.InstanceNorm1d(2, affine=True, track_running_stats=True), nn.Tanh(), nn.Flatten()
        ).double()
        for _ in range(2)
    ]
    nets[1][1].running_mean += 0.3
    nets[1][1].running_var *= 2
    x, y = torch.randn(6, 1, 5, generator=g).double(), torch.randn(6, 8, generator=g).double()
    return Problem(nets[0], nn.MSELoss(), [(x, y)]), nets[0], nets[1]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("nets", [two_nets, two_instance_nets])
@pytest.mark.parametrize("at", [0.0, 1.0])
def test_slopes_are_the_differences_of_the_losses_along_the_line(at: float, nets: Any, mode: str) -> None:
    problem, first, second = nets()
    traveller = Traveller(problem.replace(mode=mode))
    line = straight(traveller.state_of(first), traveller.state_of(second))
    slopes = slopes_at(traveller, *line.controls, at=at)
    step = 1e-4
    inward = [at, *(abs(at - k * step) for k in (1, 2, 3))]
    losses = [traveller.read(line.at(t)).loss for t in inward]
    sign = 1 if at == 0 else -1
    first_difference = sign * (-11 * losses[0] + 18 * losses[1] - 9 * losses[2] + 2 * losses[3]) / (6 * step)
    second_difference = (2 * losses[0] - 5 * losses[1] + 4 * losses[2] - losses[3]) / step**2
    assert slopes.first.loss == pytest.approx(first_difference, rel=1e-6)
    assert slopes.second.loss == pytest.approx(second_difference, rel=1e-3)


@pytest.mark.parametrize("batchnorm", [None, "stored", "interpolated", "recalibrated"])
def test_on_the_statistics_of_batches_there_is_one_profile_whatever_is_asked(batchnorm: Any) -> None:
    problem, first, second = two_nets()
    train = problem.replace(mode="train")
    found = path(train, first, second, points=5, batchnorm=batchnorm)
    assert found.profiles == ("linear",)
    np.testing.assert_array_equal(found.losses, path(train, first, second, points=5).losses)
    assert found.predicted is not None
    assert np.isfinite(found.predicted).all()
    said = any(f"batchnorm={batchnorm!r} changes nothing: with mode='train'" in note for note in found.notes)
    assert said == (batchnorm is not None)


def test_a_path_leaves_no_trace_and_takes_every_form_of_checkpoint(tmp_path) -> None:
    problem, first, second = two_nets()
    before = {name: value.clone() for name, value in problem.model.state_dict().items()}
    flags = [module.training for module in problem.model.modules()]
    torch.save(first.state_dict(), tmp_path / "first.pt")
    found = path(problem, tmp_path / "first.pt", second.state_dict(), points=5)
    again = path(problem, first, second, points=5)
    np.testing.assert_array_equal(found.losses, again.losses)
    assert all(torch.equal(before[name], value) for name, value in problem.model.state_dict().items())
    assert flags == [module.training for module in problem.model.modules()]
    flat = problem.layout.flatten([leaf.detach() for leaf in problem.point().leaves])
    twice = path(problem, flat, Snapshot(parameters=flat.numpy()), points=3, batchnorm="stored", predict=False)
    assert twice.losses.tolist() == [[problem.loss()] * 3]
    assert twice.barrier().value == 0


def test_a_path_survives_the_run_log(tmp_path) -> None:
    problem, first, second = two_nets()
    found = path(problem, first, second, points=3, step=4)
    with Log(tmp_path / "run") as log:
        log.append(found)
    (again,) = read(tmp_path / "run")
    assert isinstance(again, Path)
    assert repr(again) == repr(found)
    assert again.barrier("linear, recalibrated") == found.barrier("linear, recalibrated")
    assert "barrier above the chord" in found._repr_html_()


def test_errors_show_the_scene() -> None:
    problem, first, second = two_nets()
    renamed = {"extra" if name == "head.bias" else name: value for name, value in first.state_dict().items()}
    with pytest.raises(ProblemError, match="at least 3 points, both ends and one between them, found 2"):
        path(problem, first, second, points=2)
    with pytest.raises(ProblemError, match=r"shape \(\d+,\).*found \(3,\)"):
        path(problem, torch.zeros(3), second)
    with pytest.raises(
        CheckpointError, match=r"of ConvNet, found 1 parameters missing \(head.bias\), 1 unknown \(extra\)"
    ):
        path(problem, renamed, second)
    with pytest.raises(CheckpointError, match=r"1 of other shape \(head.bias \(2,\) for \(3,\)\)"):
        path(problem, {**first.state_dict(), "head.bias": torch.zeros(2)}, second)
    with pytest.raises(ProblemError, match="parameters alone, found 7 others that differ"):
        path(problem.select("head"), first, second)
    with pytest.raises(ProblemError, match="batchnorm to be among"):
        path(problem, first, second, batchnorm=())
    found = path(problem, first, second, points=3, batchnorm="stored", predict=False)
    with pytest.raises(ValueError, match="'linear, stored', found 'bezier'"):
        found.barrier("bezier")


def test_a_path_from_a_checkpoint_to_itself_has_no_barrier_from_rounding() -> None:
    problem, first, _ = two_nets()
    for each in (problem, problem.replace(dtype=torch.float32)):
        found = path(each, first, first, points=7, batchnorm="interpolated", predict=False)
        assert not found.deviations.any()
        assert "linear 0" in found.summary()
    # Two units in the last place of 1 are rounding, a thousand are a reading; in float32 both are rounding.
    ulp = float(np.finfo(np.float64).eps)
    for units, context, said in (
        (2, {}, "linear 0"),
        (1000, {}, "linear 2.22e-13"),
        (1000, {"dtype": "float32"}, "linear 0"),
    ):
        losses = np.array([[1.0, *[1 + units * ulp] * 5, 1.0]])
        shown = found.replace(losses=losses, context=context, height_stderrs=np.full((1, 4), np.nan))
        assert said in shown.summary()


def test_curves_and_matchings_show_what_they_are_in_a_line() -> None:
    torch.manual_seed(0)
    one, two = (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(2))
    problem = Problem(one, nn.MSELoss(), [(torch.randn(6, 3), torch.randn(6, 2))])
    assert (
        repr(bezier(problem, one, two, steps=2))
        == "Curve('bezier', 3 control points of 26 numbers, trained in 2 steps)"
    )
    shown = repr(match(problem, one, two))
    assert shown.startswith("Matching(1 groups of hidden units matched in ")
    assert "tensor" not in shown


def test_one_chunk_has_no_error_and_says_so() -> None:
    problem, _ = saddle((6,))
    found = path(problem, *ends(), points=3)
    assert np.isnan(found.barrier().stderr)
    assert any("single chunk" in note for note in found.notes)
