"""A permuted copy of a network: a barrier before, none after its units are matched; its function never changes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from families import BY_NAME
from theodolite.errors import ProblemError
from theodolite.landscapes.paths import match, path
from theodolite.landscapes.paths.matching import discovery
from theodolite.landscapes.paths.matching.discovery import discovered
from theodolite.landscapes.paths.matching.symmetry import permuted
from theodolite.landscapes.paths.matching.units import Units
from theodolite.landscapes.paths.traveller import Traveller
from theodolite.problem import Problem


class Residual(nn.Module):
    """Two residual blocks with BatchNorm; the second halves the picture and widens the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.a, self.a_norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b, self.b_norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.c, self.c_norm = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6)
        self.short, self.short_norm = nn.Conv2d(4, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem_norm(self.stem(x)), inplace=True)
        h = F.relu(h + self.b_norm(self.b(F.relu(self.a_norm(self.a(h))))))
        h = F.relu(self.c_norm(self.c(h)) + self.short_norm(self.short(h)))
        return self.head(F.adaptive_avg_pool2d(h, 1).flatten(1))


def picture_net() -> nn.Module:
    """Convolutions, a depthwise one among them, groups of channels, and a flattened picture."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.GroupNorm(2, 6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.LayerNorm(5),
        nn.GELU(),
        nn.Linear(5, 3),
    )


class Encoder(nn.Module):
    """torch's own encoder layers between an embedding, positions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(7, 8), nn.Parameter(torch.randn(4, 8))
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 10, batch_first=True), 2)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(tokens) + self.positions).mean(1))


class Rotary(nn.Module):
    """By hand: rotary positions, two query heads for each of two key heads, a gated layer, root mean square norms."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(7, 6), nn.RMSNorm(6)
        self.q, self.kv, self.o = nn.Linear(6, 16, bias=False), nn.Linear(6, 16), nn.Linear(16, 6)
        self.up, self.down, self.head = nn.Linear(6, 10), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens)
        count, length = tokens.shape
        q = self.q(self.norm(h)).view(count, length, 4, 4).transpose(1, 2)
        k, v = self.kv(self.norm(h)).view(count, length, 2, 2, 4).permute(2, 0, 3, 1, 4)
        angles = torch.outer(torch.arange(length), torch.tensor([1.0, 0.1]).repeat(2)).to(h)
        q, k = (x * angles.cos() + torch.cat([-x[..., 2:], x[..., :2]], -1) * angles.sin() for x in (q, k))
        mixed = F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), is_causal=True)
        h = h + self.o(mixed.transpose(1, 2).reshape(count, length, 16))
        gate, up = self.up(h).chunk(2, dim=-1)
        return self.head(h + self.down(F.silu(gate) * up))[:, -1]


def pictures() -> list[Any]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 1, 6, 6, generator=g).double(), torch.randint(3, (n,), generator=g)) for n in (5, 6)]


def sentences() -> list[Any]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randint(7, (n, 4), generator=g), torch.randint(3, (n,), generator=g)) for n in (5, 6)]


def problem_of(make: Callable[[], nn.Module], batches: list[Any]) -> Problem:
    """A model in double precision with parameters and statistics of its own at every unit."""
    torch.manual_seed(0)
    model = make().double()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.add_(0.3 * torch.rand_like(value) if "var" in name else 0.3 * torch.randn_like(value))
    return Problem(model, nn.CrossEntropyLoss(), batches)


NETS = {
    "mlp": lambda: BY_NAME["mlp"].problem(),
    "residual": lambda: problem_of(Residual, pictures()),
    "pictures": lambda: problem_of(picture_net, pictures()),
    "encoder": lambda: problem_of(Encoder, sentences()),
    "rotary": lambda: problem_of(Rotary, sentences()),
    "lstm": lambda: BY_NAME["lstm"].problem(),
    "transformer": lambda: BY_NAME["transformer"].problem(),
}


def sure_of_itself(problem: Problem) -> Problem:
    """The labels are the network's own and its loss is low, as after training."""
    model = problem.model.eval()
    with torch.no_grad():
        *_, weight, bias = model.parameters()
        bias.sub_(torch.cat([model(inputs) for inputs, _ in problem.batches]).mean(0))
        weight.mul_(20)
        bias.mul_(20)
        batches = [(inputs, model(inputs).argmax(1)) for inputs, _ in problem.batches]
    return Problem(model, nn.CrossEntropyLoss(), batches)


