"""Bad input is refused with what was expected, what was found and what to do."""

from __future__ import annotations

import inspect
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from problem import mistakes
from theodolite.errors import (
    DataError,
    DerivativeError,
    NonFiniteError,
    NotDeterministicError,
    OperatorError,
    ParameterError,
    ProblemError,
    TheodoliteWarning,
)
from theodolite.operators import GGN, GradientCovariance, Hessian
from theodolite.problem import Problem
from theodolite.problem.options import Options


def linear() -> nn.Module:
    return nn.Linear(3, 2)


def batch(n: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3), torch.randint(2, (n,))


def problem(batches: Any, model: nn.Module | None = None, criterion: Any = None, **options: Any) -> Problem:
    return Problem(model or linear(), criterion or nn.CrossEntropyLoss(), batches, **options)


# ------------------------------------------------------------------------------------------------------------- batches


def test_a_shuffling_loader() -> None:
    loader = DataLoader(TensorDataset(*batch()), batch_size=4, shuffle=True)
    with pytest.raises(NotDeterministicError, match=r"DataLoader that shuffles \(RandomSampler\).*shuffle=False"):
        problem(loader)


@pytest.mark.parametrize("sampler", ["weighted", "subset"])
def test_a_loader_with_another_random_sampler(sampler: str) -> None:
    data = TensorDataset(*batch(64))
    samplers = {
        "weighted": torch.utils.data.WeightedRandomSampler([1.0] * 64, 64),
        "subset": torch.utils.data.SubsetRandomSampler(range(64)),
    }
    found = problem(DataLoader(data, batch_size=32, sampler=samplers[sampler]))
    with pytest.raises(NotDeterministicError, match=r"probably shuffles; use shuffle=False"):
        found.loss()


class Shuffles:
    """Orders its samples anew at every walk, from one generator or another."""

    def __init__(self, shuffle: Callable[[list[int]], None]) -> None:
        self.shuffle = shuffle
        self.inputs, self.targets = torch.randn(20, 3), torch.randint(2, (20,))

    def __iter__(self) -> Iterator[Any]:
        order = list(range(20))
        self.shuffle(order)
        yield self.inputs[order], self.targets[order]


def by_torch(order: list[int]) -> None:
    order[:] = torch.randperm(len(order)).tolist()


private = random.Random(3)


@pytest.mark.parametrize("shuffle", [by_torch, random.shuffle, private.shuffle], ids=["torch", "python", "private"])
@pytest.mark.parametrize("first", ["loss", "samples"])
def test_an_iterable_that_shuffles(shuffle: Any, first: str) -> None:
    found = problem(Shuffles(shuffle))
    if first == "samples":  # a walk before the check must not hide the shuffling
        assert found.samples == 20
    with pytest.raises(NotDeterministicError, match=r"inputs and targets changed together.*shuffles"):
        found.loss()


