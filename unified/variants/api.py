"""Building variants in one call from Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, fx, nn

from fusion.merging.merged import MergedNetwork
from serving.building import Built, build_family
from serving.drafts import Draft
from serving.plans import RATIOS, Plan
from serving.progress import Tell, tell_nobody
from serving.records import check_name
from serving.sources import from_fused, from_merged
from serving.subsets import Subsets
from unified.cores import use_threads
from unified.errors import UnifiedError
from unified.fusing.rows import map_inputs
from unified.fusing.threads import threads_kept
from unified.variants.data import Samples, read_samples, task_data
from unified.variants.engine_training import EngineTraining
from unified.variants.parents import NUM_EXAMPLES, Parent, ParentKind, of_merged, of_module, read_parent

Systems = Literal["multi", "single", "both"]
TRAIN_EPOCHS = 10  #: MTLsys, section 4.2, before pruning and after


def build_variants(  # noqa: PLR0913 - all but three by name
    parent: nn.Module | MergedNetwork | str | Path,
    data: Any,
    out: str | Path,
    *,
    name: str | None = None,
    ratios: tuple[float, ...] | None = None,
    subsets: Subsets = "singles+all",
    systems: Systems | None = None,
    train_epochs: int | None = None,
    finetune_epochs: int = TRAIN_EPOCHS,
    weights: Mapping[str, float] | None = None,
    device: str = "auto",
    slots: int | str = "auto",
    threads: int | None = None,
    stacking: bool = True,
    trust: bool = False,
    progress: Tell = tell_nobody,
    **settings: Any,
) -> Building:
    """Make variants of a multi-task network, pruned to several degrees and for several subsets of its tasks, in a store.

    All networks of a stage train side by side as one batch of the engine: the parent (and, for the single-task system, a
    network for each task), then every pruned one.

    Args:
        parent: A module that gives ``{task: tensor}``, or a merged network; or a path to a ``.umodel``, a job's result, or what
            ``unified fuse`` or ``unified merge`` wrote. It is not changed.
        data: Samples with labels of every task: ``(inputs, {"task": labels})``, or such by ``"train"``, ``"validation"`` and
            ``"test"``; or a path to them.
        out: Folder of the store: new, or of variants of this family to add to.
        name: Of the family, as clients will write it; by default that of the path.
        ratios: Pruning ratios; by default 0, 0.1, …, 0.9, of a merged network none: its subsets as they are.
        subsets: ``"singles+all"``, ``"all"``, or tuples of tasks.
        systems: ``"multi"``: out of the network; ``"single"``: out of a network for each task that is trained alone, from
            where the parent begins; or ``"both"``. By default both if the parent is trained here, else multi.
        train_epochs: Before pruning; by default 10 for a module or ``.umodel``, else 0, which keeps the parent as it is.
        finetune_epochs: After pruning, of each variant.
        weights: Of the tasks' losses in their sum; by default one over the loss of the best constant answer.
        device: ``"auto"``, ``"cpu"`` or ``"cuda:0"``.
        slots: How many networks train at the same time, or ``"auto"``.
        threads: CPU threads of each; by default planned.
        stacking: Whether networks of one architecture may train as one, which rounds otherwise.
        trust: Accept a model file that runs code when it is loaded.
        progress: Called with events of :mod:`serving.progress`.
        **settings: See :class:`serving.plans.Plan`: ``criterion``, ``ratio_of``, ``prune_for``, ``round_to``,
            ``batch_size``, ``lr``, ``seed``.

    Returns:
        What is new in the store, and what could not be made.

    Raises:
        InvalidSubmission: With what is wrong with the model or the data.
        ServingError: If nothing can be made of it; the message says why.
        UnifiedError: If the network does not answer tasks by name, or does not take the data.
    """
    if name is not None:
        check_name(name, "a family's name")
    samples = read_samples(data, seed=settings.get("seed", 0))
    found = _parent(parent, samples, name, trust=trust)
    train, held_out = (task_data(rows, found.tasks, found.inputs) for rows in (samples.train, samples.held_out))
    if ratios is None and found.kind is not ParentKind.MERGED:
        ratios = RATIOS
    plan = None
    if ratios:
        epochs = train_epochs if train_epochs is not None else TRAIN_EPOCHS * (found.kind is ParentKind.NETWORK)
        plan = Plan(
            ratios=ratios,
            subsets=subsets,
            systems=systems or ("both" if epochs else "multi"),
            train_epochs=epochs,
            finetune_epochs=finetune_epochs,
            **settings,
        )
    with threads_kept():
        use_threads(1)  # the workers have the cores; what is done here is small
        built = build_family(
            out,
            found.module,
            train,
            name=name or found.name,
            plan=plan,
            as_it_is=_as_it_is(found, train.inputs[0][:1], subsets),
            validation=held_out,
            weights=weights,
            inputs=found.names,
            train=EngineTraining(slots=slots, threads=threads, device=device, stacking=stacking),
            tell=progress,
        )
    return Building(family=name or found.name, out=Path(out), built=built, notes=samples.notes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Building:
    """What was built.

    Attributes:
        family: Name of the family.
        out: The store.
        built: Its new variants, and what could not be made.
        notes: What was done to the data.
    """

    family: str
    out: Path
    built: Built
    notes: tuple[str, ...]


def _parent(parent: nn.Module | MergedNetwork | str | Path, samples: Samples, name: str | None, *, trust: bool) -> Parent:
    if isinstance(parent, str | Path):
        return read_parent(Path(parent), trust=trust)
    if name is None:
        raise UnifiedError("expected a name for the family of a module handed in from Python: give name='…'")
    if isinstance(parent, MergedNetwork):
        return of_merged(parent, name)
    return of_module(parent, map_inputs(samples.train.inputs, lambda tensor: tensor[:NUM_EXAMPLES]), name=name)


def _as_it_is(parent: Parent, example: Tensor, subsets: Subsets) -> Callable[[fx.GraphModule], Iterable[Draft]] | None:
    """Return what makes the variants of a finished network that are neither pruned nor trained further."""
    if parent.kind is ParentKind.FUSED:
        return lambda network: from_fused(network, parent.tasks, subsets)
    if parent.merged is not None:
        merged = parent.merged
        return lambda _: from_merged(merged, example, subsets)
    return None
