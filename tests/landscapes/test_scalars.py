"""Other quantities of the same forward pass: each equals what a model that was moved there gives, with its own error."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from families import BY_NAME, features, labels
from theodolite.errors import ProblemError
from theodolite.landscapes import line, plane, volume
from theodolite.landscapes.scalars import accuracy
from theodolite.problem import Problem
from theodolite.records import Line, Log, differences, read

DATA = list(zip(features((9, 9, 5, 8), 5), labels((9, 9, 5, 8), 3), strict=True))
OTHER = list(zip(features((6, 7), 5, seed=8), labels((6, 7), 3, seed=9), strict=True))


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def brier(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.softmax(1) - F.one_hot(targets, 3)).square().sum(1)


def margin(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """A mean over some samples alone."""
    counted = targets != 1
    return outputs.gather(1, targets[:, None])[counted].sum(), counted.sum()


def moved(found: Line, index: int) -> nn.Module:
    model = net()
    assert found.direction is not None
    with torch.no_grad():
        flat = torch.nn.utils.parameters_to_vector(model.parameters())
        shift = torch.from_numpy(found.direction.copy()) * found.alphas[index]
        torch.nn.utils.vector_to_parameters(flat + shift, model.parameters())
    return model


def whole(data: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*data, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_accuracy_finds_logits_and_refuses_classes_in_another_place() -> None:
    logits, targets = torch.eye(3)[[0, 1, 1, 2]], torch.tensor([0, 1, 2, -100])
    assert [float(part) for part in accuracy({"logits": logits}, targets)] == [2, 3]
    pixels = torch.eye(3)[torch.tensor([[0, 1], [1, 2]])].movedim(-1, 1)  # (b, classes, positions)
    assert [float(part) for part in accuracy(pixels, torch.tensor([[0, 1], [2, 2]]))] == [3, 4]
    last = torch.zeros(2, 4, 7)  # as language models have them
    with pytest.raises(ProblemError, match=r"found shape \(2, 4, 7\) and shape \(2, 4\)"):
        accuracy(last, torch.zeros(2, 4, dtype=torch.int64))


def test_every_quantity_is_that_of_a_model_that_was_moved_there() -> None:
    model = net()
    problem = Problem(model, nn.CrossEntropyLoss(), DATA)
    counts = {"brier": brier, "margin": margin, "accuracy": accuracy}
    test = Problem(model, nn.CrossEntropyLoss(), OTHER)
    found = line(problem, points=5, scalars=counts, groups="targets", also={"test": test})
    classes = [f"loss of {k}" for k in range(3)]
    names = [*counts, *classes]
    assert set(found.scalars) == {*names, "test loss", *(f"test {name}" for name in names)}
    for index in range(5):
        there = moved(found, index)
        for prefix, data in (("", DATA), ("test ", OTHER)):
            inputs, targets = whole(data)
            with torch.no_grad():
                outputs = there(inputs)
            losses = F.cross_entropy(outputs, targets, reduction="none")
            total, count = margin(outputs, targets)
            expected = {
                "brier": brier(outputs, targets).mean(),
                "margin": total / count,
                "accuracy": (outputs.argmax(1) == targets).double().mean(),
                **{f"loss of {k}": losses[targets == k].mean() for k in range(3)},
            }
            for name, value in expected.items():
                assert found.scalars[prefix + name][index] == pytest.approx(float(value), rel=1e-12)
            whole_loss = found.losses if not prefix else found.scalars["test loss"]
            assert whole_loss[index] == pytest.approx(float(losses.mean()), rel=1e-12)


def test_errors_of_a_quantity_are_the_jackknife_of_its_rise() -> None:
    """Leaving a batch out by hand, with the weights that its chunks have in this quantity."""
    problem = Problem(net(), nn.CrossEntropyLoss(), DATA)
    found = line(problem, points=3, scalars={"margin": margin})
    values = []
    for left_out in range(len(DATA)):
        rest = DATA[:left_out] + DATA[left_out + 1 :]
        other = line(
            Problem(net(), nn.CrossEntropyLoss(), rest), direction=found.direction, points=3, scalars={"margin": margin}
        )
        values.append(other.scalars["margin"] - other.scalars["margin"][1])
    weights = np.array([int((targets != 1).sum()) for _, targets in DATA], dtype=float)
    h = weights.sum() / weights
    rise = found.scalars["margin"] - found.scalars["margin"][1]
    pseudo = h[:, None] * rise - (h[:, None] - 1) * np.array(values)
    center = len(h) * rise - ((1 - 1 / h)[:, None] * np.array(values)).sum(0)
    expected = np.sqrt((np.square(pseudo - center) / (h - 1)[:, None]).mean(0))
    np.testing.assert_allclose(found.scalar_stderrs["margin"], expected, rtol=1e-9, atol=1e-14)
    assert expected[0] > 0


def test_the_norm_of_the_gradient_and_its_error() -> None:
    problem = Problem(net(), nn.CrossEntropyLoss(), DATA)
    found = line(problem, points=3, scalars=("accuracy", "gradient norm"))

    def norm(data: list[tuple[Tensor, Tensor]], index: int) -> float:
        there = moved(found, index)
        inputs, targets = whole(data)
        parts = torch.autograd.grad(F.cross_entropy(there(inputs), targets), list(there.parameters()))
        return float(torch.cat([part.flatten() for part in parts]).norm())

    norms = [norm(DATA, index) for index in range(3)]
    np.testing.assert_allclose(found.scalars["gradient norm"], norms, rtol=1e-11)
    sizes = np.array([len(targets) for _, targets in DATA], dtype=float)
    h = sizes.sum() / sizes
    left = np.array([[norm(DATA[:c] + DATA[c + 1 :], index) for index in range(3)] for c in range(len(DATA))])
    left, rise = left - left[:, 1:2], np.array(norms) - norms[1]
    pseudo = (rise - left) * (h - 1)[:, None]
    expected = np.sqrt((np.square(pseudo - (pseudo / h[:, None]).sum(0)) / (h - 1)[:, None]).mean(0))
    np.testing.assert_allclose(found.scalar_stderrs["gradient norm"], expected, rtol=1e-8, atol=1e-14)
    assert found.cost.gradients == 3


def test_losses_do_not_change_with_what_is_read_beside() -> None:
    problem = BY_NAME["convnet"].problem()
    alone = plane(problem, points=3)
    beside = plane(problem, points=3, scalars=("accuracy",), groups="targets", also={"again": problem})
    np.testing.assert_array_equal(alone.losses, beside.losses)
    np.testing.assert_array_equal(beside.scalars["again loss"], alone.losses)
    np.testing.assert_array_equal(beside.scalar_stderrs["again loss"], alone.stderrs)


def test_a_plane_between_read_cells_has_quantities_with_the_error_of_their_splines() -> None:
    problem = Problem(net(), nn.CrossEntropyLoss(), DATA)
    options = {"points": (49, 3), "span": (-1.5, 1.5), "scalars": {"brier": brier}}
    few, every = plane(problem, interpolate=1e-3, **options), plane(problem, **options)  # type: ignore[arg-type]
    assert few.evaluated is not None
    known = few.evaluated
    np.testing.assert_array_equal(few.scalars["brier"][known], every.scalars["brier"][known])
    truth = every.scalars["brier"]
    error = np.abs(few.scalars["brier"] - truth).max() / np.ptp(truth)
    assert 0 < few.scalar_errors["brier"] < 0.02
    assert error < 6 * few.scalar_errors["brier"]
    assert every.scalar_errors == {"brier": 0}


def test_records_with_quantities_come_back_from_a_log(tmp_path: Path) -> None:
    problem = Problem(net(), nn.CrossEntropyLoss(), DATA)
    for record in (
        line(problem, points=3, groups="targets", quadratic=True, cap=1e3),
        plane(problem, points=3, scalars=("accuracy",), quadratic=True, eigenvalues=2),
    ):
        with Log(tmp_path / record.kind) as log:
            log.append(record)
        (back,) = read(tmp_path / record.kind)
        assert not differences(back.replace(context=record.context), record)
        assert back.quadratic is not None  # type: ignore[attr-defined]
        assert "scalars" in record._repr_html_()


def test_quantities_stand_at_every_point() -> None:
    record = line(Problem(net(), nn.CrossEntropyLoss(), DATA), points=3, scalars=("accuracy",))
    with pytest.raises(ValueError, match=r"scalars\['accuracy'\] has shape \(2,\); expected \(3,\)"):
        record.replace(scalars={"accuracy": np.ones(2)})
    with pytest.raises(ValueError, match=r"\['accuracy'\], found 'brier'"):
        record.band(scalar="brier")
    low, high = record.band(scalar="accuracy")
    assert (low <= high).all()
    assert low[1] == high[1] == 0


def test_labels_of_domains_and_absent_classes() -> None:
    domains = ["a"] * 9 + ["b"] * 22
    found = line(Problem(net(), nn.CrossEntropyLoss(), DATA), points=3, groups=domains)
    first = line(Problem(net(), nn.CrossEntropyLoss(), DATA[:1]), points=3, direction=found.direction)
    np.testing.assert_allclose(found.scalars["loss of a"], first.losses, rtol=1e-12)
    assert np.isnan(found.scalar_stderrs["loss of a"]).all()  # one chunk alone holds it


def test_accuracy_leaves_out_what_is_ignored() -> None:
    logits = torch.tensor([[[0.9, 0.1, 0.5], [0.1, 0.9, 0.4]]])
    right, counted = accuracy(logits, torch.tensor([[0, 0, -100]]))
    assert (int(right), int(counted)) == (1, 2)


def test_one_name_stands_for_itself() -> None:
    problem = Problem(net(), nn.CrossEntropyLoss(), DATA)
    one, several = line(problem, points=3, scalars="accuracy"), line(problem, points=3, scalars=("accuracy",))
    assert not differences(one.replace(cost=several.cost), several)
    assert set(plane(problem, points=3, scalars="gradient norm").scalars) == {"gradient norm"}
    assert volume(problem, points=3, scalars="accuracy").scalars == ("accuracy",)


@pytest.mark.parametrize(
    ("scalars", "also", "found"),
    [
        ({"test loss": brier}, ("test",), "'test loss'"),
        ({"accuracy": brier, "test accuracy": brier}, ("test",), "'test accuracy'"),
        ({"lambda_max": brier}, (), "'lambda_max'"),
    ],
)
def test_no_quantity_takes_the_place_of_another(
    scalars: dict[str, Callable[..., Tensor]], also: tuple[str, ...], found: str
) -> None:
    problem = Problem(net(), nn.CrossEntropyLoss(), DATA)
    with pytest.raises(ProblemError, match=f"a name of its own, found {found} for two"):
        line(problem, points=3, scalars=scalars, also=dict.fromkeys(also, problem))


def test_problems_beside_have_names_and_the_very_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    problem = Problem(net(), nn.CrossEntropyLoss(), DATA)
    with pytest.raises(ProblemError, match="also to name each of its problems, found ''"):
        line(problem, also={"": problem})
    with pytest.raises(ProblemError, match="also to be a mapping of names to problems on other data, found a Problem"):
        line(problem, also=problem)  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match=r"found another module object of the same class Sequential.*problem\.model"):
        line(problem, also={"test": Problem(net(), nn.CrossEntropyLoss(), OTHER)})
    with pytest.raises(ProblemError, match="Expected cap to be a number, found the str '1'"):
        line(problem, cap="1")  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match="to be a function or a loss module, found the str 'brier'"):
        line(problem, scalars={"brier": "brier"})  # type: ignore[dict-item]


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without the checker of the tests
    problem = Problem(net(), nn.CrossEntropyLoss(), DATA)
    with pytest.raises(ProblemError, match=r"'accuracy' and 'gradient norm'.*found 'acuracy'"):
        line(problem, scalars=("acuracy",))  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match=r"'mean' to return one number for each sample.*found shape \(\)"):
        line(problem, scalars={"mean": lambda outputs, targets: outputs.mean()})
    with pytest.raises(ProblemError, match="same model with the same parameters"):
        line(problem, also={"test": Problem(net(), nn.CrossEntropyLoss(), OTHER)})
    regression = Problem(net(), nn.MSELoss(), [(x, torch.zeros(len(x), 3, dtype=torch.float64)) for x, _ in DATA])
    with pytest.raises(ProblemError, match=r"integer targets.*shape \(9, 3\) and shape \(9, 3\)"):
        line(regression, scalars=("accuracy",))
    with pytest.raises(ProblemError, match=r"found a problem made by Problem\.from_loss"):
        line(
            Problem.from_loss(net(), lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), DATA),
            groups="targets",
        )
    with pytest.raises(ProblemError, match="positive cap, found 0"):
        line(problem, cap=0)
    with pytest.raises(ProblemError, match=r"float32 for autocast=torch\.bfloat16, found float64"):
        line(problem, autocast=torch.bfloat16)


def test_extreme_eigenvalues_on_a_coarser_grid() -> None:
    problem = Problem(net(), nn.CrossEntropyLoss(), DATA)
    before = torch.nn.utils.parameters_to_vector(problem.model.parameters()).detach().clone()
    found = line(problem, points=5, eigenvalues=3)
    assert np.isfinite(found.scalars["lambda_max"]).tolist() == [True, False, True, False, True]
    for index in (0, 2, 4):
        there = moved(found, index)
        flat = torch.nn.utils.parameters_to_vector(there.parameters()).detach()
        shapes = {name: part.shape for name, part in there.named_parameters()}

        def loss(vector: Tensor, shapes: dict[str, torch.Size] = shapes, there: nn.Module = there) -> Tensor:
            parts = vector.split([math.prod(shape) for shape in shapes.values()])
            named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
            inputs, targets = whole(DATA)
            return F.cross_entropy(torch.func.functional_call(there, named, (inputs,)), targets)

        exact = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
        assert found.scalars["lambda_max"][index] == pytest.approx(float(exact[-1]), rel=1e-2)
        assert found.scalars["lambda_min"][index] == pytest.approx(float(exact[0]), rel=2e-2, abs=1e-4)
    assert any("λ_max and λ_min at 3 points" in note for note in found.notes)
    assert torch.equal(before, torch.nn.utils.parameters_to_vector(problem.model.parameters()))