def shuffled_by_hand(name: str) -> tuple[Problem, dict[str, Tensor]]:
    """A network and a copy whose units are permuted by rules written for it, not by the code under test."""
    problem = sure_of_itself(NETS[name]())
    state = {key: value.clone() for key, value in problem.model.state_dict().items()}
    g = torch.Generator().manual_seed(5)

    def move(size: int, *places: tuple[str, int]) -> None:
        order = torch.randperm(size, generator=g)
        for key, axis in places:
            state[key] = state[key].index_select(axis, order)

    def norm(key: str) -> list[tuple[str, int]]:
        return [(f"{key}.{part}", 0) for part in ("weight", "bias", "running_mean", "running_var")]

    if name == "mlp":
        move(6, ("0.weight", 0), ("0.bias", 0), ("2.weight", 1))
        move(4, ("2.weight", 0), ("2.bias", 0), ("4.weight", 1))
    elif name == "residual":
        stream = [("stem.weight", 0), *norm("stem_norm"), ("b.weight", 0), *norm("b_norm")]
        move(4, *stream, ("a.weight", 1), ("c.weight", 1), ("short.weight", 1))
        move(4, ("a.weight", 0), *norm("a_norm"), ("b.weight", 1))
        wide = [("c.weight", 0), *norm("c_norm"), ("short.weight", 0), *norm("short_norm"), ("head.weight", 1)]
        move(6, *wide)
    else:
        stream = [("embedding.weight", 1), ("positions", 1), ("head.weight", 1)]
        for key in ("layers.layers.0", "layers.layers.1"):
            stream += [(f"{key}.self_attn.in_proj_weight", 1), (f"{key}.linear1.weight", 1)]
            stream += [(f"{key}.{part}", 0) for part in ("self_attn.out_proj.weight", "self_attn.out_proj.bias")]
            stream += [
                (f"{key}.{part}", 0) for part in ("linear2.weight", "linear2.bias", "norm1.weight", "norm1.bias")
            ]
            stream += [(f"{key}.norm2.weight", 0), (f"{key}.norm2.bias", 0)]
            move(10, (f"{key}.linear1.weight", 0), (f"{key}.linear1.bias", 0), (f"{key}.linear2.weight", 1))
            # Heads as blocks, and inside each the features of queries with those of keys, and those of values.
            swap = torch.randperm(2, generator=g)
            inside = torch.stack([torch.randperm(4, generator=g) for _ in range(4)]).view(2, 2, 4)
            pairs, values = ((swap[:, None] * 4 + inside[k]).flatten() for k in (0, 1))
            for part in ("in_proj_weight", "in_proj_bias"):
                rows = torch.cat([pairs, 8 + pairs, 16 + values])
                state[f"{key}.self_attn.{part}"] = state[f"{key}.self_attn.{part}"][rows]
            out = f"{key}.self_attn.out_proj.weight"
            state[out] = state[out][:, values]
        move(8, *stream)
    return problem, state


@pytest.mark.parametrize("name", ["mlp", "residual", "encoder"])
def test_a_copy_permuted_by_hand_has_a_barrier_before_and_none_after(name: str) -> None:
    problem, state = shuffled_by_hand(name)
    found = path(problem, problem.model, state, points=5, aligned=True, predict=False)
    assert found.losses[0, 0] == pytest.approx(found.losses[0, -1], rel=1e-12)
    assert found.barrier("linear").value > 0.1
    assert found.barrier("aligned").value < 1e-12
    matched = match(problem, problem.model, state)
    for key, value in problem.model.named_parameters():
        torch.testing.assert_close(matched.state[key], value.detach(), rtol=0, atol=0)
    for key, value in problem.model.named_buffers():
        torch.testing.assert_close(matched.state[key], value, rtol=0, atol=0)
    assert matched.converged
    assert matched.cosines[0] < 0.9
    assert matched.cosines[1] == pytest.approx(1, abs=1e-12)
    assert matched.error < 1e-10


@pytest.mark.parametrize("name", NETS)
def test_every_permutation_of_the_traced_symmetry_leaves_the_outputs_and_is_undone(name: str) -> None:
    problem = NETS[name]()
    traveller = Traveller(problem)
    state = traveller.state()
    symmetry = discovered(problem, state, seed=3)
    generator, moved = np.random.default_rng(1), dict(state)
    for group in symmetry.groups:
        moved = permuted(moved, group.random(generator, symmetry.sizes))
    other = copy.deepcopy(problem.model)
    other.load_state_dict(moved, strict=False)
    with torch.no_grad():
        for inputs, _ in problem.batches:
            torch.testing.assert_close(other.eval()(inputs), problem.model.eval()(inputs), rtol=1e-10, atol=1e-10)
    matched = match(problem, state, moved)
    # Positions are in the order of the data, which hidden values do not tell.
    assert [note.split(" stay")[0] for note in matched.notes] == (["positions axis 0"] if name == "encoder" else [])
    torch.testing.assert_close(matched.state, dict(state), rtol=0, atol=0)


