"""Two studies of how PAM groups neurons (*Pruning-Aware Merging*, 6.3).

The more related two tasks are, the more neurons are shared (6.3.1); and where the second task is a part of the first, it has
hardly a neuron of its own (6.3.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.merging_data import INCLUSION, RELATEDNESS, Items, PanelData, Panels, Tasks, seeded_panels
from benchmarks.merging_singles import Recipe, cached_single
from fusion.merging.config import RegroupConfig
from fusion.merging.merge import read_models
from fusion.merging.plan import Regrouping
from fusion.merging.regroup import Traces, trace_networks
from fusion.merging.samples import MergeData, Samples

ALPHAS = (0.05, 0.1, 0.2, 0.3)


def samples_of(panels: Panels) -> Samples:
    """Return panels as merging takes them."""
    return Samples(inputs=panels.inputs, labels=panels.labels)


def data_of(panels: PanelData) -> MergeData:
    """Return the three splits as merging takes them."""
    return MergeData(train=samples_of(panels.train), validation=samples_of(panels.validation), test=samples_of(panels.test))


def panel_traces(
    items: Mapping[str, Items], tasks: Tasks, recipe: Recipe, *, seed: int, folder: Path, config: RegroupConfig
) -> Traces:
    """Train a network for each task, or read it back, and make ready to search for the groups of their neurons."""
    panels = seeded_panels(items, tasks, seed=seed)
    models = {task: cached_single(panels, task, recipe, seed=seed, folder=folder).network for task in tasks}
    data = data_of(panels)
    return trace_networks(read_models(models, data), data, config)


def relatedness(
    items: Mapping[str, Items],
    recipe: Recipe,
    *,
    seed: int,
    folder: Path,
    alphas: Sequence[float] = ALPHAS,
    config: RegroupConfig | None = None,
) -> list[dict[str, Any]]:
    """Count shared neurons against what two tasks' labels tell about each other.

    Args:
        items: Of ``load_items``.
        recipe: Of the single networks.
        seed: Of panels and networks.
        folder: Of trained networks.
        alphas: Thresholds, all from one search.
        config: Options of regrouping.

    Returns:
        A row for each pair of tasks and alpha: ``information_bits`` of the labels, and what :func:`shared_neurons` gives.
    """
    rows = []
    for bits, tasks in RELATEDNESS.items():
        traces = panel_traces(items, tasks, recipe, seed=seed, folder=folder, config=config or RegroupConfig())
        rows += [{"information_bits": bits, "seed": seed, **shared_neurons(traces.regroup(alpha))} for alpha in alphas]
    return rows


def shared_neurons(plan: Regrouping) -> dict[str, Any]:
    """Return ``alpha`` and by layer the ``shared`` and ``live`` neurons, and the ``shared_share`` of all."""
    spaces = [space for space in plan.spaces if space.is_regrouped]
    shared = {space.name: space.num_shared for space in spaces}
    live = {space.name: len(space.neurons) for space in spaces}
    share = sum(shared.values()) / sum(live.values())
    return {"alpha": plan.threshold.alpha, "shared": shared, "live": live, "shared_share": share}


def inclusion(
    items: Mapping[str, Items],
    recipe: Recipe,
    *,
    seed: int,
    folder: Path,
    alphas: Sequence[float] = ALPHAS,
    config: RegroupConfig | None = None,
) -> list[dict[str, Any]]:
    """Count each task's exclusive neurons where task B is a part of task A, as found: before overlaps and guards.

    For the rule for overlaps gives uninformative neurons of B's network back to B, so that afterwards they look like B's own.

    Args:
        items: Of ``load_items``.
        recipe: Of the single networks.
        seed: Of panels and networks.
        folder: Of trained networks.
        alphas: Thresholds, all from one search.
        config: Options of regrouping.

    Returns:
        A row for each alpha, as :func:`exclusive_neurons` gives it.
    """
    traces = panel_traces(items, INCLUSION, recipe, seed=seed, folder=folder, config=config or RegroupConfig())
    return [{"seed": seed, **exclusive_neurons(traces.regroup(alpha))} for alpha in alphas]


def exclusive_neurons(plan: Regrouping) -> dict[str, Any]:
    """Return ``alpha`` and by layer the sizes of two tasks' sets: ``only_a``, ``only_b`` and ``both``, and ``live`` neurons."""
    found = {space.name: [set(space.selected[bits]) for bits in (1, 2)] for space in plan.spaces if space.is_regrouped}
    return {
        "alpha": plan.threshold.alpha,
        "live": {space.name: len(space.neurons) for space in plan.spaces if space.is_regrouped},
        "only_a": {name: len(a - b) for name, (a, b) in found.items()},
        "only_b": {name: len(b - a) for name, (a, b) in found.items()},
        "both": {name: len(a & b) for name, (a, b) in found.items()},
    }
