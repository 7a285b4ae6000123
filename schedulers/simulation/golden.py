"""The golden case: the paper's scheduling experiment, whose completion times follow by arithmetic.

Three models of 10, 25 and 50 epochs that take 27 s, 4.5 min and 14.5 min, all submitted at 0 on one slot.

References:
    UnifiedNN, the evaluation of its scheduling policies.
"""

from __future__ import annotations

from schedulers.simulation.workload import SimJob

_IN_ORDER = (27.0, 297.0, 1167.0)

#: policy -> when LeNet, ResNet18 and ResNet50 are done
GOLDEN: dict[str, tuple[float, float, float]] = {
    "fcfs": _IN_ORDER,
    "sjf:length=epochs": _IN_ORDER,
    "sjf:length=parameters": _IN_ORDER,
    "srtf": _IN_ORDER,
    "round-robin": (280.8, 714.6, 1167.0),
    "priority": (1167.0, 1140.0, 870.0),
}


def golden_jobs() -> list[SimJob]:
    """Return the three jobs; the larger the model, the lower its priority value."""
    rows = (("LeNet", 27.0, 10, 61_706), ("ResNet18", 270.0, 25, 11_689_512), ("ResNet50", 870.0, 50, 25_557_032))
    return [
        SimJob(id=name, submit_time=0.0, seconds=seconds, num_epochs=epochs, num_parameters=size, priority=2 - index)
        for index, (name, seconds, epochs, size) in enumerate(rows)
    ]
