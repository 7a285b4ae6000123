"""From a network and data to a store of its variants."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from fusion.timer import evaluating
from serving.data import TaskData
from serving.drafts import Draft
from serving.errors import ServingError
from serving.generation import generate
from serving.networks.reading import read_network
from serving.plans import Plan
from serving.progress import Event, LeftOut, Stored, Tell, tell_nobody
from serving.records import DTYPES, Family, TensorSpec, Variant
from serving.store import NUM_EXAMPLES, VariantStore
from serving.tasks import describe_tasks
from serving.training import Train, train_plainly

PAPER = Plan()  #: MTLsys, section 4.2: of three tasks, 40 variants


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What came of building.

    Attributes:
        variants: Those that are new in the store, in the order in which they were made.
        left_out: What could not be made, and why.
    """

    variants: tuple[Variant, ...]
    left_out: tuple[LeftOut, ...]


def build_family(  # noqa: PLR0913 - all but three by name
    path: Path | str,
    parent: nn.Module,
    data: TaskData,
    *,
    name: str,
    plan: Plan | None = PAPER,
    as_it_is: Callable[[fx.GraphModule], Iterable[Draft]] | None = None,
    validation: TaskData | None = None,
    weights: Mapping[str, float] | None = None,
    inputs: Sequence[str] | None = None,
    train: Train = train_plainly,
    tell: Tell = tell_nobody,
) -> Built:
    """Make the variants of a plan out of a multi-task module and put them into a store (MTLsys, section 4.2).

    Args:
        path: Of the store: a new folder, or a store to add to.
        parent: Takes the data's inputs by position and gives ``{task: tensor}``; not changed.
        data: To train on, with labels of every task.
        name: Of the family.
        plan: Which variants, and how; by default the paper's multi-task system. None: nothing is pruned.
        as_it_is: Makes further variants of the network that was read, which are neither pruned nor trained, such as
            :func:`serving.sources.from_fused`.
        validation: Held-out data that the store keeps to score variants by.
        weights: Of the tasks' losses, see :func:`serving.tasks.describe_tasks`.
        inputs: Names of the inputs, as clients write them; by default those of the parent's arguments.
        train: Who trains.
        tell: Called with what happens, see :mod:`serving.progress`.

    Raises:
        ServingError: If nothing can be made: the parent cannot be read, labels are missing, the store has another family of
            that name or variants of those names.
    """
    examples = data.take(slice(0, NUM_EXAMPLES)).inputs
    network = read_network(parent, examples, label=name)
    family = describe_family(name, network, data, weights=weights, inputs=inputs or argument_names(parent))
    drafts = [] if as_it_is is None else list(as_it_is(network))
    planned = [] if plan is None else plan.names(family.task_names)
    store, family = open_store(path, family, [*(draft.name for draft in drafts), *planned])
    if validation is not None:
        store.keep_validation(name, validation)

    def make(report: Tell) -> Iterable[Draft]:
        yield from drafts
        if plan is not None:
            yield from generate(network, family.tasks, data, plan, train=train, tell=report)

    return fill(store, make, examples, tell)


def describe_family(
    name: str,
    network: fx.GraphModule,
    data: TaskData,
    *,
    weights: Mapping[str, float] | None = None,
    inputs: Sequence[str] | None = None,
) -> Family:
    """Return the family of a network's variants: inputs as the data has them, tasks as its outputs and the labels tell.

    Raises:
        ServingError: If the labels do not fit, or there are weights of unknown tasks.
    """
    examples = data.take(slice(0, NUM_EXAMPLES)).inputs
    with torch.no_grad(), evaluating(network):
        outputs = network(*examples)
    unknown = sorted((weights or {}).keys() - outputs.keys())
    if unknown:
        raise ServingError(f"weights of {', '.join(unknown)}, which the network does not answer; it has {', '.join(outputs)}")
    names = list(inputs or ())[: len(examples)]
    if len(names) < len(examples):
        names = [f"input_{place}" for place in range(len(examples))]
    known = {dtype: oip for oip, dtype in DTYPES.items()}
    specs = []
    for label, tensor in zip(names, examples, strict=True):
        dtype = str(tensor.dtype).removeprefix("torch.")
        specs.append(TensorSpec(name=str(label), dtype=known.get(dtype, dtype), shape=tuple(tensor.shape[1:])))
    return Family(name=name, inputs=tuple(specs), tasks=tuple(describe_tasks(outputs, data, weights)))


def argument_names(module: nn.Module) -> tuple[str, ...] | None:
    """Return the names of what a module's ``forward`` takes by position; None if it takes whatever comes."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = [name for name, parameter in inspect.signature(module.forward).parameters.items() if parameter.kind in kinds]
    return tuple(found) or None


def open_store(path: Path | str, family: Family, names: Iterable[str]) -> tuple[VariantStore, Family]:
    """Return the store, made if need be, and the family as variants of these names are to be added to it.

    A family that is there keeps what its scores are scaled by; the weights of losses are those of the new variants.

    Raises:
        ServingError: If the store has another family of that name, or variants of these names.
    """
    path = Path(path)
    there = VariantStore.open(path).families().get(family.name) if VariantStore.is_there(path) else None
    if there is None:
        return VariantStore.create(path, family), family
    if _signature(there) != _signature(family):
        raise ServingError(
            f"{path} has a family {family.name!r} with other inputs or tasks: {_signature(there)}, not {_signature(family)}; "
            "give this one another name"
        )
    store = VariantStore.create(path, there)
    taken = sorted({variant.name for variant in store.variants(family.name)} & set(names))
    if taken:
        raise ServingError(
            f"{path} has variants of family {family.name!r} named {', '.join(taken[:5])}{', …' if len(taken) > 5 else ''}: "
            "ask for other ratios or subsets, or write to another folder"
        )
    return store, replace(there, tasks=tuple(replace(task, weight=family.task(task.name).weight) for task in there.tasks))


def fill(store: VariantStore, make: Callable[[Tell], Iterable[Draft]], examples: tuple[Tensor, ...], tell: Tell) -> Built:
    """Put drafts into a store as they come.

    Args:
        store: It adds to the family that it was opened for.
        make: Makes the drafts and tells what happens to what it is given.
        examples: Inputs that each draft is checked with.
        tell: Called with what happens, there and here.

    Raises:
        ServingError: If not one could be stored.
    """
    variants: list[Variant] = []
    left_out: list[LeftOut] = []

    def report(event: Event) -> None:
        if isinstance(event, LeftOut):
            left_out.append(event)
        tell(event)

    for draft in make(report):
        try:
            variants.append(store.add(draft, examples))
        except ServingError as error:  # a network that is equal to another, or cannot be written
            report(LeftOut(name=draft.name, reason=str(error)))
        else:
            report(Stored(variant=variants[-1]))
    if not variants:
        raise ServingError("\n".join(f"{told.name}: {told.reason}" for told in left_out) or "there was nothing to store")
    return Built(variants=tuple(variants), left_out=tuple(left_out))


def _signature(family: Family) -> str:
    inputs = ", ".join(f"{spec.name}: {spec.dtype} {list(spec.shape)}" for spec in family.inputs)
    tasks = ", ".join(f"{task.name}: {task.kind} {list(task.shape)}" for task in family.tasks)
    return f"({inputs}) -> ({tasks})"
