"""Gradients of tasks equal those of separate problems, with errors by leaving chunks out; planted conflicts are flagged."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distributed.worker import on_two_ranks
from families import BY_NAME
from records.published_jackknife import published
from theodolite.errors import ProblemError
from theodolite.measures import task_gradients
from theodolite.problem import Problem
from theodolite.records import Log, differences, read

Tasks = dict[str, Callable[..., Any]]


class TwoHeads(nn.Module):
    """A shared trunk with two heads, of which each task reads one."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(3, 5)
        self.first = nn.Linear(5, 4)
        self.second = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.trunk(x))
        return self.first(h), self.second(h)


TASKS: Tasks = {
    "kind": lambda outputs, targets: F.cross_entropy(outputs[0], targets["kind"]),
    "place": lambda outputs, targets: F.mse_loss(outputs[1], targets["place"]),
    "spread": lambda outputs, targets: outputs[1].square().mean(),
}


def data(sizes: tuple[int, ...] = (4, 4, 3)) -> list[Any]:
    g = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(k, 3, generator=g, dtype=torch.float64),
            {
                "kind": torch.randint(4, (k,), generator=g),
                "place": torch.randn(k, 2, generator=g, dtype=torch.float64),
            },
        )
        for k in sizes
    ]


def network() -> nn.Module:
    torch.manual_seed(0)
    return TwoHeads().double()


def problem(batches: list[Any] | None = None, **options: Any) -> Problem:
    return Problem(network(), TASKS["kind"], data() if batches is None else batches, **options)


def shared_rows(batches: list[Any]) -> np.ndarray:
    """Gradients of the tasks by plain autograd over the trunk and the second head, which more than one task reaches."""
    model = network()
    chosen = [p for name, p in model.named_parameters() if not name.startswith("first")]
    inputs = torch.cat([x for x, _ in batches])
    targets = {name: torch.cat([t[name] for _, t in batches]) for name in ("kind", "place")}
    outputs = model(inputs)
    rows = []
    for task in TASKS.values():
        found = torch.autograd.grad(task(outputs, targets), chosen, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([part.reshape(-1) for part in found]))
    return torch.stack(rows).numpy()


def cosines_of(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows @ rows.T / np.outer(*[np.linalg.norm(rows, axis=1)] * 2))


