"""Common mistakes and what is said of each; run as a program, without the type checker of the tests, which users do not run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.linalg import (
    block_lanczos,
    cg,
    decompose,
    diagonal,
    funm_multiply,
    hutchinson,
    hutchpp,
    lanczos,
    nystrom,
    slq,
    xdiag,
    xtrace,
)
from theodolite.operators import EKFAC, GGN, KFAC, Fisher, GradientCovariance, Hessian, InputHessian, Jacobian
from theodolite.operators.diagonal import GGNDiagonal, ggn_diagonal
from theodolite.operators.low_rank import fisher_spectrum, ggn_spectrum
from theodolite.operators.ntk import NTK
from theodolite.problem import Problem

Mistake = tuple[Callable[[], Any], str, str]  # what is called, the type of the error, and a pattern of its message


def data() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 3, generator=generator), torch.arange(8) % 2)]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def problem(targets: Tensor | None = None, criterion: Any = None) -> Problem:
    inputs, known = data()[0]
    return Problem(model(), criterion or nn.CrossEntropyLoss(), [(inputs, known if targets is None else targets)])


def broken(value: float, *, parameter: int) -> Problem:
    found = model()
    with torch.no_grad():
        list(found.parameters())[parameter].view(-1)[0] = value
    return Problem(found, nn.CrossEntropyLoss(), data())


def ctc() -> Problem:
    """A criterion whose backward torch does not differentiate."""

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        samples, times, _ = outputs.shape
        lengths = torch.full((samples,), times), torch.full((samples,), targets.shape[1])
        scores = outputs.log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(scores, targets, *lengths, reduction="sum") / samples

    return Problem(nn.Linear(3, 4), criterion, [(torch.randn(6, 5, 3), torch.randint(1, 4, (6, 2)))])


def ones(operator: Any) -> Tensor:
    return operator @ torch.ones(operator.shape[1])


NO_PROBLEM = "Expected a Problem, found a Sequential. Make one"
ON_PROBLEMS: dict[str, Callable[[Any], Any]] = {
    found.__name__: found
    for found in (Hessian, GGN, Fisher, GradientCovariance, Jacobian, InputHessian, NTK, KFAC, EKFAC, GGNDiagonal)
} | {found.__name__: found for found in (ggn_diagonal, ggn_spectrum, fisher_spectrum)}

NAN_WEIGHT = r"NaN or infinity in 1 of 12 entries of 0.weight"
DAMAGED: dict[str, Callable[[Problem], Any]] = {
    "kfac": KFAC,
    "ekfac": EKFAC,
    "sampled kfac": lambda p: KFAC(p, kind="mc"),
    "ntk": NTK,
    "ggn spectrum": ggn_spectrum,
    "fisher spectrum": fisher_spectrum,
    "diagonal": GGNDiagonal,
    "ggn": lambda p: ones(GGN(p)),
    "covariance": lambda p: ones(GradientCovariance(p)),
    "hessian": lambda p: ones(Hessian(p)),
}

WHOLE = r"Expected {} to be a whole number, found the float 2.5"
FRACTIONS: dict[str, tuple[str, Callable[[], Any]]] = {
    "lanczos": ("k", lambda: lanczos(Hessian(problem()), k=2.5)),
    "block_lanczos": ("block", lambda: block_lanczos(Hessian(problem()), k=1, block=2.5)),
    "decompose": ("probes", lambda: decompose(Hessian(problem()), k=1, probes=2.5)),
    "steps": ("steps", lambda: decompose(Hessian(problem()), k=1, steps=2.5)),
    "hutchinson": ("probes", lambda: hutchinson(Hessian(problem()), probes=2.5)),
    "hutchpp": ("products", lambda: hutchpp(Hessian(problem()), products=2.5)),
    "xtrace": ("products", lambda: xtrace(Hessian(problem()), products=2.5)),
    "xdiag": ("products", lambda: xdiag(Hessian(problem()), products=2.5)),
    "diagonal": ("probes", lambda: diagonal(Hessian(problem()), probes=2.5)),
    "slq": ("steps", lambda: slq(Hessian(problem()), probes=2, steps=2.5)),
    "nystrom": ("products", lambda: nystrom(GGN(problem()), rank=2.5, damping=1.0)),
    "cg": ("max_products", lambda: cg(GGN(problem()).shift(1.0), torch.ones(26), max_products=2.5)),
    "function": (
        "max_products",
        lambda: funm_multiply(GGN(problem()), torch.ones(26), torch.exp, max_products=2.5),
    ),
    "fisher": ("draws", lambda: Fisher(problem(), kind="mc", draws=2.5)),
    "kfac": ("draws", lambda: KFAC(problem(), kind="mc", draws=2.5)),
    "spectrum": ("k", lambda: ggn_spectrum(problem(), k=2.5)),
}

MISTAKES: dict[str, Mistake] = {
    "a criterion by name": (
        lambda: problem(criterion="mse"),
        "ProblemError",
        r"criterion .*found the str 'mse'.*nn.MSELoss",
    ),
    "a criterion's class": (
        lambda: problem(criterion=nn.MSELoss),
        "ProblemError",
        r"class MSELoss. Make one .*MSELoss\(\)",
    ),
    "a loss function by name": (
        lambda: Problem.from_loss(model(), "mse", data()),
        "ProblemError",
        r"loss_fn to be a function .* found the str 'mse'.*lambda model, batch",
    ),
    "arguments in another order": (
        lambda: Problem(data(), nn.CrossEntropyLoss(), model()),
        "ProblemError",
        r"an nn.Module, found a list. The order is Problem\(model, criterion, batches\)",
    ),
    "a type by name": (
        lambda: problem().replace(dtype="float64"),
        "ProblemError",
        r"floating-point type, found 'float64'. Use torch.float64",
    ),
    "NumPy arrays": (
        lambda: Problem(model(), nn.CrossEntropyLoss(), [tuple(part.numpy() for part in data()[0])]).loss(),
        "DataError",
        r"tensors in the batches, found NumPy arrays: .*torch.as_tensor",
    ),
    "a half model of single data": (
        lambda: Problem(model().bfloat16(), nn.CrossEntropyLoss(), data()).loss(),
        "DataError",
        r"type torch.bfloat16, found torch.float32: .*dtype=torch.bfloat16",
    ),
    "double data of a single model": (
        lambda: Problem(model(), nn.CrossEntropyLoss(), [(data()[0][0].double(), data()[0][1])]).loss(),
        "DataError",
        r"type torch.float32, found torch.float64: .*dtype=torch.float32",
    ),
    "floating classes": (
        lambda: problem(data()[0][1].float()).loss(),
        "DataError",
        r"class indices of type torch.int64, or probabilities of shape \(8, 2\), found torch.float32 .*long\(\)",
    ),
    "half a sample": (
        lambda: problem().take(2.5),
        "ProblemError",
        r"samples to be a whole number, found the float 2.5",
    ),
    "half a microbatch": (
        lambda: problem().replace(microbatch=2.5),
        "ProblemError",
        r"microbatch to be a whole number, found the float 2.5",
    ),
    "labels from one": (
        lambda: problem(data()[0][1] + 1).loss(),
        "DataError",
        r"class indices from 0 to 1, .* or -100 .*; found 4 others from 2 to 2. Count classes from 0",
    ),
    "labels below zero": (lambda: ones(GGN(problem(data()[0][1] - 1))), "DataError", r"found 4 others from -1 to -1"),
    "short labels": (
        lambda: problem(data()[0][1].int()).loss(),
        "DataError",
        r"type torch.int64, found torch.int32.*long\(\)",
    ),
    "weights of other classes": (
        lambda: problem(criterion=nn.CrossEntropyLoss(weight=torch.ones(3))).loss(),
        "ProblemError",
        r"a weight for each of 2 classes.* found 3",
    ),
    "a negative k": (lambda: ggn_spectrum(problem(), k=-1), "OperatorError", r"k to be at least 1 .* found -1"),
    "a negative k of Lanczos": (
        lambda: lanczos(Hessian(problem()), k=-1),
        "OperatorError",
        r"26 eigenpairs, found k=-1",
    ),
    "a whole float": (lambda: lanczos(Hessian(problem()), k=2.0), "OperatorError", r"k .*the float 2.0. Write k=2"),
    "an infinite frozen bias": (
        lambda: KFAC(broken(float("inf"), parameter=3).select("0.*")),
        "NonFiniteError",
        r"Expected a finite loss at batch 0, found nan",
    ),
    "a kernel of infinite outputs": (
        lambda: NTK(broken(float("inf"), parameter=3).select("0.*")),
        "NonFiniteError",
        "Expected finite outputs on batch 0, found NaN or infinity among them. Check the inputs",
    ),
}
MISTAKES |= {
    f"the model for {name}": (lambda f=f: f(model()), "ProblemError", NO_PROBLEM) for name, f in ON_PROBLEMS.items()
}
MISTAKES |= {
    f"NaN under {name}": (lambda f=f: f(broken(float("nan"), parameter=0)), "NonFiniteError", NAN_WEIGHT)
    for name, f in DAMAGED.items()
}
MISTAKES |= {
    f"infinity under {name}": (
        lambda f=DAMAGED[name]: f(broken(float("inf"), parameter=0)),
        "NonFiniteError",
        NAN_WEIGHT,
    )
    for name in ("kfac", "ntk", "fisher spectrum")
}
MISTAKES |= {f"a fraction to {name}": (f, "OperatorError", WHOLE.format(what)) for name, (what, f) in FRACTIONS.items()}
MISTAKES |= {
    f"{name} of CTC": (
        lambda f=f: f(ctc()),
        "DerivativeError",
        r"twice differentiable.*ctc_loss.*take another criterion",
    )
    for name, f in {"ggn": lambda p: ones(GGN(p)), "kfac": KFAC, "sampled kfac": DAMAGED["sampled kfac"]}.items()
}


def message_of(call: Callable[[], Any]) -> tuple[str, str]:
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", "no error"


if __name__ == "__main__":
    print(json.dumps({name: message_of(call) for name, (call, _, _) in MISTAKES.items()}))
