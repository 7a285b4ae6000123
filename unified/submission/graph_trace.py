"""Turn one mode of a model into a graph record: exported, made functional, and without what nobody reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from unified.errors import ExportError
from unified.submission.graph_export import Exported, Subject, export_mode
from unified.submission.graph_functional import Lowering
from unified.submission.graph_views import Memory, Scope, Value
from unified.submission.operators import COUNTER, STATISTICS, resolve
from unified.submission.output_structure import fill
from unified.submission.umodel_format import GraphRecord, NodeRecord

_PREFIX = "model."
_NO_CLONES: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A graph, and batch sizes at which PyTorch saw that it might branch: there it has to be compared with the model."""

    graph: GraphRecord
    doubtful_sizes: tuple[int, ...]


def trace(subject: Subject, mode: str, constants: list[Tensor]) -> Traced:
    """Trace one mode (``"train"`` or ``"eval"``); unnamed constants are appended to ``constants``.

    Raises:
        ExportError: If PyTorch cannot trace the model, or its graph cannot be stored, with the reason and the user's line.
    """
    exported = export_mode(subject, mode)
    graph = _lower(subject, exported, constants, _NO_CLONES)
    if graph.writes:
        # what a written buffer held before may be needed in the backward pass, after the buffer has been overwritten
        clones = frozenset(name for name, _ in graph.writes)
        graph = _lower(subject, exported, constants, clones)
    return Traced(graph=graph, doubtful_sizes=exported.doubtful_sizes)


def _lower(subject: Subject, exported: Exported, constants: list[Tensor], clones: frozenset[str]) -> GraphRecord:
    program = exported.program
    lowering = Lowering()
    inputs, memories = _placeholders(subject, program, constants, clones, lowering)
    results = lowering.run(program.graph, inputs)
    kinds = {spec.kind for spec in program.graph_signature.output_specs}
    if not kinds <= {OutputKind.USER_OUTPUT}:
        raise ExportError(f"PyTorch exported outputs of unknown kinds: {kinds}")
    if lowering.refused:
        refused = "\n".join(f"{message}\n  {line}" for message, line in lowering.refused.items())
        raise ExportError(f"{type(subject.model).__name__} cannot be stored in a .umodel:\n{refused}")
    references = [lowering.read(result) for result in results]
    output = fill(exported.structure, references)
    if not references:
        raise ExportError("forward returns no tensor")
    writes = tuple((name, lowering.read(value)) for name, value in memories.items() if value.memory.version)
    return prune(GraphRecord(nodes=tuple(lowering.nodes), output=output, writes=writes))


def _placeholders(
    subject: Subject,
    program: ExportedProgram,
    constants: list[Tensor],
    clones: frozenset[str],
    lowering: Lowering,
) -> tuple[list[Value], dict[str, Value]]:
    """Return what each placeholder holds, and the buffers by name."""
    found: dict[str, Value] = {}
    values: list[Value] = []
    names = iter(subject.names)
    fakes = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    for spec, fake in zip(program.graph_signature.input_specs, fakes, strict=True):
        name = (spec.target or "").removeprefix(_PREFIX)
        name = subject.ties.get(name, name)
        if name in found:
            values.append(found[name])
            continue
        if spec.kind in {InputKind.PARAMETER, InputKind.BUFFER}:
            kind = "parameter" if spec.kind is InputKind.PARAMETER else "buffer"
            reference: dict[str, Any] = {"tensor": name}
            if name in clones:
                reference = lowering.emit("aten.clone.default", (reference,), {}, Scope())
            value = Value(reference=reference, memory=Memory(kind=kind, name=name), fake=fake)
            found[name] = value
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            # pyrefly: ignore[bad-index]  # a constant's input has the constant's name as target
            index = _intern(program.constants[spec.target], constants)
            value = Value(reference={"constant": index}, memory=Memory(kind="constant", name=name), fake=fake)
        elif spec.kind is InputKind.USER_INPUT:
            value = Value(reference={"input": next(names)}, memory=Memory(kind="input"), fake=fake)
        else:
            raise ExportError(f"the model uses {name!r}, of kind {spec.kind.name}, which a .umodel cannot hold")
        values.append(value)
    return values, {name: value for name, value in found.items() if value.memory.kind == "buffer"}


def _intern(tensor: Tensor, constants: list[Tensor]) -> int:
    """Return the index of a constant, adding it if no equal one is there."""
    tensor = tensor.detach()
    for index, other in enumerate(constants):
        if other.dtype == tensor.dtype and torch.equal(other, tensor):
            return index
    constants.append(tensor)
    return len(constants) - 1


def prune(graph: GraphRecord) -> GraphRecord:
    """Leave out nodes whose result nobody reads, unless they write to a buffer or draw random numbers."""
    alive: set[int] = set()

    def mark(value: Any) -> Any:
        alive.add(value["node"])
        return value

    _replace(graph.output, mark)
    _replace([value for _, value in graph.writes], mark)
    for index in reversed(range(len(graph.nodes))):
        node = graph.nodes[index]
        if index in alive or node.op == COUNTER or node.op in STATISTICS or resolve(node.op).draws:
            alive.add(index)
            _replace([list(node.args), node.kwargs], mark)
    places = {index: place for place, index in enumerate(sorted(alive))}

    def renumber(value: Any) -> Any:
        return {"node": places[value["node"]]}

    def renumbered(node: NodeRecord) -> NodeRecord:
        args = tuple(_replace(list(node.args), renumber))
        return dataclasses.replace(node, args=args, kwargs={k: _replace(v, renumber) for k, v in node.kwargs.items()})

    return GraphRecord(
        nodes=tuple(renumbered(graph.nodes[index]) for index in sorted(alive)),
        output=_replace(graph.output, renumber),
        writes=tuple((name, _replace(value, renumber)) for name, value in graph.writes),
    )


def _replace(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply ``change`` to every reference to a node in ``value``."""
    if isinstance(value, list):
        return [_replace(item, change) for item in value]
    if isinstance(value, dict):
        if "node" in value:
            return change(value)
        return {key: _replace(item, change) for key, item in value.items()}
    return value
