"""What a stored graph says, checked whole before anything is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch._ops import OpOverload

from serving.networks.compiling import Call, Recipe
from serving.networks.encoding import Reference, decode, references
from serving.networks.operators import DROPPING, resolve

#: Of the files; another is refused.
FORMAT = 1
_LARGEST_GRAPH = 32 * 2**20  # bytes
_MOST_CALLS = 100_000
_MOST_INPUTS = 100


def read_recipe(path: Path) -> Recipe:
    """Read what a stored graph says.

    Args:
        path: Of ``graph.json``.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is too large, or anything in it is not as it was written.
    """
    return _recipe(_read_json(path))


def _read_json(path: Path) -> Any:
    if path.stat().st_size > _LARGEST_GRAPH:
        raise ValueError(f"{path.name} has more than {_LARGEST_GRAPH} bytes")
    try:
        return json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _recipe(content: Any) -> Recipe:
    if not isinstance(content, dict) or content.keys() != {"format", "inputs", "nodes", "outputs"}:
        raise ValueError("the graph is no stored network")
    if content["format"] != FORMAT:
        raise ValueError(f"the graph has format {content['format']!r}, this version reads {FORMAT}")
    num_inputs, nodes, outputs = content["inputs"], content["nodes"], content["outputs"]
    if type(num_inputs) is not int or not 1 <= num_inputs <= _MOST_INPUTS:
        raise ValueError(f"expected 1 to {_MOST_INPUTS} inputs, got {num_inputs!r}")
    if not isinstance(nodes, list) or len(nodes) > _MOST_CALLS or not isinstance(outputs, dict) or not outputs:
        raise ValueError(f"expected at most {_MOST_CALLS} nodes, and outputs")
    calls = tuple(_call(node, index, num_inputs) for index, node in enumerate(nodes))
    answers = {task: decode(value) for task, value in outputs.items()}
    for value in answers.values():
        _check_reference(value, len(nodes), num_inputs)
    named = [value for call in calls for value in references([*call.args, *call.kwargs.values()])]
    tensors = tuple(dict.fromkeys(str(value.target) for value in [*named, *answers.values()] if value.kind == "tensor"))
    return Recipe(num_inputs=num_inputs, tensors=tensors, calls=calls, outputs=answers)


def _call(node: Any, index: int, num_inputs: int) -> Call:
    """Return a call that keeps its operator's schema and refers to what comes before it."""
    if not isinstance(node, dict) or not node.keys() <= {"op", "args", "kwargs"} or not isinstance(node.get("op"), str):
        raise ValueError(f"node {index} is no call of an operator")
    args, kwargs = decode(node.get("args", [])), node.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise ValueError(f"node {index}: expected a list and an object of arguments")  # noqa: TRY004  it is the file's
    kwargs = {name: decode(value) for name, value in kwargs.items()}
    for value in references([*args, *kwargs.values()]):
        _check_reference(value, index, num_inputs)
    function, overload = resolve(node["op"])
    if overload is not None:
        _check_arguments(f"node {index}: {node['op']}", overload, args, kwargs)
    elif kwargs:
        raise ValueError(f"node {index}: {node['op']} takes no arguments by name")
    return Call(function=function, args=args, kwargs=kwargs)


def _check_arguments(where: str, overload: OpOverload, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Refuse arguments that the operator's schema does not have, and those by which it would train."""
    known = overload._schema.arguments
    if len(args) > len(known) or not kwargs.keys() <= {argument.name for argument in known}:
        raise ValueError(f"{where} does not take such arguments")
    given = {argument.name: value for argument, value in zip(known, args, strict=False)} | kwargs
    if given.get("running_mean") is not None and (given.get("training") or given.get("use_input_stats")):
        raise ValueError(f"{where} would train")
    if given.get(DROPPING.get(overload._schema.name.removeprefix("aten::"), "")):
        raise ValueError(f"{where} would drop at random")


def _check_reference(value: Any, num_nodes: int, num_inputs: int) -> None:
    if not isinstance(value, Reference):
        raise ValueError(f"expected a node, an input or a tensor, got {value!r}")  # noqa: TRY004  it is the file's
    limits = {"node": num_nodes, "input": num_inputs}
    if value.kind in limits and not 0 <= int(value.target) < limits[value.kind]:
        raise ValueError(f"{value.kind} {value.target} is not known there")
