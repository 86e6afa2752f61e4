"""The Gram matrix of a problem: scale, chunks, layers, directions, checks, and surroundings that must not matter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from families import BY_NAME
from operators.capture.oracle import gram, per_sample_gradients, relative
from snapshots import snapshot
from theodolite.errors import DataError, OperatorError, ProblemError
from theodolite.operators.capture import capture, sample_gram
from theodolite.problem import Problem

EXACT = 1e-10


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def data(samples: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(samples, 3, generator=generator, dtype=torch.float64),
        torch.randint(4, (samples,), generator=generator),
    )


def rows_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Per-sample gradients of the mean cross-entropy, flattened; their mean is its gradient."""
    parts = per_sample_gradients(model, lambda sample: F.cross_entropy(model(sample[0]), sample[1]), batch)
    return torch.cat([part.flatten(1) for part in parts.values()], dim=1)


# --------------------------------------------------------------------------------------------------- what it says


@pytest.mark.parametrize("memory", [None, 1], ids=["factors kept", "factors computed again"])
@pytest.mark.parametrize("name", ["mlp-weighted", "mlp-sum", "convnet", "transformer", "frozen", "from-loss"])
def test_mean_is_the_gradient_over_ragged_chunks(name: str, memory: int | None) -> None:
    problem = BY_NAME[name].problem(memory=memory)
    gradient = problem.gradient()
    found = sample_gram(problem, directions=gradient[None], layers=True)
    samples = problem.samples
    assert found.gram.shape == (samples, samples)
    assert float(found.gram.mean()) == pytest.approx(float(gradient.square().sum()), rel=1e-10)
    assert relative(found.gram, found.gram.T) < EXACT
    assert relative(found.gram.mean(1), found.dots[:, 0]) < EXACT
    assert found.layer_grams is not None
    assert relative(found.layer_grams.sum(0), found.gram) < EXACT
    assert relative(found.layer_norms.square(), found.layer_grams.diagonal(dim1=1, dim2=2)) < EXACT
    for index, where in enumerate(problem.layout.layer_slices.values()):
        expected = float(gradient[where].square().sum())
        assert float(found.layer_grams[index].mean()) == pytest.approx(expected, rel=1e-9, abs=1e-20)


def test_chunks_do_not_matter() -> None:
    batch = data(11)
    whole = sample_gram(Problem(net(), nn.CrossEntropyLoss(), [batch]))
    pieces = sample_gram(Problem(net(), nn.CrossEntropyLoss(), [batch], microbatch=4))
    assert relative(pieces.gram, whole.gram) < EXACT
    rows = rows_of(net(), batch)
    assert relative(whole.gram, gram(rows)) < EXACT


def test_weights_are_those_of_the_criterion() -> None:
    model, (x, y) = net(), data()
    weight = torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=torch.float64)
    y[2] = -100
    found = sample_gram(Problem(model, nn.CrossEntropyLoss(weight=weight, ignore_index=-100), [(x, y)]))
    total = float(weight[y[y >= 0]].sum())
    parts = per_sample_gradients(
        model, lambda sample: F.cross_entropy(model(sample[0]), sample[1], weight=weight, reduction="sum"), (x, y)
    )
    rows = torch.cat([part.flatten(1) for part in parts.values()], dim=1) * len(x) / total
    assert relative(found.gram, gram(rows)) < EXACT
    assert float(found.gram[2].abs().max()) == 0.0


def test_selected_parameters_only() -> None:
    model, batch = net(), data()
    found = sample_gram(Problem(model, nn.CrossEntropyLoss(), [batch], params="2.*"))
    assert relative(found.gram, gram(rows_of(model, batch)[:, 32:])) < EXACT
    assert found.layers == ("2",)


def test_single_precision() -> None:
    model, (x, y) = net(), data(32)
    exact = sample_gram(Problem(model, nn.CrossEntropyLoss(), [(x, y)])).gram
    single = Problem(copy.deepcopy(model).float(), nn.CrossEntropyLoss(), [(x.float(), y)])
    assert relative(sample_gram(single).gram, exact) < 1e-5
    assert relative(sample_gram(single.replace(dtype=torch.float64)).gram, exact) < 1e-6


def test_one_sample() -> None:
    model, batch = net(), data(1)
    assert (
        relative(sample_gram(Problem(model, nn.CrossEntropyLoss(), [batch])).gram, gram(rows_of(model, batch))) < EXACT
    )


def test_other_points() -> None:
    model, batch = net(), data()
    problem = Problem(model, nn.CrossEntropyLoss(), [batch])
    other = problem.displaced(tuple((2 * leaf).detach().requires_grad_() for leaf in problem.point().leaves))
    with torch.no_grad():
        for parameter in (moved := copy.deepcopy(model)).parameters():
            parameter.mul_(2)
    assert relative(sample_gram(problem, point=other).gram, gram(rows_of(moved, batch))) < EXACT


# ------------------------------------------------------------------------------------------- several backward passes