def test_an_augmenting_dataset() -> None:
    class Augments(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.ones(3) * index + 0.1 * torch.randn(3), index % 2

    with pytest.raises(NotDeterministicError, match=r"targets are the same but the inputs changed.*augmentation"):
        problem(DataLoader(Augments(), batch_size=4)).loss()


class NoBatches:
    def __iter__(self) -> Iterator[Any]:
        return iter(())


@pytest.mark.parametrize("batches", [[], (), DataLoader([], batch_size=4)], ids=["list", "tuple", "loader"])
def test_no_batches(batches: Any) -> None:
    with pytest.raises(DataError, match=r"at least one batch, found none"):
        problem(batches)


def test_an_iterable_without_batches() -> None:
    with pytest.raises(DataError, match=r"at least one batch, found none"):
        problem(NoBatches()).loss()


def test_generators_are_exhausted_after_one_pass() -> None:
    with pytest.raises(DataError, match=r"found a generator, which is exhausted after one pass.*list\(batches\)"):
        problem(batch() for _ in range(2))
    with pytest.raises(DataError, match=r"found a zip, which is exhausted"):
        problem(zip(torch.randn(3, 2, 3), torch.randint(2, (3, 2)), strict=True))


def test_an_iterable_around_a_generator_is_exhausted_too() -> None:
    class Wrapped:
        def __init__(self) -> None:
            self.generator = iter([batch()])

        def __iter__(self) -> Iterator[Any]:
            return self.generator

    with pytest.raises(DataError, match=r"found a Wrapped that gave batches once and none the second time"):
        problem(Wrapped()).loss()


def test_a_single_batch_is_no_list_of_batches() -> None:
    inputs, targets = batch()
    with pytest.raises(DataError, match=r"found Tensor. Wrap a single batch in a list"):
        problem(inputs)
    with pytest.raises(DataError, match=r"found one mapping. Wrap a single batch in a list"):
        problem({"inputs": inputs})
    with pytest.raises(
        DataError, match=r"batches of \(inputs, targets\), found a Tensor of shape \(8, 3\).*\[\(inputs, targets\)\]"
    ):
        problem((inputs, targets)).loss()


@pytest.mark.parametrize("wrong", [3, {"inputs": 1}, (1,)], ids=["triple", "mapping", "single"])
def test_batches_of_the_wrong_structure(wrong: Any) -> None:
    inputs, targets = batch()
    made = {3: (inputs, targets, targets)}.get(wrong, wrong) if isinstance(wrong, int) else wrong
    with pytest.raises(DataError, match=r"Expected batches of \(inputs, targets\), found.*Problem.from_loss"):
        problem([made]).loss()


# ---------------------------------------------------------------------------------------------------------------- loss


def test_criteria_that_do_not_reduce() -> None:
    with pytest.raises(ProblemError, match=r"CrossEntropyLoss\(reduction='none'\).*reduction='mean'"):
        problem([batch()], criterion=nn.CrossEntropyLoss(reduction="none"))
    vector = problem([batch()], criterion=lambda outputs, y: F.cross_entropy(outputs, y, reduction="none"))
    with pytest.raises(ProblemError, match=r"one number, found a tensor of shape \(8,\).*take its mean"):
        vector.loss()
    with pytest.raises(ProblemError, match=r"a tensor with one number, found float"):
        problem([batch()], criterion=lambda outputs, y: 1.0).loss()


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (lambda loss, out: (loss, out), r"a tuple of 2: shape \(\), shape \(8, 2\)"),
        (lambda loss, out: (loss, out, None), r"a tuple of 3"),
        (lambda loss, out: (loss, -1), r"a tuple of 2: shape \(\), -1"),
        (lambda loss, out: (loss, None), r"a tuple of 2: shape \(\), None"),
    ],
)
def test_tuples_that_are_no_total_and_count(returned: Any, found: str) -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        outputs = model(batch[0])
        return returned(F.cross_entropy(outputs, batch[1]), outputs)

    with pytest.raises(ProblemError, match=rf"a pair \(total, count\).*found {found}"):
        Problem.from_loss(linear(), loss, [batch()]).loss()


@pytest.mark.parametrize("by", ["criterion", "loss function"])
def test_a_mean_over_valid_tokens_as_a_plain_function(by: str) -> None:
    inputs, targets = torch.randn(6, 4, 3), torch.randint(2, (6, 4))
    targets[:3, 1:] = -100
    criterion = lambda outputs, y: F.cross_entropy(outputs.flatten(0, 1), y.flatten())  # noqa: E731
    if by == "criterion":
        found = problem([(inputs, targets)], criterion=criterion)
    else:
        found = Problem.from_loss(linear(), lambda model, b: criterion(model(b[0]), b[1]), [(inputs, targets)])
    with pytest.raises(ProblemError, match=r"mean of its parts.*valid tokens.*pair \(total, count\)"):
        found.loss()


def test_a_sum_as_a_plain_function() -> None:
    found = problem([batch()], criterion=lambda outputs, y: F.cross_entropy(outputs, y, reduction="sum"))
    with pytest.raises(ProblemError, match=r"Expected a loss that is the mean over samples, found"):
        found.loss()


