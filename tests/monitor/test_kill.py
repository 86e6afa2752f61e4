"""A monitored run that is killed loses no complete line, and goes on where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from theodolite.forecasts import load
from theodolite.records import Event, Scalars, Stability

KILLS = 20

# One process imports torch once and forks the runs: twenty imports would take a minute.
SCRIPT = """
import json, os, random, signal, sys, time
import torch
from torch import nn
import theodolite as th
from theodolite.records import Scalars, read

folder, kills = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
random.seed(0)

def run(folder, first, last):
    torch.manual_seed(first)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs, targets = torch.randn(32, 6), torch.randint(3, (32,))
    problem = th.Problem(model, nn.CrossEntropyLoss(), [(inputs, targets)])
    with th.Monitor(problem, optimizer, log=folder, every=2, budget=None, step=first) as monitor:
        while monitor.step < last:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            monitor.log(loss=loss)
            optimizer.step()

run(folder + "-warm-up", 0, 3)  # imports everything once
first, complete = 0, []
for kill in range(kills):
    child = os.fork()
    if child == 0:
        run(folder, first, float("inf"))
    time.sleep(random.uniform(0.02, 0.5))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    path = os.path.join(folder, "log.jsonl")
    if not os.path.exists(path):
        complete.append((0, 0))
        continue
    with open(path, "rb") as file:
        lines = file.read().split(b"\\n")[:-1]  # what follows the last newline is torn
    book = read(folder)
    complete.append((max(len(lines) - 1, 0), len(book)))
    steps = [record.step for record in book.select(Scalars)]
    first = steps[-1] + 1 if steps else first
print(json.dumps(complete))
"""


def test_twenty_kills(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), str(KILLS)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    complete = json.loads(done.stdout.splitlines()[-1])
    assert len(complete) == KILLS
    # Every complete line but the header is a record that is read.
    assert all(lines == records for lines, records in complete)
    counts = [records for _, records in complete]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]
    run = load(tmp_path / "run")
    starts = [event.name for event in run.select(Event)].count("started")
    assert starts >= KILLS // 2
    steps = [record.step for record in run.select(Scalars)]
    assert steps == list(range(len(steps)))
    assert run.select(Stability)
