"""Plain networks for some of the tasks: exactly the neurons that they need, in torch's own layers (PAM, sections 3.2 and 5.4).

A neuron that some of the tasks need finds all that it reads among those they need, so that rows and columns are cut out and
nothing is computed anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from fusion.merging.errors import MergeError
from fusion.merging.layers import MAKERS, Kind
from fusion.merging.lowering import (
    DENSE,
    GROUPED,
    Maker,
    attribute,
    emit,
    faster,
    module_of,
    plain,
    select,
    spread,
    take,
    weighted,
)
from fusion.merging.merged import Held, MergedNetwork, Step, called, edges, filled, switched
from fusion.merging.neurons import group_order

AUTO = "auto"
_REMEMBERED = 32  # measured choices; more subsets than that are rarely asked for again
_DROPOUTS = {"aten::dropout": nn.Dropout, "aten::alpha_dropout": nn.AlphaDropout}


def specialize(
    merged: MergedNetwork,
    tasks: Collection[str],
    *,
    lowering: str | Mapping[str, str] = AUTO,
    share: bool = False,
    example: Tensor | None = None,
    single: bool = False,
) -> fx.GraphModule:
    """Cut out a network for some tasks.

    Args:
        merged: It is not changed.
        tasks: One or more of its tasks.
        lowering: How layers are run whose neurons may not all read the same: ``grouped``, with the fewest operations (those of
            :func:`~fusion.merging.flops.flops`); ``dense``, with zeros between; ``auto``, each layer by measured time; or
            by name of the layer, as the result's ``meta["lowering"]`` says, which repeats an earlier choice.
        share: Whether weights are views of the merged network's where they can be, so that they take no memory and follow its
            training; in layers with zeros between, or with rows that do not follow one another, they are copies.
        example: ``(N, …)``, as the network will be given: only its batch size counts, and only for ``auto``; None is one
            sample.
        single: Whether to answer with the tensor itself in place of a dict; for one task only.

    Returns:
        A module in evaluation mode, of torch's layers and operators alone, which can be trained, exported and compiled. It
        gives ``{task: output}``, equal to the merged network's up to rounding. Choices that were measured are remembered
        for sizes and batch size, weights never.

    Raises:
        MergeError: If there is no task, an unknown one, an unknown lowering, or several tasks with ``single``.
    """
    bits = merged.bits(tasks)
    if single and bits.bit_count() != 1:
        raise MergeError(f"single=True answers one task; got {', '.join(tasks)}")
    _check_lowering(merged, lowering)
    builder = _Builder(merged, bits, share=share)
    choices = builder.choices(lowering, 1 if example is None else len(example))
    return builder.module(choices, single=single)


def _check_lowering(merged: MergedNetwork, lowering: str | Mapping[str, str]) -> None:
    if isinstance(lowering, str):
        if lowering not in (AUTO, GROUPED, DENSE):
            raise MergeError(f"expected lowering 'auto', 'grouped', 'dense' or one by layer; got {lowering!r}")
        return
    bad = sorted(
        f"{name!r}: {value!r}"
        for name, value in lowering.items()
        if value not in (GROUPED, DENSE) or all(step.name != name for step in merged.steps)
    )
    if bad:
        raise MergeError(f"expected 'grouped' or 'dense' by the name of a layer; got {', '.join(bad)}")


class _Builder:
    """Makes the graph of some tasks."""

    def __init__(self, merged: MergedNetwork, bits: int, *, share: bool) -> None:
        self.merged, self.bits, self.share = merged, bits, share
        self.device = next((value.device for value in merged.parameters()), torch.device("cpu"))
        self.order = {space: self._ordered(space) for space in merged.neurons}
        self.graph = fx.Graph()
        self.root: dict[str, nn.Module | Tensor] = {}
        self.nodes: dict[int, fx.Node] = {}

    def _ordered(self, space: int) -> Tensor:
        """Return the positions of the neurons that the tasks need, group by group where their order is ours to choose."""
        neurons = self.merged.neurons[space]
        live = neurons.of(self.bits)
        if space == 0 or self.merged.frozen.get(space, 0):
            return live
        num_tasks = len(self.merged.tasks)
        return torch.tensor(
            sorted(live.tolist(), key=lambda place: (group_order(int(neurons.group[place]), num_tasks), place)),
            dtype=torch.int64,
        )

    def _live(self, step: Step) -> Tensor:
        """Return the positions in its space of the neurons that a step's feature has, in order."""
        order = self.order[step.space]
        return order[(self.merged.neurons[step.space].group[order] & step.tasks & self.bits) != 0]

    def _groups(self, step: Step) -> Tensor:
        return self.merged.neurons[step.space].group[self._live(step)] & step.tasks

    def _rows(self, step: Step) -> Tensor:
        """Return the rows of a step's tensors."""
        return torch.searchsorted(self.merged.channels(step), self._live(step))

    def choices(self, lowering: str | Mapping[str, str], batch: int) -> dict[str, str]:
        """Return the lowering of each layer that there is a choice for."""
        masked = {step.name: position for position, step in self._makers() if not self._reads_all(step)}
        if not isinstance(lowering, str):
            return {name: lowering.get(name, GROUPED) for name in masked}
        if lowering != AUTO:
            return dict.fromkeys(masked, lowering)
        if self.share:
            return dict.fromkeys(masked, GROUPED)  # zeros between would be copies
        sizes = tuple((space, *neurons.sizes().items()) for space, neurons in self.merged.neurons.items())
        key = (self.bits, batch, self.device, sizes)
        remembered = self.merged.lowerings
        found = remembered.pop(key, None)
        if found is None:
            layers = [(self._maker(place), self._feature(place, batch)) for place in masked.values()]
            found = dict(zip(masked, faster(layers), strict=True))
        remembered[key] = found
        if len(remembered) > _REMEMBERED:
            del remembered[next(iter(remembered))]
        return dict(found)

    def _makers(self) -> list[tuple[int, Step]]:
        steps = enumerate(self.merged.steps)
        return [(position, step) for position, step in steps if step.kind in MAKERS and step.tasks & self.bits]

    def _reads_all(self, step: Step) -> bool:
        mask = edges(self._groups(step), self._groups(self.merged.steps[step.inputs[0]]))
        return bool((mask == mask[:1]).all())

    def _feature(self, position: int, batch: int) -> Tensor:
        """Return a feature of the size that a layer reads."""
        step = self.merged.steps[position]
        source = self.merged.steps[step.inputs[0]]
        width, weight = len(self._live(source)), self.merged.part(position).weight
        assert weight is not None
        shape = (width * source.positions,) if step.kind is Kind.LINEAR else (width, *source.shape)
        return torch.ones((batch, *shape), dtype=weight.dtype, device=weight.device)

    def _maker(self, position: int) -> Maker:
        step = self.merged.steps[position]
        source = self.merged.steps[step.inputs[0]]
        return Maker(
            step=step,
            part=self.merged.part(position),
            rows=self._rows(step),
            columns=torch.searchsorted(self.merged.channels(source), self._live(source)),
            row_groups=self._groups(step),
            column_groups=self._groups(source),
            positions=source.positions if step.kind is Kind.LINEAR else 1,
            share=self.share,
        )

    def module(self, choices: Mapping[str, str], *, single: bool) -> fx.GraphModule:
        """Return the finished module."""
        for position, step in enumerate(self.merged.steps):
            if step.tasks & self.bits:
                self.nodes[position] = self._node(position, step, choices)
        outputs = {
            task: self.nodes[self.merged.outputs[task]]
            for number, task in enumerate(self.merged.tasks)
            if self.bits >> number & 1
        }
        self.graph.output(next(iter(outputs.values())) if single else outputs)
        module = module_of(self.root, self.graph, self.device)
        module.meta["lowering"] = dict(choices)
        return module

    def _node(self, position: int, step: Step, choices: Mapping[str, str]) -> fx.Node:
        if step.kind is Kind.INPUT:
            return self.graph.placeholder("input")
        if step.kind in MAKERS:
            lowering = choices.get(step.name, GROUPED)
            return emit(self.graph, self.root, self._maker(position), self.nodes[step.inputs[0]], lowering)
        given = [self._fitted(step, source, number) for number, source in enumerate(step.inputs)]
        if step.kind in (Kind.NORM, Kind.DEPTHWISE):
            return self._module(step, self._norm(position) if step.kind is Kind.NORM else self._depthwise(position), given)
        if step.kind is Kind.FLATTEN:
            return self.graph.call_function(torch.flatten, (given[0], 1))
        operator, keywords = called(step)
        dropout = _DROPOUTS.get(operator._schema.name) if isinstance(operator, OpOverload) else None
        if dropout is not None and len(step.args) == 3:
            return self._module(step, dropout(step.args[1]), given)
        args = switched(step, filled(step.args, given, self._constant), training=False)
        return self.graph.call_function(operator, args, keywords)

    def _module(self, step: Step, module: nn.Module, given: list[fx.Node]) -> fx.Node:
        name = attribute(step.name)
        self.root[name] = module
        return self.graph.call_module(name, (given[0],))

    def _constant(self, held: Held) -> fx.Node:
        name = f"constants.{held.name}"
        if name not in self.root:
            value = getattr(self.merged.constants, held.name)
            kept = value.detach() if self.share else value.detach().clone()
            is_parameter = isinstance(value, nn.Parameter)
            self.root[name] = nn.Parameter(kept, requires_grad=value.requires_grad) if is_parameter else kept
        return self.graph.get_attr(name)

    def _fitted(self, step: Step, source: int, number: int) -> fx.Node:
        """Return a feature with the neurons of ``step`` alone."""
        given, other = self.nodes[source], self.merged.steps[source]
        theirs = self._live(other)
        mine = ((self.merged.neurons[other.space].group[theirs] & step.tasks & self.bits) != 0).nonzero().flatten()
        index = spread(mine, other.positions) if other.is_flat else mine
        width = len(theirs) * other.positions if other.is_flat else len(theirs)
        return select(self.graph, self.root, f"{attribute(step.name)}_input{number}", given, index, width)

    def _norm(self, position: int) -> nn.Module:
        step, part = self.merged.steps[position], self.merged.part(position)
        momentum, eps = step.args
        rows = self._rows(step)
        kind = nn.BatchNorm2d if len(step.shape) == 2 else nn.BatchNorm1d
        module = kind(len(rows), eps, momentum, affine=part.weight is not None, device="meta")
        weight, bias = (None if value is None else take(value.detach(), rows, 0) for value in (part.weight, part.bias))
        for name, value in (("running_mean", part.running_mean), ("running_var", part.running_var)):
            assert value is not None
            kept = take(value, rows, 0)
            setattr(module, name, kept if self.share else kept.clone())
        module.num_batches_tracked = torch.zeros((), dtype=torch.int64)
        return weighted(module, part, weight, bias, share=self.share)

    def _depthwise(self, position: int) -> nn.Module:
        step, part = self.merged.steps[position], self.merged.part(position)
        rows = self._rows(step)
        assert part.weight is not None
        weight = take(part.weight.detach(), rows, 0)
        bias = None if part.bias is None else take(part.bias.detach(), rows, 0)
        return weighted(plain(step, weight, bias), part, weight, bias, share=self.share)
