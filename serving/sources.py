"""Variants that come as they are, neither pruned nor trained here: of a fused network, of a merged one, or handed in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from fusion.merging.merged import MergedNetwork
from fusion.merging.specializing import specialize
from fusion.search.hashing import hash_tensors, tensors_of
from serving.drafts import Draft
from serving.errors import ServingError
from serving.networks.heads import keep_tasks
from serving.networks.reading import read_network
from serving.records import Source
from serving.subsets import Subsets, subset_name, subsets_of


def from_fused(network: fx.GraphModule, tasks: Sequence[str], subsets: Subsets = "singles+all") -> Iterator[Draft]:
    """Yield variants of a fused network (``unified fuse``): whole, and for subsets of its tasks without the other heads.

    Args:
        network: As :func:`serving.networks.reading.read_network` reads a fused network.
        tasks: Names of all its tasks, in order.
        subsets: For which tasks.
    """
    weights = hash_tensors(tensors_of(network).items())
    for subset in subsets_of(tasks, subsets):
        yield _draft("fused", keep_tasks(network, subset), subset, tasks, Source.FUSED, {"fused": {"weights": weights}})


def from_merged(merged: MergedNetwork, example: Tensor, subsets: Subsets = "singles+all") -> Iterator[Draft]:
    """Yield variants of a merged network (``unified merge``): for each subset a plain network of what its tasks need.

    Args:
        merged: The network.
        example: A few inputs ``(n, ...)``, by which each layer takes its faster form.
        subsets: For which tasks.
    """
    weights = hash_tensors(tensors_of(merged).items())
    for subset in subsets_of(merged.tasks, subsets):
        module = specialize(merged, subset, example=example)
        made_from = {"weights": weights, "lowering": module.meta["lowering"]}
        yield _draft("merged", module, subset, merged.tasks, Source.SPECIALISED, {"merged": made_from})


def given(modules: Mapping[str, nn.Module], examples: tuple[Tensor, ...]) -> Iterator[Draft]:
    """Yield modules as variants, by name; each takes the family's inputs by position and gives ``{task: tensor}``.

    Raises:
        ServingError: If one of them gives something else.
    """
    for name, module in modules.items():
        network = read_network(module, examples, label=name)
        tasks = tuple(network(*examples))
        if not tasks:
            raise ServingError(f"{name}: expected a module that answers some task, got none")
        yield Draft(name=name, module=network.eval(), tasks=tasks, source=Source.GIVEN)


def _draft(
    prefix: str, module: nn.Module, subset: tuple[str, ...], tasks: Sequence[str], source: Source, provenance: dict[str, Any]
) -> Draft:
    is_whole = len(subset) == len(tasks)
    return Draft(
        name=f"{prefix}-{subset_name(subset, tasks)}",
        module=module,
        tasks=subset,
        source=source,
        parent=None if is_whole else f"{prefix}-all",
        provenance=provenance,
    )