def test_cotangents_give_rows_of_the_jacobian() -> None:
    model, batch = net(), data()
    problem = Problem(model, nn.CrossEntropyLoss(), [batch])
    captured = capture(problem, next(problem.chunks()))
    assert captured.outputs is not None
    assert torch.equal(captured.outputs, model(batch[0]).detach())
    for output in range(4):
        cotangent = torch.zeros_like(captured.outputs)
        cotangent[:, output] = 1.0
        expected = per_sample_gradients(model, lambda sample, k=output: model(sample[0])[0, k], batch)
        for name, uses in captured.merged(cotangent).items():
            assert relative(sum(use.materialise() for use in uses), expected[name]) < EXACT
    assert captured.total == pytest.approx(float(F.cross_entropy(model(batch[0]), batch[1], reduction="sum").detach()))


def test_cotangents_reach_the_fallback() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Scaled()).double()
    batch = data()
    problem = Problem(model, nn.CrossEntropyLoss(), [batch])
    captured = capture(problem, next(problem.chunks()))
    cotangent = torch.randn(6, 4, dtype=torch.float64)
    expected = per_sample_gradients(model, lambda sample: (model(sample[0]) * sample[1]).sum(), (batch[0], cotangent))
    found = captured.merged(cotangent)
    assert {use.kind for use in found["2.scale"]} == {"fallback"}
    for name, uses in found.items():
        assert relative(sum(use.materialise() for use in uses), expected[name]) < EXACT


def test_fallback_within_the_memory() -> None:
    model = nn.Sequential(nn.Linear(3, 4), Scaled(), nn.Tanh(), Scaled()).double()
    exact = sample_gram(Problem(model, nn.CrossEntropyLoss(), [data()]))
    tight = sample_gram(Problem(model, nn.CrossEntropyLoss(), [data()], memory=1))
    assert list(exact.methods.values()).count("fallback") == 2
    assert relative(tight.gram, exact.gram) < EXACT


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (x + 0.0).mul_(self.scale)


def test_a_cotangent_needs_outputs() -> None:
    problem = Problem.from_loss(net(), lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), [data()])
    captured = capture(problem, next(problem.chunks()))
    with pytest.raises(OperatorError, match="a problem with outputs"):
        captured.uses(torch.ones(6, 4, dtype=torch.float64))


def test_uses_of_some_samples() -> None:
    problem = BY_NAME["transformer"].problem()
    captured = capture(problem, next(problem.chunks()))
    index = torch.tensor([4, 1])
    for use in captured.uses():
        assert relative(use.materialise(index), use.materialise()[index]) < EXACT
        assert relative(use.take(index).gram(use), use.gram()[index]) < EXACT


# -------------------------------------------------------------------------------------------------- surroundings


class Blocks(nn.Module):
    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = net()[:2], nn.Sequential(nn.Linear(8, 4).double())
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.two, self.call(self.one, x))


CALLS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "checkpoint": lambda inner, x: checkpoint(inner, x, use_reentrant=False),
    "reentrant checkpoint": lambda inner, x: checkpoint(inner, x.requires_grad_(), use_reentrant=True),
}


@pytest.mark.parametrize("kind", CALLS)
def test_checkpoints_are_covered(kind: str) -> None:
    torch.manual_seed(0)
    model = Blocks(lambda inner, x: inner(x))
    batch = data()
    expected = gram(rows_of(model, batch))
    model.call = CALLS[kind]
    loss = nn.CrossEntropyLoss()
    if kind == "reentrant checkpoint":  # no other derivative of such a model can be taken
        problem = Problem(model, loss, [batch])
        problem._checked = True
    else:
        problem = Problem(model, loss, [batch])
    found = sample_gram(problem)
    assert relative(found.gram, expected) < EXACT
    assert "fallback" not in found.methods.values()


@pytest.mark.parametrize("used", [False, True], ids=["never called", "called before"])
def test_compiled_models_run_eagerly(used: bool) -> None:
    model, batch = net(), data()
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    if used:
        compiled(batch[0])
    found = sample_gram(Problem(compiled, nn.CrossEntropyLoss(), [batch]))
    assert relative(found.gram, gram(rows_of(model, batch))) < EXACT


