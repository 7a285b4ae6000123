"""Threads on cores of their own: where they run, and that nothing else changes. In a process of its own: it moves threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, torch
from unified.cores import use_threads

def affinities():
    return sorted(sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task"))

def train():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(14400, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(32, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    return [parameter.double().sum().item() for parameter in model.parameters()]

def train_with(*arguments):
    use_threads(*arguments)
    return {"threads": torch.get_num_threads(), "own": sorted(os.sched_getaffinity(0)), "sums": train(), "all": affinities()}

cores = sorted(os.sched_getaffinity(0))
seen = {"cores": cores, "one": train_with(1, 0), "pinned": train_with(2, 0), "free": train_with(2), "again": train_with(1)}
print(json.dumps(seen))
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_two_threads_get_a_core_each_and_leave_no_trace_in_the_weights() -> None:
    root = Path(__file__).resolve().parents[2]
    output = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, check=True, capture_output=True, text=True).stdout
    seen = json.loads(output)
    first, second = seen["cores"][:2]
    assert seen["one"]["threads"] == 1
    assert seen["one"]["own"] == seen["cores"]
    assert seen["pinned"]["threads"] == 2
    assert seen["pinned"]["own"] == [first]
    assert [second] in seen["pinned"]["all"]
    assert seen["again"]["own"] == seen["cores"]
    assert seen["pinned"]["sums"] == seen["free"]["sums"]
    assert seen["one"]["sums"] == seen["again"]["sums"]
