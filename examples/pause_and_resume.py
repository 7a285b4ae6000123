"""A cloud backend embeds the engine: it watches events, pauses a job to let another pass, resumes and cancels.

python examples/pause_and_resume.py
"""

from __future__ import annotations

import torch
from torch import nn

import unified
from unified import events

torch.manual_seed(0)
inputs = torch.randn(512, 20)
targets = inputs @ torch.randn(20, 1) + 0.1 * torch.randn(512, 1)


def job(name: str, epochs: int) -> unified.JobSpec:
    return unified.JobSpec(
        name=name,
        model=nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 1)),
        data={"train": (inputs, targets)},
        loss="MSELoss",
        optimizer={"name": "SGD", "lr": 0.05},
        epochs=epochs,
        batch_size=32,
    )


def watch(event: events.Event) -> None:
    """Steer the run from what happens in it."""
    match event:
        case events.EpochDone(job="long", epoch=3):
            print("long has done 3 epochs: paused")
            engine.pause("long")
        case events.EpochDone(job="endless", epoch=5):
            print("endless has had enough: cancelled")
            engine.cancel("endless")
        case events.JobFinished(job="urgent"):
            print("urgent is done: long goes on")
            engine.resume("long")


with unified.Engine(scheduler="fcfs", slots=1, listeners=[watch]) as engine:
    engine.submit_all([job("long", epochs=10), job("urgent", epochs=5), job("endless", epochs=100_000)])
    for result in engine.run():
        loss = result.metrics.get("train_loss", float("nan"))
        print(f"{result.name}: {result.state}, train loss {loss:.3f}")