@pytest.mark.parametrize("memory", [None, 1], ids=["kept", "taken again"])
def test_dots_cosines_layers_and_errors_are_those_of_plain_gradients(memory: int | None) -> None:
    batches = data()
    found = task_gradients(problem(memory=memory), TASKS, chunks=3)
    assert found.cost.gradients == (3 if memory is None else 6)
    rows = shared_rows(batches)
    np.testing.assert_allclose(found.dots, rows @ rows.T, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(found.cosines, cosines_of(rows), rtol=1e-10)
    np.testing.assert_allclose(found.norms, np.linalg.norm(rows, axis=1), rtol=1e-10)
    np.testing.assert_allclose(found.descents, rows @ rows.mean(axis=0), rtol=1e-10)
    assert found.layers == ("trunk", "first", "second")
    np.testing.assert_allclose(found.layer_dots.sum(axis=0), found.dots, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(found.layer_dots[0], rows[:, :20] @ rows[:, :20].T, rtol=1e-10, atol=1e-14)
    assert (found.layer_dots[1] == 0).all()  # one task alone reaches the first head
    assert (found.shared, found.size) == (20 + 12, 20 + 24 + 12)
    # Chunks are the batches here.
    weights = np.array([4.0, 4.0, 3.0])
    without = [shared_rows(batches[:c] + batches[c + 1 :]) for c in range(3)]
    for a, b in ((0, 1), (1, 2)):
        expected = published([cosines_of(left)[a, b] for left in without], cosines_of(rows)[a, b], weights)
        assert found.cosine_stderrs[a, b] == pytest.approx(expected, rel=1e-9)
    norms = published([np.linalg.norm(left[1]) for left in without], float(np.linalg.norm(rows[1])), weights)
    assert found.norm_stderrs[1] == pytest.approx(norms, rel=1e-9)
    for place, (name, part) in enumerate(problem().tasks(TASKS).items()):
        assert found.tasks[place] == name
        assert found.losses[place] == pytest.approx(part.loss(), rel=1e-12)
    assert found.between("kind", "place").value == pytest.approx(cosines_of(rows)[0, 1])


def test_pairs_of_different_chunks_are_without_bias() -> None:
    batches = data((4, 4, 3, 4))
    found = task_gradients(problem(batches), TASKS, chunks=4)
    parts = [shared_rows([batch]) for batch in batches]
    weights = np.array([4.0, 4.0, 3.0, 4.0])

    def over_pairs(kept: list[int]) -> np.ndarray:
        summed = sum(weights[c] * weights[d] * parts[c] @ parts[d].T for c, d in permutations(kept, 2))
        return np.asarray(summed / sum(weights[c] * weights[d] for c, d in permutations(kept, 2)))

    whole = over_pairs([0, 1, 2, 3])
    np.testing.assert_allclose(found.unbiased, whole, rtol=1e-9, atol=1e-13)
    left_out = [over_pairs([c for c in range(4) if c != gone]) for gone in range(4)]
    expected = published([left[0, 1] for left in left_out], float(whole[0, 1]), weights)
    assert found.unbiased_stderrs[0, 1] == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(found.layer_unbiased.sum(axis=0), found.unbiased, rtol=1e-9, atol=1e-13)


def test_similarities_of_the_literature() -> None:
    """Φ(a, ca) = 2c/(1 + c²); ξ as in its formula, infinite for opposite gradients."""
    found = task_gradients(problem(), TASKS)
    rows = shared_rows(data())
    opposite = found.replace(dots=np.array([[4.0, -2.0, 0.0], [-2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    assert opposite.magnitude_similarity[0, 1] == pytest.approx(2 * 2 / (1 + 4))
    np.testing.assert_allclose(np.diagonal(found.magnitude_similarity), 1)
    a, b = rows[:2]
    expected = (1 - cosines_of(rows)[0, 1] ** 2) * np.sum((a - b) ** 2) / np.sum((a + b) ** 2)
    assert found.curvature_bounding[0, 1] == pytest.approx(expected)
    reflected = found.replace(dots=np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    assert reflected.curvature_bounding[0, 1] == np.inf
    assert reflected.conflict_rate == pytest.approx(1 / 3)
    assert np.isnan(opposite.cosines[0, 2])


# ------------------------------------------------------------------------------------------------- planted conflicts


def planted(seed: int) -> tuple[Problem, Tasks]:
    """Linear regressions at w = 0, where the gradient of a sample is −y·x.

    Up and down ask for opposite weights, along for a like one, across for orthogonal ones. Across has the noise of up with the
    opposite sign, so that their gradients on a sample oppose each other though those of the population do not.
    """
    g = torch.Generator().manual_seed(seed)
    x, u, v = torch.randn(240, 5, generator=g, dtype=torch.float64), torch.zeros(5), torch.zeros(5)
    u[0], v[1] = 2.0, 2.0
    noise = torch.randn(240, 2, generator=g, dtype=torch.float64)
    signal, other = x @ u.double(), x @ v.double()
    targets = torch.stack(
        [
            signal + 2 * noise[:, 0],
            -signal + noise[:, 1],
            signal + 0.5 * other + noise[:, 1],
            other - 2 * noise[:, 0],
        ],
        dim=1,
    )
    model = nn.Linear(5, 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    tasks: Tasks = {
        name: lambda outputs, t, k=k: F.mse_loss(outputs[:, 0], t[:, k])
        for k, name in enumerate(("up", "down", "along", "across"))
    }
    return Problem(model, tasks["up"], [(x, targets)]), tasks


def test_planted_conflicts_are_flagged_and_agreement_is_not() -> None:
    seeds = 50
    opposed, agreed, across = 0, 0, 0
    for seed in range(seeds):
        found = task_gradients(*planted(seed), chunks=12)
        edges = {frozenset(edge) for edge in found.conflicts(level=0.95)}
        opposed += {frozenset(("up", "down")), frozenset(("down", "along"))} <= edges
        agreed += frozenset(("up", "along")) in edges
        # 0.7 shared among six pairs is 0.95 for one, and on the edge between conflict and agreement 2.5 of 50 are flagged.
        across += ("up", "across") in found.conflicts(level=0.7)
        assert set(found.layer_alignment) == {"weight"}
        assert found.layer_alignment["weight"].conflicts(level=0.95) == found.conflicts(level=0.95)
    assert opposed >= 49
    assert agreed == 0
    assert across <= 7


# ---------------------------------------------------------------------------------------------------- other problems


def test_loss_functions_of_model_and_batch_are_tasks_too() -> None:
    family = BY_NAME["from-loss"]
    assert family.loss is not None
    whole = family.problem()

    def reverse(model: nn.Module, batch: Any) -> tuple[Tensor, Any]:
        total, weight = family.loss(model, batch)
        return -total, weight

    found = task_gradients(whole, {"same": family.loss, "reverse": reverse})
    assert found.cosines[0, 1] == pytest.approx(-1)
    assert found.norms[0] == pytest.approx(float(whole.gradient().norm()), rel=1e-10)
    assert found.conflicts() == (("same", "reverse"),)
    assert found.conflict_rate == 1


def test_a_record_can_be_logged_and_speaks(tmp_path: Path) -> None:
    found = task_gradients(problem(), TASKS, step=7)
    with Log(tmp_path) as log:
        log.append(found)
    (again,) = read(tmp_path).records
    assert not differences(found, again, ignore={"context"})
    assert repr(again) == repr(found)
    assert "3 tasks, 11 samples, n=56, 32 shared, step 7" in repr(found)
    one = task_gradients(problem([data()[0]], microbatch=None, mode="train"), TASKS, chunks=1)
    assert "conflicts beyond chance need 3" in one.notes[0]
    assert one.conflicts() == ()
    with pytest.raises(ValueError, match="one of the tasks kind, place, spread; found 'colour'"):
        found.between("kind", "colour")


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"kind": TASKS["kind"]}, "at least two tasks .* found 1 tasks"),
        ({"kind": TASKS["kind"], "place": 3}, "task 'place' to be a function or a loss module, found the int 3"),
    ],
)
def test_what_is_no_task_is_refused(tasks: Any, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        task_gradients(problem(), tasks)
    with pytest.raises(ProblemError, match="Expected tasks by name"):
        problem().tasks({})


def test_a_loss_that_is_not_finite_is_said() -> None:
    def broken(outputs: Any, targets: Any) -> Tensor:
        loss: Tensor = TASKS["kind"](outputs, targets)
        return loss * torch.nan

    found = task_gradients(problem(), {"fits": TASKS["kind"], "broken": broken})
    assert np.isnan(found.losses).tolist() == [False, True]
    (note,) = (note for note in found.notes if "task" in note)
    assert note.startswith("the loss of task 'broken' is nan")


def test_criteria_are_no_losses_of_a_model_and_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    own = Problem.from_loss(network(), lambda model, batch: F.mse_loss(model(batch[0]), batch[1]), data())
    for criterion, name in ((nn.MSELoss(), "MSELoss"), (F.mse_loss, "mse_loss")):
        with pytest.raises(
            ProblemError, match=f"task 'a' to be a function of .model, batch.*criterion {name} of .outputs"
        ):
            task_gradients(own, {"a": criterion, "b": criterion})
    with pytest.raises(ProblemError, match=r"two tasks by name.*found the list"):
        task_gradients(problem(), [nn.MSELoss(), nn.L1Loss()])  # type: ignore[arg-type]


def on_rank(rank: int) -> dict[str, Tensor]:
    found = task_gradients(problem(data((4, 4, 4, 4))[2 * rank : 2 * rank + 2]), TASKS, chunks=4)
    names = ("losses", "dots", "unbiased", "unbiased_stderrs", "cosine_stderrs", "layer_dots", "loss_stderrs")
    return {name: torch.tensor(getattr(found, name)) for name in names}


def test_two_ranks_find_what_one_finds() -> None:
    whole = task_gradients(problem(data((4, 4, 4, 4))), TASKS, chunks=4)
    for part in on_two_ranks(on_rank):
        for name, values in part.items():
            np.testing.assert_allclose(values.numpy(), getattr(whole, name), rtol=1e-9, atol=1e-13, err_msg=name)