def test_shapes_that_torch_would_broadcast() -> None:
    inputs, targets = torch.randn(8, 3), torch.randn(8)
    with pytest.raises(DataError, match=r"one shape, found \(8, 1\) and \(8,\).*broadcast"):
        Problem(nn.Linear(3, 1), nn.MSELoss(), [(inputs, targets)]).loss()
    with pytest.raises(DataError, match=r"one shape, found \(8, 1\) and \(8,\).*broadcast"):
        Problem(nn.Linear(3, 1), nn.BCEWithLogitsLoss(), [(inputs, targets.sigmoid())]).loss()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_a_reading_but_has_no_derivatives(bad: float) -> None:
    model = linear()
    with torch.no_grad():
        model.weight.fill_(bad)
    found = Problem(model, nn.MSELoss(), [(torch.ones(4, 3), torch.zeros(4, 2))])
    totals, weights = found.totals()
    assert not torch.isfinite(totals).any()
    assert weights.tolist() == [8.0]
    assert found.loss() != found.loss() or found.loss() == bad
    with pytest.raises(NonFiniteError, match=r"finite loss at the current parameters, found (nan|inf).*diverged"):
        found.gradient()
    with pytest.raises(NonFiniteError, match=r"finite loss at the first batch, found (nan|inf)"):
        Hessian(found) @ torch.ones(found.n)
    with pytest.raises(NonFiniteError, match=r"finite loss"):
        Hessian(found.replace(engine="difference")) @ torch.ones(found.n)


# --------------------------------------------------------------------------------------------------------------- model


class Noise(nn.Module):
    """Draws from a generator of its own."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.generator, self.scale = torch.Generator().manual_seed(0), scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.randn(x.shape, generator=self.generator)


@pytest.mark.parametrize("scale", [1.0, 1e-2])
def test_noise_inside_the_model(scale: float) -> None:
    with pytest.raises(NotDeterministicError, match=r"same loss for the same batch and seed, found.*noise inside"):
        problem([batch()], nn.Sequential(Noise(scale), linear())).loss()


def test_noise_from_seeded_generators_is_fixed() -> None:
    class Seeded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    found = problem([batch()], nn.Sequential(Seeded(), linear()))
    assert found.loss() == found.loss()


def test_devices() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(ProblemError, match=r"on one device, found \['cpu', 'meta'\].*model.to\(device\)"):
        problem([batch()], model)
    with pytest.raises(ProblemError, match=r"meta device. Load its weights first"):
        problem([batch()], nn.Linear(3, 2, device="meta"))


@pytest.mark.parametrize("mode", ["train", "as is"])
def test_microbatches_of_what_is_normalised_together(mode: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(ProblemError, match=r"microbatch=None with BatchNorm on batch statistics, found microbatch=2"):
        problem([batch()], model, mode=mode, microbatch=2)


def test_batchnorm_without_stored_statistics_couples_samples_even_in_evaluation() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    with pytest.raises(ProblemError, match=r"microbatch=None with BatchNorm on batch statistics"):
        problem([batch()], model, microbatch=2)
    with pytest.raises(OperatorError, match=r"Per-sample gradients are not defined"):
        GradientCovariance(problem([batch()], model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "test"}, r"mode to be one of 'eval', 'train', 'as is', found 'test'"),
        ({"engine": "magic"}, r"engine to be one of .*'difference', found 'magic'"),
        ({"microbatch": 0}, r"microbatch to be at least 1 sample or None, found 0"),
        ({"dtype": torch.int64}, r"floating-point type, found torch.int64"),
    ],
)
def test_unknown_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        # Past the type checker of the tests, which users do not run and which would refuse it first.
        inspect.unwrap(Options.__init__)(object.__new__(Options), **options)


def test_unknown_options_of_a_replacement() -> None:
    with pytest.raises(ProblemError, match=r"options among \['dtype', .*\], found \['modes'\]"):
        problem([batch()]).replace(modes="eval")


def test_what_a_ggn_needs() -> None:
    with pytest.raises(OperatorError, match=r"found a problem made by Problem.from_loss"):
        GGN(Problem.from_loss(linear(), lambda model, b: F.cross_entropy(model(b[0]), b[1]), [batch()]))

    class Structured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear()

        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(scores=self.inner(x))

    found = problem([batch()], Structured(), lambda outputs, y: F.cross_entropy(outputs.scores, y))
    assert found.loss() > 0
    with pytest.raises(OperatorError, match=r"a tensor or an output with .logits, found SimpleNamespace"):
        GGN(found) @ torch.ones(found.n)


class Sequences(nn.Module):
    """Log-probabilities of four symbols at five times."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).log_softmax(-1)


