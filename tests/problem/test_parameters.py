"""Parameters by glob, module, predicate; blocks by layer; tied, frozen and unused ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from families import BY_NAME, Attention
from theodolite.errors import ParameterError
from theodolite.operators import Hessian
from theodolite.problem import Layout, Problem
from theodolite.problem.parameters import Selection


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"attn": nn.Linear(3, 3), "mlp": nn.Linear(3, 3, bias=False)}) for _ in range(12)
        )
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + torch.tanh(block["mlp"](block["attn"](x)))
        return x * self.scale


def problem(params: Selection = None, model: nn.Module | None = None) -> Problem:
    torch.manual_seed(0)
    model = model or Blocks().double()
    batches = [(torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64))]
    return Problem(model, nn.MSELoss(), batches, params=params)


SELECTIONS: dict[str, tuple[Selection, Callable[[str], bool]]] = {
    "all": (None, lambda name: True),
    "exact": ("scale", lambda name: name == "scale"),
    "glob": ("blocks.*.attn.*", lambda name: ".attn." in name),
    "glob of weights": ("*.weight", lambda name: name.endswith(".weight")),
    "module": ("blocks.3", lambda name: name.startswith("blocks.3.")),
    "digit": ("blocks.1", lambda name: name.startswith("blocks.1.")),  # not blocks.10, blocks.11
    "modules by glob": (
        "blocks.[0-2].mlp",
        lambda name: name.endswith("mlp.weight") and name[7] in "012" and name[8] == ".",
    ),
    "several": (["scale", "blocks.0"], lambda name: name == "scale" or name.startswith("blocks.0.")),
    "tuple": (("scale", "blocks.0"), lambda name: name == "scale" or name.startswith("blocks.0.")),
    "predicate": (lambda name, parameter: parameter.dim() == 1, lambda name: name == "scale" or name.endswith("bias")),
}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_selections_take_what_they_name_in_the_order_of_the_model(selection: str) -> None:
    params, belongs = SELECTIONS[selection]
    model = Blocks()
    assert problem(params).layout.names == tuple(name for name, _ in model.named_parameters() if belongs(name))


@pytest.mark.parametrize("selection", ["glob", "several", "predicate"])
def test_a_selection_is_a_block_of_the_whole(selection: str) -> None:
    whole, part = problem(), problem(SELECTIONS[selection][0])
    where = torch.cat([torch.arange(whole.n)[whole.layout.slices[name]] for name in part.layout.names])
    dense = Hessian(whole).dense()
    torch.testing.assert_close(Hessian(part).dense(), dense[where][:, where], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(part.gradient(), whole.gradient()[where])
    assert part.loss() == whole.loss()


def test_select_narrows_again_and_never_widens() -> None:
    blocks = problem("blocks.*")
    attention = blocks.select("*.attn.*")
    assert attention.layout.names == tuple(name for name in blocks.layout.names if ".attn." in name)
    one = attention.select("blocks.2")
    assert one.layout.names == ("blocks.2.attn.weight", "blocks.2.attn.bias")
    assert blocks.n == problem().n - 3
    torch.testing.assert_close(one.gradient(), problem("blocks.2.attn").gradient())
    with pytest.raises(ParameterError, match=r"None of the parameters of this problem matches 'scale'"):
        blocks.select("scale")


def test_select_inside_a_session_is_evaluated_like_any_other() -> None:
    whole = problem()
    whole.model.train()
    with whole.session():
        part = whole.select("scale")
    states = []
    with part.session():
        states.append(whole.model.training)
    assert states == [False]
    assert whole.model.training


def test_flatten_and_unflatten_are_inverse() -> None:
    layout = problem().layout
    flat, rows = torch.randn(layout.n), torch.randn(5, layout.n)
    assert torch.equal(layout.flatten(layout.unflatten(flat)), flat)
    assert torch.equal(layout.flatten_rows(layout.unflatten_rows(rows)), rows)
    for name, part in zip(layout.names, layout.unflatten(flat), strict=True):
        assert torch.equal(part.reshape(-1), flat[layout.slices[name]])
    assert [part.shape for part in layout.unflatten(flat)] == list(layout.shapes)


def test_layers_are_the_modules_that_own_the_parameters() -> None:
    layout = problem().layout
    assert layout.layers["blocks.4.attn"] == ("blocks.4.attn.weight", "blocks.4.attn.bias")
    assert layout.layers["scale"] == ("scale",)
    assert sum(len(names) for names in layout.layers.values()) == len(layout.names)
    for layer, where in layout.layer_slices.items():
        assert where.stop - where.start == sum(
            size for name, size in zip(layout.names, layout.sizes, strict=True) if name in layout.layers[layer]
        )


def test_a_layout_of_a_number_and_an_empty_tensor() -> None:
    layout = Layout(("a", "b"), (torch.Size([]), torch.Size([0, 3])))
    assert (layout.n, layout.sizes) == (1, (1, 0))
    assert torch.equal(layout.flatten(layout.unflatten(torch.tensor([2.0]))), torch.tensor([2.0]))


def test_tied_weights_are_one_parameter() -> None:
    family = BY_NAME["transformer"]
    found = family.problem()
    assert "embedding.weight" in found.layout.names
    assert "head.weight" not in found.layout.names
    assert found.n == sum(parameter.numel() for parameter in Attention().parameters())


def test_unused_parameters_have_zero_rows() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    model.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    found = problem(None, model)
    where = found.layout.slices["unused"]
    dense = Hessian(found).dense()
    assert torch.count_nonzero(found.gradient()[where]) == 0
    assert torch.count_nonzero(dense[where]) == torch.count_nonzero(dense[:, where]) == 0
    assert torch.count_nonzero(dense) > 0


def test_parameters_that_enter_linearly_have_zero_curvature() -> None:
    model = nn.Linear(3, 1).double()
    batches = [(torch.randn(4, 3, dtype=torch.float64), torch.zeros(4, 1))]
    found = Problem(model, lambda outputs, _: outputs.mean(), batches)
    assert torch.count_nonzero(Hessian(found) @ torch.ones(found.n, dtype=torch.float64)) == 0


class LowRank(nn.Module):
    """A frozen layer with a trainable low-rank update."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(2, base.in_features))
        self.lora_b = nn.Parameter(torch.randn(base.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.lora_a.T @ self.lora_b.T


def test_a_low_rank_adapter_is_surveyed_without_its_frozen_base() -> None:
    model = nn.Sequential(LowRank(nn.Linear(3, 3)), nn.Tanh(), LowRank(nn.Linear(3, 3))).double()
    found = problem(None, model)
    assert found.layout.names == ("0.lora_a", "0.lora_b", "2.lora_a", "2.lora_b")
    loss = nn.functional.mse_loss(model(found.batches._kept[0][0]), found.batches._kept[0][1])
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    v = torch.randn(found.n, dtype=torch.float64)
    product = torch.cat([g.reshape(-1) for g in torch.autograd.grad(gradient, parameters, v)])
    torch.testing.assert_close(Hessian(found) @ v, product, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("frozen", [False, True])
def test_adapters_by_name_are_their_block_whether_the_base_is_frozen_or_not(frozen: bool) -> None:
    model = nn.Sequential(LowRank(nn.Linear(3, 3)), nn.Tanh(), LowRank(nn.Linear(3, 3))).double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name or not frozen)
    adapters = problem("*lora*", model)
    assert adapters.layout.names == ("0.lora_a", "0.lora_b", "2.lora_a", "2.lora_b")
    whole = problem(lambda name, parameter: parameter.requires_grad, model)
    slices = whole.layout.slices
    where = torch.cat([torch.arange(whole.n)[slices[name]] for name in adapters.layout.names])
    dense = Hessian(whole).dense()
    torch.testing.assert_close(Hessian(adapters).dense(), dense[where][:, where], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(Hessian(whole).block("*lora*").dense(), dense[where][:, where], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("nothing.*", r"No parameter of Blocks matches params='nothing.\*'.*37 parameters"),
        (["a", "b"], r"No parameter of Blocks matches params=\['a', 'b'\]"),
        (lambda name, parameter: False, r"No parameter of Blocks matches"),
        ("Scale", r"No parameter of Blocks matches params='Scale'"),
    ],
)
def test_selecting_nothing_is_refused(params: Selection, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        problem(params)


def test_selecting_only_frozen_parameters_is_refused() -> None:
    model = Blocks().double()
    model.scale.requires_grad_(False)
    with pytest.raises(ParameterError, match=r"found 1 that match but all are frozen.*scale.*requires_grad_\(True\)"):
        problem("scale", model)
    with pytest.raises(ParameterError, match=r"has 0 parameters: none"):
        problem(None, nn.Tanh())
