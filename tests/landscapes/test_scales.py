"""Normalisations by their formulas in both norms, policies, frozen parameters, and orthogonality after normalisation."""

from __future__ import annotations

import math

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from families import BY_NAME
from theodolite.errors import ParameterError, ProblemError
from theodolite.landscapes import directions, line, plane
from theodolite.landscapes.directions import frozen, gaussian, normalise, orthogonal, random_directions, uniform
from theodolite.problem import Problem

SEED = 2


@pytest.fixture(scope="module")
def problem() -> Problem:
    return BY_NAME["convnet"].problem()


def theta(problem: Problem) -> Tensor:
    return problem.layout.flatten([leaf.detach() for leaf in problem.point().leaves])


def parts(flat: Tensor, problem: Problem) -> dict[str, Tensor]:
    return dict(zip(problem.layout.names, problem.layout.unflatten(flat), strict=True))


def norm(x: Tensor, order: int) -> float:
    """By its definition, with absolute values: sums of signed powers may vanish or blow up."""
    return float((x.abs() ** order).sum() ** (1 / order))


def one_dimensional(problem: Problem) -> Tensor:
    return torch.cat([torch.full((s.numel(),), len(s) < 2) for s in problem.layout.shapes])


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("policy", ["zero", "whole", "keep"])
@pytest.mark.parametrize("how", ["filter", "layer", "model"])
def test_every_piece_has_the_norm_of_the_models_own(problem: Problem, how: str, policy: str, order: int) -> None:
    drawn, own = gaussian(problem, seed=SEED), theta(problem)
    found = normalise(drawn, problem, how=how, order=order, one_dimensional=policy)
    bare = one_dimensional(problem)
    if policy == "zero":
        assert not found[bare].any()
    if policy == "keep":
        assert torch.equal(found[bare], drawn[bare])
    moved = torch.ones_like(bare) if policy == "whole" else ~bare
    if how == "model":
        assert norm(found[moved], order) == pytest.approx(norm(own[moved], order), rel=1e-13)
        return
    for (name, part), weights in zip(parts(found, problem).items(), parts(own, problem).values(), strict=True):
        if part.dim() < 2 and policy != "whole":
            continue
        rows = (part, weights) if how == "filter" and part.dim() > 1 else (part[None], weights[None])
        for one, other in zip(*rows, strict=True):
            assert norm(one, order) == pytest.approx(norm(other, order), rel=1e-13), name


def test_scaling_keeps_the_direction_within_each_piece(problem: Problem) -> None:
    drawn = gaussian(problem, seed=SEED)
    ratio = parts(normalise(drawn, problem, how="filter", order=1) / drawn, problem)
    assert all((r > 0).all() for r in (ratio["conv1.weight"], ratio["head.weight"]))
    for row in ratio["conv1.weight"]:
        np.testing.assert_allclose(row, float(row.flatten()[0]), rtol=1e-12)
    whole = normalise(drawn, problem, how="model", order=1) / drawn
    np.testing.assert_allclose(whole, float(whole[0]), rtol=1e-12)


def test_defaults_zero_biases_for_filters_alone(problem: Problem) -> None:
    drawn, bare = gaussian(problem, seed=SEED), one_dimensional(problem)
    for how in ("none", "weight", "filter", "layer", "model"):
        assert bool(normalise(drawn, problem, how=how)[bare].any()) == (how != "filter")
    assert torch.equal(
        normalise(drawn, problem, how="weight", one_dimensional="zero"), drawn * theta(problem).abs() * ~bare
    )


def test_weights_of_norm_layers_have_no_filters_whatever_their_shape() -> None:
    model = nn.Sequential(nn.LayerNorm((3, 4)), nn.Flatten(), nn.Linear(12, 2)).double()
    found = Problem(model, nn.MSELoss(), [(torch.ones(2, 3, 4).double(), torch.ones(2, 2).double())])
    zero = parts(normalise(gaussian(found, seed=0), found), found)
    assert not zero["0.weight"].any()
    assert zero["2.weight"].all()
    whole = parts(normalise(gaussian(found, seed=0), found, one_dimensional="whole"), found)
    assert float(whole["0.weight"].norm()) == pytest.approx(math.sqrt(12), rel=1e-14)


@pytest.mark.parametrize("draw", ["gaussian", "uniform"])
@pytest.mark.parametrize("policy", ["zero", "whole", "keep"])
@pytest.mark.parametrize("how", ["none", "weight", "filter", "layer", "model"])
def test_a_pair_is_orthogonal_after_its_normalisation(problem: Problem, how: str, policy: str, draw: str) -> None:
    first, second = random_directions(
        problem, seed=SEED, how=how, order=1, one_dimensional=policy, draw=draw, freeze="head.bias"
    )
    torch.testing.assert_close(
        first,
        normalise(
            getattr(directions, draw)(problem, seed=SEED),
            problem,
            how=how,
            order=1,
            one_dimensional=policy,
            freeze="head.bias",
        ),
    )
    assert second.any()
    assert abs(directions.cosine(first, second)) < 1e-13
    if how in ("layer", "model"):
        again = normalise(second, problem, how=how, order=1, one_dimensional=policy, freeze="head.bias")
        torch.testing.assert_close(again, second, rtol=1e-12, atol=0)


