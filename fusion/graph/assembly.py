"""Put blocks together out of the cut graphs of a model and its own tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.export import ExportedProgram

from fusion.graph.block import Block, BlockInfo, register
from fusion.graph.coarsen import op_type
from fusion.graph.extract import extract, raw_needs
from fusion.graph.layout import feature_of
from fusion.graph.program import Program
from fusion.graph.verify import Plan


class Source:
    """The tensors of a model and all the names that it has for them."""

    def __init__(self, model: nn.Module | ExportedProgram) -> None:
        if isinstance(model, ExportedProgram):
            self.tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            keys = list(model.state_dict)
        else:
            parameters, buffers = (named(remove_duplicate=False) for named in (model.named_parameters, model.named_buffers))
            self.tensors = {**dict(parameters), **dict(buffers)}
            keys = list(model.state_dict())
        self.keys = [key for key in keys if key in self.tensors]
        self._tied: dict[int, list[str]] = {}
        for name, tensor in self.tensors.items():
            self._tied.setdefault(id(tensor), []).append(name)

    def name(self, name: str, path: str) -> str:
        """Return the name of a tensor that the module at ``path`` knows, of those that it has."""
        if name not in self.tensors:
            return name
        names = self._tied[id(self.tensors[name])]
        return next((found for found in names if found.rpartition(".")[0] == path), name)


def assemble(plans: tuple[Plan, Plan], names: Sequence[str], source: Source) -> list[Block]:
    """Return the blocks of a model.

    Args:
        plans: How the graphs for evaluation and for training were cut, at the same places.
        names: Names of the blocks.
        source: The model's tensors.
    """
    tensors = {**plans[0].analysis.captured.tensors, **plans[1].analysis.captured.tensors, **source.tensors}
    blocks: list[Block] = []
    for index, name in enumerate(names):
        found = [raw_needs(plan.analysis, plan.spans[index]) for plan in plans]
        needs = tuple(sorted(found[0] | found[1]))
        span = plans[0].spans[index]
        info = BlockInfo(
            index=index,
            name=name,
            op_type=op_type(span.nodes),
            needs=needs,
            input=feature_of(span.source),
            output=None if span.result is None else feature_of(span.result),
        )
        evaluation, training = (_program(plan, index, needs, source, name or str(index)) for plan in plans)
        blocks.append(Block(info, (evaluation, training), tensors, source.keys))
    return blocks


def leftovers(source: Source, blocks: Sequence[Block]) -> tuple[nn.Module, dict[str, str]]:
    """Return a module with what no block uses, and where each key of the model's state dict is found."""
    places: dict[int, str] = {}
    for index, block in enumerate(blocks):
        for name, tensor in block.state_dict(keep_vars=True).items():
            places.setdefault(id(tensor), f"blocks.{index}.{name}")
    spare = nn.Module()
    keys: dict[str, str] = {}
    for key in source.keys:
        tensor = source.tensors[key]
        if id(tensor) not in places:
            register(spare, key, tensor, is_persistent=True)
            places[id(tensor)] = f"spare.{key}"
        keys[key] = places[id(tensor)]
    return spare, keys


def _program(plan: Plan, index: int, needs: tuple[int, ...], source: Source, label: str) -> Program:
    span = plan.spans[index]
    captured = plan.analysis.captured
    graph = extract(plan.analysis, span, needs, source.name, label)
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    parts = {name: part for name, part in captured.parts.items() if name in used}
    return Program(graph, parts, captured.output if span.result is None else None)
