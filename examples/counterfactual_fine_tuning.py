"""A network that relies on a spurious cue: plain fine-tuning keeps the cue, connectivity-based fine-tuning drops it.

The data have a core that takes work to read and a cue that is easy. A network trained with the cue uses it, and fine-tuned on
data without the cue it goes on using it: with the cue randomised its accuracy is that of chance. Connectivity-based fine-tuning
asks for a barrier towards the first network on the data with the cue, and for the same class means of the features with and
without it (Lubana, Bigelow, Dick, Krueger & Tanaka, "Mechanistic mode connectivity", 2023).

Run it: python examples/counterfactual_fine_tuning.py
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from theodolite import Problem
from theodolite.landscapes.paths import counterfactual, invariance, path

CLASSES, CORE, SAMPLES = 2, 8, 512
TARGET_LOSS = 1.0  # on the way to the network with the cue, where the barrier is wanted


def draw(seed: int, *, cue: bool) -> tuple[Tensor, Tensor]:
    """The sign of a product of two coordinates is the core; the last coordinate is the cue, 0 where there is none."""
    g = torch.Generator().manual_seed(seed)
    core = torch.randn(SAMPLES, CORE, generator=g)
    labels = (core[:, 0] * core[:, 1] > 0).long()
    last = 2.0 * labels - 1 if cue else torch.zeros(SAMPLES)
    return torch.cat([core, 3 * last[:, None]], dim=1), labels


def randomised(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The cue of another sample."""
    inputs = batch[0].clone()
    inputs[:, -1] = inputs[torch.randperm(len(inputs), generator=torch.Generator().manual_seed(9)), -1]
    return inputs, batch[1]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(CORE + 1, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def features(model: nn.Sequential, inputs: Tensor) -> Tensor:
    return torch.relu(model[0](inputs))


def fit(model: nn.Sequential, data: tuple[Tensor, Tensor], *, steps: int, lr: float) -> nn.Sequential:
    """Plain training on full batches."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    return model


def connectivity_based(
    cued: nn.Sequential, with_cue: tuple[Tensor, Tensor], clean: tuple[Tensor, Tensor], *, steps: int, lr: float
) -> nn.Sequential:
    """Alternate a step that raises a barrier towards the network with the cue, and one that fits clean data."""
    model, fixed = copy.deepcopy(cued), {name: value.detach() for name, value in cued.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    g = torch.Generator().manual_seed(4)
    for step in range(steps):
        if step >= steps // 10:  # first, plain fine-tuning
            t = 0.5 + 0.5 * float(torch.randn((), generator=g).clamp(-0.5, 0.5))
            between = {name: t * fixed[name] + (1 - t) * value for name, value in model.named_parameters()}
            loss = F.cross_entropy(torch.func.functional_call(model, between, (with_cue[0],)), with_cue[1])
            optimizer.zero_grad()
            (TARGET_LOSS - loss).abs().backward()
            optimizer.step()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(clean[0]), clean[1])
        if step >= steps // 10:
            loss = loss + means_apart(model, with_cue, clean)
        loss.backward()
        optimizer.step()
    return model


def means_apart(model: nn.Sequential, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared distance between the directions of the class means of features on two data sets."""
    means = [
        F.normalize(torch.stack([features(model, x)[y == label].mean(0) for label in range(CLASSES)]), dim=1)
        for x, y in (first, second)
    ]
    return (means[0] - means[1]).square().sum(1).mean()


def accuracy(model: nn.Sequential, data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).float().mean())


def main() -> dict[str, dict[str, float]]:
    """Train three networks, and print what each relies on and what stands between them."""
    torch.manual_seed(0)
    with_cue, clean, test = draw(1, cue=True), draw(2, cue=False), draw(3, cue=True)
    cued = fit(network(), with_cue, steps=200, lr=0.1)
    models = {
        "cued": cued,
        "naive": fit(copy.deepcopy(cued), clean, steps=300, lr=0.05),
        "connectivity-based": connectivity_based(cued, with_cue, clean, steps=300, lr=0.05),
    }
    batches = list(zip(test[0].chunk(8), test[1].chunk(8), strict=True))
    problem = Problem(cued, nn.CrossEntropyLoss(), batches)
    found = invariance(problem, {"cue randomised": randomised}, models)
    print(found)
    readings = {}
    for name, model in models.items():
        on_data = path(problem, cued, model, points=11, predict=False).barrier()
        apart = path(counterfactual(problem, randomised), cued, model, points=11, predict=False).barrier()
        readings[name] = {
            "gap": found.gap(name, "cue randomised").value,
            "with cue": accuracy(model, test),
            "cue randomised": accuracy(model, randomised(test)),
        }
        print(f"{name}: barrier to the network with the cue {on_data}, with the cue randomised {apart}")
        print("  " + ", ".join(f"{key} {value:.3f}" for key, value in readings[name].items()))
    return readings


if __name__ == "__main__":
    main()
