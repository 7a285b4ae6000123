"""The steps of a merged network as JSON, and back; a file can name the operators that are listed here and no other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch._ops import OpOverload

from fusion.merging.channelwise import ACTIVATIONS, FLATTENS, JOINS, POOLS
from fusion.merging.errors import MergeError
from fusion.merging.layers import MAKERS, Kind, Slot
from fusion.merging.merged import Held, Step, called
from fusion.merging.neurons import Neurons

_EACH = ACTIVATIONS | POOLS | JOINS | {"div", "pow", "mean"}
_PRIVATE = frozenset(
    {
        *("layer_norm", "group_norm", "instance_norm", "rms_norm", "softmax", "log_softmax", "prelu", "rsqrt", "sin", "cos"),
        *("matmul", "bmm", "mm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention", "conv1d", "conv_transpose2d"),
        *("transpose", "permute", "t", "unsqueeze", "unflatten", "expand", "cat", "stack", "select", "slice", "narrow"),
        *("index_select", "gather", "embedding", "sum", "amax", "amin", "cumsum", "pad", "constant_pad_nd", "pixel_shuffle"),
        *("avg_pool1d", "max_pool1d", "adaptive_avg_pool1d", "linalg_vector_norm", "where", "alias", "sym_size"),
    }
)
_OPERATORS: Mapping[Kind, frozenset[str]] = {
    Kind.CONV: frozenset({"conv2d"}),
    Kind.DEPTHWISE: frozenset({"conv2d"}),
    Kind.LINEAR: frozenset({"linear"}),
    Kind.NORM: frozenset({"batch_norm"}),
    Kind.EACH: _EACH,
    Kind.JOIN: JOINS,
    Kind.FLATTEN: FLATTENS,
    Kind.OPAQUE: _EACH | FLATTENS | _PRIVATE | {"conv2d", "linear", "batch_norm"},
}
_CONSTANTS: Mapping[str, object] = {
    str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype | torch.memory_format | torch.layout)
}
_NUM_INPUTS = dict.fromkeys(MAKERS | {Kind.NORM, Kind.DEPTHWISE, Kind.FLATTEN}, 1) | {Kind.INPUT: 0, Kind.JOIN: 2}


def require(condition: object, message: str) -> None:
    """Refuse a manifest that does not hold what it should."""
    if not condition:
        raise MergeError(f"not the manifest of a merged network, or damaged: {message}")


def step_to_json(step: Step) -> dict[str, Any]:
    """Return a step as JSON.

    Raises:
        MergeError: If its operator is none of those that a file can name.
    """
    name, keywords = _named(step)
    return {
        "name": step.name,
        "kind": step.kind.value,
        "inputs": list(step.inputs),
        "operator": name,
        "arguments": [_value_to_json(value, step.name) for value in step.args],
        "keywords": {key: _value_to_json(value, step.name) for key, value in keywords.items()},
        "space": step.space,
        "tasks": step.tasks,
        "shape": list(step.shape),
        "is_read": step.is_read,
    }


def steps_from_json(entries: Sequence[Mapping[str, Any]], neurons: Mapping[int, Neurons], num_tasks: int) -> tuple[Step, ...]:
    """Return the steps that JSON tells of, checked one against the other.

    Raises:
        MergeError: If they do not fit, or name an operator that they may not.
    """
    steps: list[Step] = []
    for entry in entries:
        step = _step(entry)
        _check_step(step, steps, neurons, num_tasks)
        steps.append(step)
    require(len({step.name for step in steps}) == len(steps), "names of steps that occur twice")
    return tuple(steps)


def integers(values: Any, low: int, high: int | None = None) -> list[int]:
    """Return a list of whole numbers, checked to be such, from ``low`` to below ``high``."""
    require(
        isinstance(values, list) and all(type(value) is int for value in values), f"expected whole numbers, got {values!r:.80}"
    )
    outside = [value for value in values if value < low or (high is not None and value >= high)]
    require(not outside, f"numbers outside of their range: {outside[:5]}")
    return values


def held_names(args: Any) -> set[str]:
    """Return the names of the tensors that arguments stand for."""
    if isinstance(args, Held):
        return {args.name}
    return set().union(*map(held_names, args)) if isinstance(args, list | tuple) else set()


def _named(step: Step) -> tuple[str | None, dict[str, Any]]:
    """Return the name of a step's operator, and what it is given by name alone."""
    if step.target is None:
        return None, {}
    operator, keywords = called(step)
    name = operator.name() if isinstance(operator, OpOverload) else getattr(operator, "__name__", str(operator))
    _operator(name, step.kind, step.name)
    return name, keywords