def alignment(outputs: Tensor, targets: Tensor) -> Tensor:
    """CTC, whose backward torch does not differentiate."""
    samples, times, _ = outputs.shape
    lengths = torch.full((samples,), times), torch.full((samples,), targets.shape[1])
    return F.ctc_loss(outputs.transpose(0, 1), targets, *lengths, reduction="sum") / samples


@pytest.mark.parametrize("operator", [Hessian, GGN, GradientCovariance])
def test_a_criterion_without_a_second_derivative(operator: type) -> None:
    data = [(torch.randn(6, 5, 3), torch.randint(1, 4, (6, 2)))]
    found = problem(data, Sequences(), alignment, engine="retained")
    assert found.gradient().isfinite().all()
    with pytest.raises(
        DerivativeError, match=r"model and criterion to be twice differentiable.*ctc_loss.*or take another criterion"
    ):
        operator(found) @ torch.ones(found.n)


def test_a_criterion_without_a_second_derivative_is_surveyed_by_differences_with_a_warning() -> None:
    data = [(torch.randn(6, 5, 3), torch.randint(1, 4, (6, 2)))]
    H = Hessian(problem(data, Sequences(), alignment))
    with pytest.warns(TheodoliteWarning, match=r"Hessian by central differences of the gradient.*ctc_loss"):
        H @ torch.ones(H.shape[0])
    assert H.engine == "central differences of the gradient"


def test_a_product_that_overflows() -> None:
    found = problem([(torch.ones(2, 3), torch.zeros(2, 2))], criterion=nn.MSELoss())
    with pytest.raises(
        NonFiniteError, match=r"finite product of hessian and vector, found 8 of 8 entries.*torch.float64"
    ):
        Hessian(found) @ torch.tensor([3e38] * 6 + [0.0] * 2)


def test_an_output_without_a_loss() -> None:
    found = Problem.from_loss(linear(), lambda model, b: SimpleNamespace(loss=None, logits=model(b[0])), [batch()])
    with pytest.raises(ProblemError, match=r"found SimpleNamespace whose loss is None.*Put labels into the batch"):
        found.loss()


def test_one_misspelt_glob_of_several() -> None:
    with pytest.raises(
        ParameterError, match=r"Every pattern of params=\['w\*', 'lyr\*'\] must match .* none for 'lyr\*'"
    ):
        problem([batch()], params=["w*", "lyr*"])


def test_a_loss_that_no_parameter_reaches() -> None:
    other = nn.Linear(3, 2)
    model = nn.Linear(3, 2)
    elsewhere = Problem.from_loss(model, lambda _, b: F.cross_entropy(other(b[0]), b[1]), [batch()])
    cut = Problem.from_loss(model, lambda m, b: F.cross_entropy(m(b[0]).detach(), b[1]), [batch()])
    for found in (elsewhere, cut):
        with pytest.raises(
            ProblemError, match=r"depends on the 8 parameters surveyed, found one that none of them reaches"
        ):
            found.loss()


def test_classes_in_the_last_dimension() -> None:
    model = nn.Linear(3, 7)
    tokens = [(torch.randn(4, 5, 3), torch.randint(7, (4, 5)))]
    with pytest.raises(
        DataError, match=r"logits of shape \(4, 5, 5\) for targets of shape \(4, 5\).*transpose\(1, 2\)"
    ):
        Problem(model, nn.CrossEntropyLoss(), tokens).loss()


def test_slightly_unequal_counts_of_valid_tokens_are_seen() -> None:
    model = nn.Linear(3, 7)
    inputs, targets = torch.randn(32, 20, 3), torch.randint(1, 7, (32, 20))
    targets[5, -1] = 0  # one token of 640 is padding

    def mean_over_valid(outputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs.transpose(1, 2), wanted, ignore_index=0)

    with pytest.raises(ProblemError, match=r"mean over samples, found .* as the mean of its parts"):
        Problem(model, mean_over_valid, [(inputs, targets)]).loss()


def test_common_mistakes_are_named_with_the_way_out() -> None:
    run = subprocess.run([sys.executable, mistakes.__file__], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    for name, (_, kind, pattern) in mistakes.MISTAKES.items():
        found, message = said[name]
        assert found == kind, f"{name}: {found}: {message}"
        assert re.search(pattern, message), f"{name}: {message}"