GROUPS = {
    "mlp": ["0.weight axis 0 (6)", "2.weight axis 0 (4)"],
    "residual": ["stem.weight axis 0 (4)", "a.weight axis 0 (4)", "c.weight axis 0 (6)"],
    "pictures": ["0.weight axis 0 (2 blocks of 3)", "6.weight axis 0 (5)"],
    "encoder": [
        "positions axis 1 (8)",
        *(
            f"layers.layers.{k}.{part}"
            for k in (0, 1)
            for part in ("self_attn.in_proj_weight axis 0 (2 blocks of 4+4)", "linear1.weight axis 0 (10)")
        ),
    ],
    "lstm": ["lstm.weight_ih_l0 axis 0 (4)"],
}


@pytest.mark.parametrize("name", GROUPS)
def test_the_symmetry_is_all_that_there_is(name: str) -> None:
    problem = NETS[name]()
    found = discovered(problem, Traveller(problem).state(), seed=0)
    assert [group.name for group in found.groups] == GROUPS[name]


def test_grouped_rotary_heads_move_as_blocks() -> None:
    problem = NETS["rotary"]()
    found = discovered(problem, Traveller(problem).state(), seed=0)
    (heads,) = [group for group in found.groups if ("o.weight", 1) in group.places]
    assert heads.blocks == 2
    # Values of a head may be exchanged; queries and keys are tied to the angle of their plane, one unit for its two entries.
    assert sorted(fibre.size for fibre in heads.fibres) == [1, 1, 4]
    assert [group.blocks for group in found.groups if ("down.weight", 1) in group.places] == [5]


class Ramp(nn.Module):
    """Hidden units that are told apart by a constant, then units that are not."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.tanh(self.second(self.between(self.first(x)))))


@pytest.mark.parametrize(
    ("between", "note"),
    [
        (lambda h: h * torch.arange(6.0).to(h), None),
        (lambda h: torch.cumsum(h, 1), "cumsum"),
        (lambda h: torch.relu(h[:, :1]) + h, None),
    ],
    ids=["constants", "unknown operation", "one unit apart"],
)
def test_what_has_no_symmetry_is_left_in_its_place(between: Callable[[Tensor], Tensor], note: str | None) -> None:
    problem = problem_of(lambda: Ramp(between), BY_NAME["mlp"].batches())
    found = discovered(problem, Traveller(problem).state(), seed=0)
    names = [group.name for group in found.groups]
    assert "second.weight axis 0 (4)" in names
    assert "first.weight axis 0 (6)" not in names
    assert [part for part in found.notes if note is not None and note in part] or note is None
    if note is None:
        assert not found.notes


class Mixture(nn.Module):
    """Experts in one tensor, each weighed by a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(5, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 5, 6)), nn.Parameter(torch.randn(4, 6, 3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(torch.einsum("bi,eih->beh", x, self.up))
        return (self.gate(x).softmax(1)[:, :, None] * torch.einsum("beh,eho->beo", hidden, self.down)).sum(1)


def test_the_order_of_experts_is_left_with_a_note_that_names_the_parameters() -> None:
    problem = problem_of(Mixture, BY_NAME["mlp"].batches())
    found = discovered(problem, Traveller(problem).state(), seed=0)
    assert not found.groups
    (note,) = found.notes
    assert all(name in note for name in ("gate.weight axis 0", "gate.bias axis 0", "up axis 2", "down axis 0"))


def test_an_output_that_is_not_a_number_is_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = NETS["mlp"]()
    symmetry = discovered(problem, Traveller(problem).state(), seed=0)
    (whole,) = symmetry.outputs
    two = dataclasses.replace(symmetry, outputs=(whole, whole))
    monkeypatch.setattr(discovery, "_outputs", lambda *_: (whole, torch.full_like(whole, torch.nan)))
    assert np.isnan(two.error({}))  # Python's max of 0 and NaN is 0


def test_a_group_that_changes_the_outputs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Units, "fix", lambda self, ids, given=False: None
    )  # as if tracing had overlooked that anything is fixed
    problem = NETS["mlp"]()
    found = discovered(problem, Traveller(problem).state(), seed=0)
    assert [group.name for group in found.groups] == GROUPS["mlp"]
    assert len(found.notes) == 2
    assert all("a permutation changed the outputs by" in note for note in found.notes)
    assert {note.split(" axis")[0] for note in found.notes} == {"0.weight", "4.weight"}


def test_a_model_that_is_not_deterministic_is_refused() -> None:
    class Noise(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x) + self.calls * torch.ones(3).to(x)

    problem = problem_of(lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), Noise(4, 3)), BY_NAME["mlp"].batches())
    with pytest.raises(ProblemError, match=r"found outputs that differ by .* Is the model deterministic"):
        match(problem, problem.model, problem.model)


def test_statistics_move_with_their_units_and_profiles_stand_side_by_side() -> None:
    problem, state = shuffled_by_hand("residual")
    found = path(problem, problem.model, state, points=3, aligned=True, predict=False)
    assert found.profiles == ("linear", "linear, recalibrated", "aligned", "aligned, recalibrated")
    assert found.losses[2, 0] == found.losses[0, 0]
    assert any("3 groups of hidden units matched" in note for note in found.notes)
