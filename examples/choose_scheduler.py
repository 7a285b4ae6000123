"""Choose a scheduler by evidence: simulate a batch under three of them, then train scikit-learn's digits under the best.

``python choose_scheduler.py``. The batch is made up: many short jobs and a few long ones, of two people.
"""

import random

import torch
from sklearn.datasets import load_digits

import unified
from schedulers.registry import create
from schedulers.simulation.metrics import metrics_of
from schedulers.simulation.simulator import Host, simulate
from schedulers.simulation.workload import SimJob

dice = random.Random(0)
lengths = [dice.lognormvariate(5, 1.5) for _ in range(100)]
jobs = [
    SimJob(id=f"job-{number}", submit_time=dice.uniform(0, sum(lengths)), seconds=seconds, user=dice.choice(["ann", "bob"]))
    for number, seconds in enumerate(lengths)
]

means = {}
print("scheduler    mean JCT    p95 JCT  slowdown p95   makespan")
for spelling in ("fcfs", "default", "fair(srtf)"):
    found = metrics_of(simulate(jobs, create(spelling), Host(placement="resident")), slots=1)
    means[spelling] = found.mean_jct
    print(f"{spelling:<11}{found.mean_jct:>8.0f} s{found.p95:>9.0f} s{found.slowdown_p95:>13.1f}x{found.makespan:>9.0f} s")
best = min(means, key=means.__getitem__)
print(f"least mean completion since submission: {best}")

digits = load_digits()
data = (torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
batch = [
    unified.JobSpec(
        name=f"hidden-{width}",
        model=torch.nn.Sequential(torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, 10)),
        data={"train": data},
        loss="CrossEntropyLoss",
        optimizer={"name": "Adam", "lr": 1e-3},
        epochs=5,
        batch_size=64,
    )
    for width in (256, 16)
]
with unified.Engine(scheduler=best, slots=1) as engine:
    engine.submit_all(batch)
    for result in engine.run():
        times = f"{result.timing.completion:.1f} s after submission, of which {result.timing.training:.1f} s in turns"
        print(f"{result.name}: {result.state} {times}")