@pytest.mark.parametrize("outer", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_outer_contexts_do_not_matter(outer: Callable[[], Any]) -> None:
    model, batch = net(), data()
    problem = Problem(model, nn.CrossEntropyLoss(), [batch])
    with outer():
        found = sample_gram(problem)
    assert relative(found.gram.clone(), gram(rows_of(model, batch))) < EXACT


class Autocast(nn.Module):
    """Computes its middle in half precision, whatever is asked for outside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net().float()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x).float()


def test_autocast_inside_the_model() -> None:
    model, (x, y) = Autocast(), data(16)
    found = sample_gram(Problem(model, nn.CrossEntropyLoss(), [(x.float(), y)]))
    rows = rows_of(model, (x.float(), y))
    assert relative(found.gram, gram(rows.double())) < 2e-2


def test_dropout_has_the_masks_of_the_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 4)).double()
    problem = Problem(model, nn.CrossEntropyLoss(), [data()], mode="train")
    found = sample_gram(problem)
    assert float(found.gram.mean()) == pytest.approx(float(problem.gradient().square().sum()), rel=1e-10)
    chunk, point = next(problem.chunks()), problem.point()
    shares = problem.call(lambda m: problem.objective.shares(m, chunk.batch), point)
    rows = torch.stack(
        [
            torch.cat([part.reshape(-1) for part in torch.autograd.grad(share, point.leaves, retain_graph=True)])
            for share in shares
        ]
    )
    assert relative(found.gram, gram(rows)) < EXACT


def test_dropout_reaches_the_fallback() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), Scaled()).double()
    problem = Problem(model, nn.CrossEntropyLoss(), [data()], mode="train")
    found = sample_gram(problem)
    assert "fallback" in found.methods.values()
    assert float(found.gram.mean()) == pytest.approx(float(problem.gradient().square().sum()), rel=1e-10)


@pytest.mark.parametrize("name", ["convnet", "transformer", "lstm"])
def test_nothing_is_disturbed(name: str) -> None:
    model, batches = BY_NAME[name].model_and_data()
    model.train()
    problem = BY_NAME[name].problem_of(model, batches)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = snapshot(model)
    sample_gram(problem)
    assert snapshot(model) == before
    marked = [tensor for batch in batches for tensor in batch if "_theodolite_origin" in tensor.__dict__]
    assert not marked


def test_memory_is_given_back() -> None:
    """Nothing keeps the graph of a pass alive."""
    import gc
    import weakref

    problem = Problem(net(), nn.CrossEntropyLoss(), [data()])
    captured = capture(problem, next(problem.chunks()))
    captured.uses()
    reference = weakref.ref(captured._run.recorder)
    del captured
    gc.collect()
    assert reference() is None


# ---------------------------------------------------------------------------------------------------- bad input


def test_batchnorm_on_batch_statistics_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    with pytest.raises(OperatorError, match="couple the samples"):
        sample_gram(Problem(model, nn.CrossEntropyLoss(), [data()], mode="train"))


class Centred(nn.Module):
    """Subtracts the mean of the batch: the outputs of a sample depend on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return h - h.mean(0)


def test_models_that_couple_samples_are_refused() -> None:
    with pytest.raises(OperatorError, match="do not add up"):
        sample_gram(Problem(Centred(), nn.CrossEntropyLoss(), [data()]))


def test_criteria_that_couple_samples_are_refused() -> None:
    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean(0).square().sum()

    with pytest.raises(ProblemError):
        sample_gram(Problem(net(), criterion, [data()]))


def test_samples_must_come_first() -> None:
    class StepsFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).mean(0)

    x = torch.randn(5, 6, 3, dtype=torch.float64)
    with pytest.raises(DataError, match="samples first"):
        sample_gram(Problem(StepsFirst(), nn.CrossEntropyLoss(), [(x, torch.randint(4, (6,)))]))


def test_samples_without_gradients_do_not_mislead() -> None:
    """As many steps as samples, steps first, and the first and last sample weigh nothing: no layout can be read off them."""

    class StepsFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.transpose(0, 1)).transpose(0, 1)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        total = F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), reduction="sum", ignore_index=-100)
        return total, (batch[1] != -100).sum()

    model, x = StepsFirst(), torch.randn(5, 5, 3, dtype=torch.float64)
    y = torch.randint(4, (5, 5))
    y[0] = y[4] = -100
    parts = per_sample_gradients(model, lambda sample: loss(model, sample)[0], (x, y))
    rows = torch.cat([part.flatten(1) for part in parts.values()], dim=1) * 5 / 15
    assert relative(sample_gram(Problem.from_loss(model, loss, [(x, y)])).gram, gram(rows)) < EXACT


def test_a_sample_with_nan_is_marked_and_leaves_the_others_alone() -> None:
    model, (x, y) = net(), data(8)
    clean = sample_gram(Problem(model, nn.CrossEntropyLoss(), [(x, y)])).gram
    x = x.clone()
    x[5, 1] = float("nan")
    found = sample_gram(Problem(model, nn.CrossEntropyLoss(), [(x, y)]))
    assert found.finite.tolist() == [index != 5 for index in range(8)]
    keep = found.finite
    assert relative(found.gram[keep][:, keep], clean[keep][:, keep]) < EXACT
    assert not found.gram[5].isfinite().any()


def test_deterministic() -> None:
    problem = BY_NAME["transformer"].problem()
    assert torch.equal(sample_gram(problem).gram, sample_gram(problem).gram)
    assert torch.equal(sample_gram(problem).gram, sample_gram(BY_NAME["transformer"].problem()).gram)


def test_rechecking_checks_again() -> None:
    problem = Problem(net(), nn.CrossEntropyLoss(), [data()])
    assert sample_gram(problem).coverage == sample_gram(problem, recheck=True).coverage