def _step(entry: Mapping[str, Any]) -> Step:
    kind, name, operator = Kind(entry["kind"]), entry["name"], entry["operator"]
    require(isinstance(name, str) and name, f"a step without a name: {name!r}")
    require((operator is None) == (kind is Kind.INPUT), f"step {name!r} has the operator {operator!r}")
    return Step(
        name=name,
        kind=kind,
        inputs=tuple(integers(entry["inputs"], 0)),
        target=None if operator is None else _bound(_operator(operator, kind, name), entry["keywords"]),
        args=tuple(_value_from_json(value, len(entry["inputs"])) for value in entry["arguments"]),
        space=entry["space"],
        tasks=entry["tasks"],
        shape=tuple(integers(entry["shape"], 0)),
        is_read=bool(entry["is_read"]),
    )


def _bound(operator: OpOverload, keywords: Any) -> Callable[..., Any]:
    require(isinstance(keywords, dict), f"expected arguments by name, got {keywords!r:.80}")
    known = {argument.name for argument in operator._schema.arguments}
    require(keywords.keys() <= known, f"{operator.name()} takes no {sorted(keywords.keys() - known)}")
    return partial(operator, **{key: _value_from_json(value, 0) for key, value in keywords.items()}) if keywords else operator


def _check_step(step: Step, before: Sequence[Step], neurons: Mapping[int, Neurons], num_tasks: int) -> None:
    place = f"step {step.name!r}"
    integers([step.tasks], 1, 1 << num_tasks)
    integers(list(step.inputs), 0, len(before))
    require((step.kind is Kind.INPUT) == (not before), f"{place}: the first step, and no other, is the input")
    require(step.space in neurons, f"{place} has no space {step.space!r}")
    require(len(step.inputs) == _NUM_INPUTS.get(step.kind, len(step.inputs)), f"{place} has {len(step.inputs)} inputs")
    missing = [before[source].name for source in step.inputs if step.tasks & ~before[source].tasks]
    require(not missing, f"{place} serves tasks that its inputs {missing} do not")
    moves = step.kind in MAKERS | {Kind.INPUT, Kind.OPAQUE}
    require(moves or all(before[source].space == step.space for source in step.inputs), f"{place} changes its space")
    require(step.kind is not Kind.NORM or len(step.args) == 2, f"{place} has {len(step.args)} arguments")


def _operator(name: Any, kind: Kind, step: str) -> OpOverload:
    """Return an operator by its name, ``aten::relu`` or ``aten::add.Tensor``."""
    namespace, _, rest = name.partition("::") if isinstance(name, str) else ("", "", "")
    base, _, overload = rest.partition(".")
    if namespace != "aten" or base not in _OPERATORS.get(kind, ()):
        raise MergeError(
            f"step {step!r}: a file of a merged network cannot name the operator {name!r} for a layer of kind {kind.value!r}; "
            "keep the network's program with specialize() and torch.export in its place"
        )
    found = getattr(getattr(torch.ops.aten, base), overload or "default", None)
    if not isinstance(found, OpOverload) or found._schema.is_mutable:
        raise MergeError(f"step {step!r}: this version of torch has no operator {name!r} without side effects")
    return found


def _value_to_json(value: Any, step: str) -> Any:
    if isinstance(value, list | tuple):
        return [_value_to_json(item, step) for item in value]
    if isinstance(value, Slot):
        return {"slot": value.index}
    if isinstance(value, Held):
        return {"held": value.name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, torch.device):
        return {"device": value.type}
    if str(value) in _CONSTANTS:
        return {"torch": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise MergeError(f"step {step!r}: a file of a merged network cannot hold the argument {value!r:.80}")


def _value_from_json(value: Any, num_inputs: int) -> Any:
    if isinstance(value, list):
        return [_value_from_json(item, num_inputs) for item in value]
    if not isinstance(value, dict):
        return value
    require(len(value) == 1, f"an argument of unknown form: {value!r:.80}")
    ((form, content),) = value.items()
    forms = {
        "slot": lambda: Slot(integers([content], 0, num_inputs)[0]),
        "held": lambda: Held(str(content)),
        "float": lambda: float(content),
        "device": lambda: torch.device(content),
        "torch": lambda: _CONSTANTS[content],
    }
    require(form in forms, f"an argument of unknown form: {value!r:.80}")
    return forms[form]()
