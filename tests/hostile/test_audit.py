"""What Python itself reports while an archive is read and trained: no code is made or run, nothing is unpickled or opened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.hostile.archives import tiny
from tests.zoo import lenet
from unified.submission.umodel_write import export

#: The first archive brings in what PyTorch loads when it is first used; from then on, every event is written down.
PROGRAM = """
import json, sys
import torch
from unified.submission.umodel_read import load_umodel

def train(path, shape):
    model = load_umodel(path)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(shape)).sum().backward()
        optimizer.step()
    model.eval()(torch.ones(shape))

first, second = sys.argv[1:]
found = []
watch = ["pickle.find_class"]  # even while PyTorch loads its own
sys.addaudithook(lambda event, args: found.append(f"{event} {args[:1]}") if event.startswith(watch[0]) else None)
train(first, (4, 3))
watch[0] = ""
train(second, (4, 1, 28, 28))
watch[0] = ("nothing",)
print(json.dumps(found))
"""

#: Neither makes nor runs anything: objects' numbers, their attributes, and the clean-up of the map.
HARMLESS = ("object.__getattr__", "object.__setattr__", "object.__delattr__", "builtins.id", "sys._getframe", "gc.")


@pytest.mark.slow
def test_reading_and_training_runs_no_code_and_opens_only_the_archive(tmp_path):
    torch.manual_seed(0)
    first = tiny(tmp_path)
    second = export(lenet().model, torch.randn(2, 1, 28, 28), tmp_path / "lenet.umodel")
    command = [sys.executable, "-c", PROGRAM, str(first), str(second)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    events = [event for event in json.loads(done.stdout) if not event.startswith(HARMLESS)]
    assert {event.partition(" ")[0] for event in events} <= {"open", "mmap.__new__", "pathlib.Path.stat"}, events
    assert all(str(second) in event for event in events if event.startswith("open")), events
