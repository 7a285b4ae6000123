"""One run of the merging benchmark: networks of one seed merged, pruned and compared, and what is checked of the result."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.merging_data import TASKS, PanelData, Panels, draw_panels, load_items, seeded_panels
from benchmarks.merging_singles import Recipe, cached_single
from fusion.merging.config import Threshold
from fusion.merging.flops import flops
from fusion.merging.merge import read_models
from fusion.merging.merged import MergedNetwork
from fusion.merging.neurons import names_of, subsets
from fusion.merging.pipeline import run
from fusion.merging.planned import reconnect_plan
from fusion.merging.progress import Event, StageBegan
from fusion.merging.reconnect import alone
from fusion.merging.regroup import Traces, trace_networks
from fusion.merging.samples import MergeData, Samples
from fusion.merging.settings import MergeSettings

TRAIN_SEED = 1000  #: of the panels that merged networks train on: they are others than the networks given were judged by
SIZES = (0.02, 0.05, 0.1, 0.2, 0.4, float("inf"))  #: alphas whose groups are printed
CHECKED = 64  #: panels that specialised networks are compared on


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one run does.

    Attributes:
        network: A name of ``merging_models.NETWORKS``.
        tasks: A name of ``merging_data.TASKS``.
        seed: Of panels, networks and merge.
        method: ``taylor`` or ``vib``.
        data: Folder of Fashion-MNIST.
        cache: Folder of trained single networks.
        epochs: Of a single network.
        panels: That merged networks, and their baselines, are trained on.
        alphas: That are tried.
        steps: Training steps after a removal.
        lr: Of that training.
        max_drop: Of a task's accuracy.
        judged: Panels for validation and for the test, at most; None: all.
    """

    network: str
    tasks: str
    seed: int
    method: str
    data: Path
    cache: Path
    epochs: int
    panels: int
    alphas: tuple[float, ...]
    steps: int
    lr: float
    max_drop: float = 0.01
    judged: int | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.network}, {self.tasks} tasks, seed {self.seed}, {self.method}"


def run_plan(plan: Plan) -> dict[str, Any]:
    """Train what has to be trained, merge and prune, and return all that was found as JSON data."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    drawn = seeded_panels(load_items(plan.data), TASKS[plan.tasks], seed=plan.seed)
    recipe = Recipe(network=plan.network, epochs=plan.epochs)
    singles = {task: cached_single(drawn, task, recipe, seed=plan.seed, folder=plan.cache) for task in drawn.tasks}
    models = {task: single.network.eval() for task, single in singles.items()}
    data = merge_data(drawn, plan)
    trained = time.perf_counter()
    settings = MergeSettings(
        alphas=plan.alphas, max_drop=plan.max_drop, prune=plan.method, baselines=True, steps=plan.steps, lr=plan.lr,
        seed=plan.seed,
    )  # fmt: skip
    outcome = run(models, data, settings, progress=lambda event: _tell(plan, event))
    merged = time.perf_counter()
    return {
        "network": plan.network,
        "tasks": plan.tasks,
        "seed": plan.seed,
        "method": plan.method,
        "epochs": plan.epochs,
        "panels": plan.panels,
        "single_seconds": trained - begin,
        "merge_seconds": merged - trained,
        "report": outcome.report.to_json(),
        "checks": check_subsets(outcome.network, data.validation),
        "groups": group_figures(models, data, settings),
    }


def merge_data(drawn: PanelData, plan: Plan) -> MergeData:
    """Return the samples of a merge: more training panels than the published 8000, on which LeNet would overfit."""
    generator = torch.Generator().manual_seed(TRAIN_SEED + plan.seed)
    train = draw_panels(drawn.train_items, drawn.tasks, plan.panels, generator)
    validation, test = (_samples(panels, plan.judged) for panels in (drawn.validation, drawn.test))
    return MergeData(train=_samples(train), validation=validation, test=test)


def check_subsets(merged: MergedNetwork, samples: Samples) -> dict[str, Any]:
    """Compare the network of every subset with the whole one, and the operations of subsets with those of their parts."""
    x = samples.inputs[:CHECKED]
    with torch.no_grad():
        whole = merged(x)
    worst, equal = 0.0, 0
    for bits in subsets(len(merged.tasks)):
        names = names_of(bits, merged.tasks)
        with torch.no_grad():
            found = merged.specialize(names)(x)
        apart = max(float((found[task] - whole[task]).abs().max()) for task in names)
        worst, equal = max(worst, apart), equal + (apart <= 1e-5)
    costs = {bits: flops(merged, names_of(bits, merged.tasks)) for bits in subsets(len(merged.tasks))}
    monotone = all(costs[one] <= costs[other] for one in costs for other in costs if one & other == one)
    return {"max_difference": worst, "subsets_equal": equal, "flops_monotone": int(monotone)}


def group_figures(models: dict[str, nn.Module], data: MergeData, settings: MergeSettings) -> dict[str, Any]:
    """Return the sizes of groups by alpha and layer, whose neurons the sets have, and what is shared at infinity."""
    union = read_models(models, data)
    traces = trace_networks(union, data, settings.regroup_config)
    sizes = {
        str(alpha): {
            space.name: {"+".join(names_of(group, union.tasks)): size for group, size in space.neurons.sizes().items()}
            for space in traces.regroup(alpha).spaces
        }
        for alpha in SIZES
    }
    apart = reconnect_plan(union, traces.regroup(float("inf")))
    x = data.validation.inputs[:CHECKED]
    with torch.no_grad():
        differences = [float((apart(x)[task] - model(x)).abs().max()) for task, model in models.items()]
    single = sum(flops(alone(network)) for network in union.networks.values())
    return {
        "sizes": sizes,
        "large_alpha_difference": max(differences),
        "large_alpha_flops_ratio": flops(apart) / single,
        "own_share_minus_chance": own_shares(traces, 0.1),
    }


def own_shares(traces: Traces, alpha: float) -> dict[str, dict[str, float | None]]:
    """Return by layer and task the share of a set's neurons that are its own network's, less that of all neurons."""
    tasks = traces.union.tasks
    found: dict[str, dict[str, float | None]] = {}
    for search in traces.searches.values():
        origin = search.owners.origin[list(search.searched)]
        for number, task in enumerate(tasks):
            chosen = list(search.trace(1 << number, Threshold(alpha=alpha)).prefix(Threshold(alpha=alpha)))
            own = None if not chosen else float((origin[chosen] == number).double().mean() - (origin == number).double().mean())
            found.setdefault(search.name, {})[task] = own
    return found


def _samples(panels: Panels, count: int | None = None) -> Samples:
    return Samples(inputs=panels.inputs[:count], labels={task: labels[:count] for task, labels in panels.labels.items()})


def _tell(plan: Plan, event: Event) -> None:
    """Say how far a run is, on the terminal's error stream."""
    if isinstance(event, StageBegan):
        print(
            f"{plan.name}: {event.seconds:.0f} s, {event.number}/{event.num_stages} {event.what}", file=sys.stderr, flush=True
        )
