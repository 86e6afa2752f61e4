"""GraNd and EL2N of models keep their identities, and find samples with wrong labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from theodolite.measures import gradients
from theodolite.problem import Problem
from theodolite.records.data_scores import data_scores


def test_the_last_layer_has_the_error_times_the_length_of_its_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs, targets = torch.randn(12, 4, dtype=torch.float64), torch.randint(3, (12,))
    record = gradients(Problem(model, nn.CrossEntropyLoss(), [(inputs, targets)]), gram=True)
    hidden = model[:2](inputs).detach().norm(dim=1).numpy()
    el2n = data_scores(record).values
    np.testing.assert_allclose(record.layer_sample_norms[1], el2n * np.sqrt(hidden**2 + 1), rtol=1e-9)
    assert (el2n <= 2**0.5).all()
    expected = (
        (torch.softmax(model(inputs).detach(), 1) - torch.eye(3, dtype=torch.float64)[targets]).norm(dim=1).numpy()
    )
    np.testing.assert_allclose(el2n, expected, rtol=1e-10)
    assert record.sample_norms == pytest.approx(data_scores(record, score="grand").values)


def test_samples_with_wrong_labels_score_highest_after_short_training() -> None:
    records = []
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(90) % 3
    inputs = 2.5 * torch.eye(3)[targets] + torch.randn(90, 3, generator=generator) * 0.6
    wrong = torch.randperm(90, generator=generator)[:9]
    targets[wrong] = (targets[wrong] + 1) % 3
    for seed in range(3):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        records.append(gradients(Problem(model, nn.CrossEntropyLoss(), [(inputs, targets)]), gram=True))
    for score in ("el2n", "grand"):
        found = data_scores(records, score=score)
        assert (found.runs == 3).all()
        mine = np.isin(np.arange(90), wrong.numpy())
        above = (found.values[mine][:, None] > found.values[~mine]).mean()
        assert above > 0.9  # area under the curve
        kept = found.keep(0.5, skip=0.1)
        assert np.isin(kept, wrong.numpy()).sum() <= 2
