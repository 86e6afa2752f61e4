"""Models and surroundings that break other tools: products stay exact, or the problem is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from operators.plain import gradient_and_hessian, relative
from theodolite.errors import DerivativeError, NotDeterministicError
from theodolite.operators import GGN, GradientCovariance, Hessian
from theodolite.problem import Problem

EXACT = 1e-10


def batch(width: int = 3, n: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(n, width, dtype=torch.float64), torch.randint(2, (n,))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def assert_exact(problem: Problem, model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    gradient, hessian = gradient_and_hessian(model, lambda: F.cross_entropy(model(data[0]), data[1]))
    assert relative(problem.gradient(), gradient) < EXACT
    assert relative(Hessian(problem).dense(), hessian) < EXACT


# ------------------------------------------------------------------------------------------------------------ wrappers


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def compiled_child(model: nn.Module) -> nn.Module:
    model[0] = torch.compile(model[0], backend="aot_eager")
    return model


def compiled_function(model: nn.Module) -> nn.Module:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model
            self.compiled = torch.compile(lambda x: torch.sin(x) * x, backend="aot_eager")

        def forward(self, x: Tensor) -> Tensor:
            return self.compiled(self.inner(x))

    return Calls()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch.compile": lambda model: torch.compile(model, backend="aot_eager"),
    "module.compile": compiled_in_place,
    "compiled child": compiled_child,
    "compiled function": compiled_function,
    "data parallel": nn.DataParallel,
    "compiled data parallel": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}


@pytest.mark.parametrize("used", [False, True], ids=["never called", "called before"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_models_are_exact(wrapper: str, used: bool) -> None:
    data, plain = batch(), net()
    wrapped = WRAPPERS[wrapper](net())
    with torch.no_grad():
        for ours, theirs in zip(wrapped.parameters(), plain.parameters(), strict=True):
            ours.copy_(theirs)
    if used:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the compiler says is not ours
            wrapped(data[0])
    problem = Problem(wrapped, nn.CrossEntropyLoss(), [data])
    if wrapper == "compiled function":
        reference: Callable[[Tensor], Tensor] = lambda x: torch.sin(plain(x)) * plain(x)  # noqa: E731
        _, hessian = gradient_and_hessian(plain, lambda: F.cross_entropy(reference(data[0]), data[1]))
        assert relative(Hessian(problem).dense(), hessian) < EXACT
    else:
        assert_exact(problem, plain, data)


# -------------------------------------------------------------------------------------------------------- surroundings


@contextmanager
def everything_at_once() -> Iterator[None]:
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        yield


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "all": everything_at_once,
}


@pytest.mark.parametrize("made_inside", [False, True])
@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_outer_contexts_do_not_matter(surroundings: str, made_inside: bool) -> None:
    class Loader:
        """Makes its batches where it is walked."""

        def __init__(self, data: Any) -> None:
            self.data = data

        def __iter__(self) -> Iterator[Any]:
            yield self.data[0].clone(), self.data[1].clone()

    data, model = batch(), net()
    expected = Hessian(Problem(model, nn.CrossEntropyLoss(), [data]))
    v = torch.randn(expected.shape[0], dtype=torch.float64)
    reference, ggn = expected @ v, GGN(expected.problem) @ v
    problem = Problem(model, nn.CrossEntropyLoss(), Loader(data) if made_inside else [data])
    with SURROUNDINGS[surroundings]():
        H = Hessian(problem)
        found, gradient, loss = H @ v, problem.gradient(), problem.loss()
        again = H @ v
        covariance = GradientCovariance(problem) @ v
    assert relative(found.clone(), reference) < EXACT
    assert relative(again.clone(), reference) < EXACT
    assert relative(GGN(problem) @ v, ggn) < EXACT
    assert relative(gradient.clone(), expected.problem.gradient()) < EXACT
    assert loss == pytest.approx(expected.problem.loss(), rel=1e-12)
    assert relative(covariance.clone(), GradientCovariance(expected.problem) @ v) < EXACT


def test_autocast_would_be_coarse_here() -> None:
    """The error that switching autocast off avoids: 5e-3 and more."""
    data, model = (batch()[0].float(), batch()[1]), net().float()
    exact = Problem(model, nn.CrossEntropyLoss(), [data]).gradient()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(model(data[0]), data[1])
    coarse = torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(model.parameters()))])
    assert relative(coarse, exact) > 1e-3


# -------------------------------------------------------------------------------------------------------------- layers


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("engine", ["auto", "retained", "fresh"])
def test_activation_checkpointing_is_exact(engine: Any, cast: bool) -> None:
    data, inner = batch(), net()
    if cast:  # recomputation must see the cast parameters, not the model's own
        inner.float()
    model = nn.Sequential(Checkpointed(inner), nn.Linear(2, 2).to(inner[0].weight))
    problem = Problem(model, nn.CrossEntropyLoss(), [data, data], engine=engine, dtype=torch.float64)
    found = Hessian(problem).dense()
    assert_exact(Problem(model.double(), nn.CrossEntropyLoss(), [data]), nn.Sequential(inner, model[1]), data)
    _, expected = gradient_and_hessian(model, lambda: F.cross_entropy(model(data[0]), data[1]))
    assert relative(found, expected) < (1e-6 if cast else EXACT)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_transformer_encoder_s_fast_path_is_exact(mode: Any) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x).mean(1))

    model = Encoder().double()
    data = (torch.randn(6, 3, 4, dtype=torch.float64), torch.randint(2, (6,)))
    problem = Problem(model, nn.CrossEntropyLoss(), [data], mode=mode)
    found = Hessian(problem).dense()
    with torch.no_grad():
        problem.loss()  # where the fast path would be taken
    _, expected = gradient_and_hessian(model.train(), lambda: F.cross_entropy(model(data[0]), data[1]))
    assert relative(found, expected) < EXACT
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("engine", ["retained", "vmap", "fresh", "difference"])
def test_dropout_with_fixed_masks_is_one_function(engine: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 2)).double()
    batches = [batch(), batch()]  # two batches, two masks
    problem = Problem(model, nn.CrossEntropyLoss(), batches, mode="train", engine=engine)
    H = Hessian(problem)
    v = torch.randn(problem.n, dtype=torch.float64)
    first = H @ v
    torch.rand(7)  # masks do not follow the global generator
    assert relative(H @ v, first) < 1e-12
    assert relative(Hessian(problem) @ v, first) < 1e-12
    dense = H.dense()
    assert relative(dense, dense.T) < (1e-6 if engine == "difference" else EXACT)
    assert relative(dense @ v, first) < (1e-5 if engine == "difference" else EXACT)
    other = Hessian(problem.replace(seed=1)) @ v
    assert relative(other, first) > 0.05  # other masks, another function
    assert relative(Hessian(problem.replace(mode="eval")) @ v, first) > 0.05


def test_dropout_masks_differ_from_batch_to_batch() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 2)).double()
    one = batch(16)
    problem = Problem(model, nn.CrossEntropyLoss(), [one, one], mode="train")
    totals, _ = problem.totals()
    assert totals[0] != totals[1]
    assert torch.equal(problem.totals()[0], totals)


def test_spectral_norm_is_exact_in_evaluation_and_refused_in_training() -> None:
    # In training its singular vectors come from a power iteration without gradients: the gradient that autograd gives is
    # no gradient of the loss, and has no symmetric derivative. Its buffers are written to at every forward pass.
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)).double()
    data = batch()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    train = Problem(model, nn.CrossEntropyLoss(), [data], mode="train", engine="retained")
    assert train.loss() == train.loss()
    with pytest.raises(DerivativeError, match=r"spectral norm does in training. Use mode='eval'"):
        Hessian(train) @ torch.ones(train.n, dtype=torch.float64)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert_exact(train.replace(mode="eval"), model.eval(), data)


class Normalised(nn.Module):
    """A linear layer with weight norm, spelt out."""

    def __init__(self, g: nn.Parameter, v: nn.Parameter, bias: nn.Parameter, dim: int | None) -> None:
        super().__init__()
        self.bias, self.g, self.v, self.dim = bias, g, v, dim

    def forward(self, x: Tensor) -> Tensor:
        norm = self.v.norm() if self.dim is None else self.v.norm(dim=1 - self.dim, keepdim=True)
        return F.linear(x, self.g * self.v / norm, self.bias)


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("style", ["parametrisation", "hook"])
def test_weight_norm_is_exact(style: str, dim: int | None) -> None:
    layer = nn.Linear(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        if style == "hook":
            nn.utils.weight_norm(layer, dim=dim)
            g, v = layer.weight_g, layer.weight_v
        else:
            nn.utils.parametrizations.weight_norm(layer, dim=dim)
            g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 2)).double()
    data = batch()
    problem = Problem(model, nn.CrossEntropyLoss(), [data])
    assert_exact(problem, nn.Sequential(Normalised(g, v, layer.bias, dim), *model[1:]), data)


def test_batchnorm_on_batch_statistics_is_exact_and_said() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    data = batch()
    train, evaluation = (Problem(model, nn.CrossEntropyLoss(), [data], mode=mode) for mode in ("train", "eval"))
    as_is = Problem(model.train(), nn.CrossEntropyLoss(), [data], mode="as is")
    assert relative(Hessian(train).dense(), Hessian(as_is).dense()) < EXACT
    assert train.context()["batchnorm"] == "batch statistics"
    assert evaluation.context()["batchnorm"] == "stored statistics"
    assert "BatchNorm on batch statistics" in repr(train)
    assert "BatchNorm on stored statistics" in repr(evaluation)
    assert "mode='train'" in repr(train)
    assert "batchnorm" not in Problem(net(), nn.CrossEntropyLoss(), [data]).context()
    mixed = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval(), nn.Linear(3, 2)).double()
    assert Problem(mixed, nn.CrossEntropyLoss(), [data], mode="as is").batchnorm == "batch and stored statistics"
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert_exact(train, model.train(), data)
    model.load_state_dict(buffers, strict=False)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_double_precision_on_a_single_precision_model(mode: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    data = (batch()[0].float(), batch()[1])
    problem = Problem(model, nn.CrossEntropyLoss(), [data], dtype=torch.float64, mode=mode)
    found, gradient = Hessian(problem).dense(), problem.gradient()
    assert found.dtype == gradient.dtype == torch.float64
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    double = Problem(model.double(), nn.CrossEntropyLoss(), [(data[0].double(), data[1])], mode=mode)
    assert relative(gradient, double.gradient()) < EXACT
    assert relative(found, Hessian(double).dense()) < EXACT


def test_a_layer_that_remembers_its_calls_is_refused() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    problem = Problem(nn.Sequential(net(), Counts()), nn.CrossEntropyLoss(), [batch()])
    with pytest.raises(NotDeterministicError, match=r"layer updated in forward"):
        Hessian(problem) @ torch.ones(problem.n, dtype=torch.float64)