def test_orthogonal_first_and_normalised_then_is_oblique(problem: Problem) -> None:
    """What the published tools do, and why pieces are made orthogonal here."""
    first, second = random_directions(problem, seed=SEED, how="none")
    skewed = [normalise(d, problem, how="filter", one_dimensional="whole") for d in (first, second)]
    assert abs(directions.cosine(*skewed)) > 0.02
    given = orthogonal((first, second), problem, how="filter", one_dimensional="whole")
    assert abs(directions.cosine(*given)) < 1e-14


def test_uniform_directions_are_mostly_one_direction() -> None:
    model = nn.Linear(200, 100)
    found = Problem(model, nn.MSELoss(), [(torch.zeros(2, 200), torch.zeros(2, 100))])
    first, second = uniform(found, seed=0).double(), uniform(found, seed=1).double()
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    # E[uv]/E[u²] = (1/4)/(1/3), with a standard error of about 0.6/√n.
    assert abs(directions.cosine(first, second) - 0.75) < 4 * 0.6 / math.sqrt(found.n)


@pytest.mark.parametrize("how", ["none", "weight", "filter", "layer", "model"])
def test_frozen_parameters_stay_at_theta_and_count_in_no_norm(problem: Problem, how: str) -> None:
    held = normalise(gaussian(problem, seed=SEED), problem, how=how, freeze=("conv1", "head.*"))
    for name, part in parts(held, problem).items():
        if name.startswith(("conv1", "head")):
            assert not part.any(), name
        elif part.dim() > 1:
            assert part.all(), name
    if how == "model":
        free = [t.flatten() for n, t in parts(theta(problem), problem).items() if not n.startswith(("conv1", "head"))]
        assert float(held.norm()) == pytest.approx(float(torch.cat(free).norm()), rel=1e-13)


def test_a_plane_with_a_frozen_module_is_that_of_a_model_without_it(problem: Problem) -> None:
    """Nothing is displaced before it is frozen: the corner of the plane has the frozen weights of the centre."""
    pair = random_directions(problem, seed=SEED, freeze="conv1")
    found = plane(problem, directions=pair, points=(3, 2), span=((-1, 1), (0, 1)))
    alone = problem.select(lambda name, _: not name.startswith("conv1"))
    inner = plane(alone, directions=random_like(pair, problem, alone), points=(3, 2), span=((-1, 1), (0, 1)))
    np.testing.assert_array_equal(found.losses, inner.losses)
    assert found.center == problem.loss()


def random_like(pair: tuple[Tensor, ...], whole: Problem, part: Problem) -> tuple[Tensor, Tensor]:
    """The entries of the selected parameters."""
    first, second = (torch.cat([d[whole.layout.slices[name]] for name in part.layout.names]) for d in pair)
    return first, second


def test_one_weight_a_filter_cannot_be_orthogonal_and_stays() -> None:
    model = nn.Linear(1, 3, bias=False).double()
    found = Problem(model, nn.MSELoss(), [(torch.ones(2, 1).double(), torch.ones(2, 3).double())])
    first, second = random_directions(found, seed=0)
    np.testing.assert_allclose(first.abs(), theta(found).abs(), rtol=1e-14)
    np.testing.assert_allclose(second.abs(), theta(found).abs(), rtol=1e-14)


def test_refusals(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = gaussian(problem, seed=0)
    with pytest.raises(ParameterError, match="No parameter of ConvNet matches params='tail'"):
        normalise(drawn, problem, freeze="tail")
    head = problem.select("head")
    with pytest.raises(ParameterError, match=r"freeze='conv1' to match parameters that .* surveys.*head.weight"):
        frozen(torch.ones(head.n).double(), head, freeze="conv1")
    with pytest.raises(ProblemError, match="not zero, found zeros"):
        line(problem, direction=frozen(drawn, problem, freeze="*"))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without the checker of the tests
    with pytest.raises(ProblemError, match="order to be one of 1, 2, found 3"):
        normalise(drawn, problem, order=3)  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match="'zero', 'whole', 'keep', found 'copy'"):
        normalise(drawn, problem, one_dimensional="copy")  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match="draw to be one of 'gaussian', 'uniform', found 'cauchy'"):
        random_directions(problem, seed=0, draw="cauchy")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_directions_displace_parameters_alone_and_nothing_of_the_model_changes(mode: str) -> None:
    """Statistics of BatchNorm are no direction: at a displaced point they are those of the centre, or of the batch."""
    found = BY_NAME["convnet"].problem(mode=mode)
    for parameter in found.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: tensor.clone() for name, tensor in found.model.state_dict().items()}
    random, flags = torch.get_rng_state(), [module.training for module in found.model.modules()]
    drawn = random_directions(found, seed=SEED, one_dimensional="whole")
    surveyed = plane(found, directions=drawn, points=2, span=(0, 1))
    assert found.n == sum(parameter.numel() for parameter in found.model.parameters())
    assert not set(dict(found.model.named_buffers())) & set(found.layout.names)
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(torch.equal(p.grad, torch.ones_like(p)) and p.requires_grad for p in found.model.parameters())
    assert [module.training for module in found.model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random)
    with torch.no_grad():
        for parameter, part in zip(found.model.parameters(), found.layout.unflatten(drawn[0] + drawn[1]), strict=True):
            parameter += part
    assert surveyed.losses[1, 1] == pytest.approx(found.loss(), rel=1e-12)
