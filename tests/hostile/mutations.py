"""Change a good archive at random, at any level: its bytes, its zip, its JSON, its graphs, its records, its values."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile.archives import EVAL, MANIFEST, TRAIN, Parts, walk
from unified.submission.operators import Argument, resolve, reviewed
from unified.submission.umodel_format import DTYPES, MEMORY_FORMATS

_INTS = (0, 1, 2, 3, 4, -1, -2, 7, 255, 1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1, -(1 << 63), 1 << 63, 10**30)
_FLOATS = (0.0, 1.0, -1.0, 0.5, 1e-30, 1e300)
_OPERATORS = ("aten.empty.memory_format", "aten.set_.source_Tensor", "aten.relu_.default", "os.system", "aten.nonzero.default")
_TEXTS = ("", "x", "forward", "__class__", "../../etc/passwd", "none", "a\x1b[2J", "mean", "ij,jk->ik", "\ud800", "x" * 2000)
_TEXTS += ("one.weight", "float32", "aten.relu.default", "py.mul", *_OPERATORS)
_TOKENS = (
    b"null",
    b"true",
    b"-1",
    b"9" * 40,
    b"1e999",
    b"NaN",
    b"[]",
    b"{}",
    b'"\\u0000"',
    b"[[[[",
    b'{"node":7}',
    b"",
    b",",
    b"0.5",
)
_TOKEN = re.compile(rb'"[^"]*"|-?[0-9.]+|true|false|null|[\[\]{},:]')


def mutated(good: Parts, seed: str, path: Path) -> tuple[str, bool]:
    """Write a mutant of ``good`` to ``path``; return the level it was changed at, and whether its hashes were mended."""
    draw = random.Random(seed)
    level = draw.choice(list(_LEVELS))
    parts = good.copy()
    mend = draw.random() < 0.5
    if level in {"bytes", "zip"}:
        content = bytearray(parts.write(path).read_bytes())
        (_bytes if level == "bytes" else _zip)(content, draw)
        path.write_bytes(content)
        return level, False
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        _LEVELS[level](parts, draw)
    try:
        parts.write(path, mend=mend)
    except (TypeError, ValueError, AttributeError):  # not even JSON any more: damage its bytes instead
        content = bytearray(good.write(path).read_bytes())
        _bytes(content, draw)
        path.write_bytes(content)
        return "bytes", False
    return level, mend


def _bytes(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 2, 8))):
        place = draw.randrange(len(content))
        how = draw.randrange(5)
        if how == 0:
            content[place] ^= 1 << draw.randrange(8)
        elif how == 1:
            content[place] = draw.choice((0, 255, draw.randrange(256)))
        elif how == 2:
            del content[place : place + draw.choice((1, 4, 100))]
        elif how == 3:
            content[place:place] = draw.randbytes(draw.choice((1, 4, 100)))
        else:
            content[place : place + 8] = content[(other := draw.randrange(len(content))) : other + 8]


def _zip(content: bytearray, draw: random.Random) -> None:
    """Overwrite a field of a local header, of the directory or of its end."""
    heads = [match.start() for match in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06)", bytes(content))]
    place = draw.choice(heads) + draw.randrange(46)
    size = draw.choice((1, 2, 4))
    value = draw.choice((0, 1, 8, 0xFFFF, 0xFFFFFFFF, draw.randrange(1 << 32), len(content), draw.choice(heads)))
    content[place : place + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def _token(parts: Parts, draw: random.Random) -> None:
    part = draw.choice((MANIFEST, TRAIN, EVAL))
    text = parts.raw.get(part) or json.dumps({MANIFEST: parts.manifest, TRAIN: parts.train, EVAL: parts.eval}[part]).encode()
    match = draw.choice(list(_TOKEN.finditer(text)) or [re.compile(b"").match(text)])
    new = draw.choice((*_TOKENS, draw.choice(_TOKEN.findall(text) or [b""])))
    parts.raw[part] = text[: match.start()] + new + text[match.end() :]


def _value(parts: Parts, draw: random.Random) -> None:
    """Replace a value anywhere in a record by any other."""
    holder, key, value = draw.choice(list(walk(draw.choice((parts.manifest, parts.train, parts.eval, parts.header)))))
    how = draw.randrange(4)
    if how == 0 and isinstance(holder, list):
        del holder[key]
    elif how == 1 and isinstance(holder, list):
        holder.insert(key, json.loads(json.dumps(value)))
    elif how == 2 and isinstance(holder, dict):
        holder[draw.choice(_TEXTS)] = holder.pop(key)
    else:
        holder[key] = _anything(draw)


def _record(parts: Parts, draw: random.Random) -> None:
    """Change a field of a tensor's or an input's record, or of the header's entry, to something near it."""
    record = draw.choice((*parts.manifest["tensors"], *parts.manifest["inputs"], *parts.header.values()))
    key = draw.choice(list(record))
    other = draw.choice((*parts.manifest["tensors"], *parts.header.values()))
    near = [
        other.get(key, 1),
        draw.choice(_TEXTS),
        draw.choice(_INTS),
        None,
        not record[key],
        [draw.choice(_INTS)] * draw.randrange(4),
    ]
    record[key] = draw.choice(near)


def _name(parts: Parts, draw: random.Random) -> None:
    tensors = parts.manifest["tensors"]
    parts.rename(
        draw.choice(tensors)["name"],
        draw.choice((*_TEXTS, "one", "a.b.c", "norm.weight", "one.weight.x", "_umodel", "structure")),
    )


def _values(parts: Parts, draw: random.Random) -> None:
    place = draw.randrange(len(parts.values))
    parts.values[place : place + 4] = draw.choice((bytes(4), b"\x00\x00\xc0\x7f", draw.randbytes(4)))


def _node(parts: Parts, draw: random.Random) -> None:
    """Change the order, the operator or an argument of a node, or what the graph gives."""
    graph = draw.choice((parts.train, parts.eval))
    nodes = graph["nodes"]
    index = draw.randrange(len(nodes))
    how = draw.randrange(6)
    if how == 0:
        nodes[index], nodes[0] = nodes[0], nodes[index]
    elif how == 1:
        nodes[index]["op"] = draw.choice((draw.choice(list(reviewed())), draw.choice(_OPERATORS)))
    elif how == 2 and nodes[index]["args"]:
        nodes[index]["args"][draw.randrange(len(nodes[index]["args"]))] = _anything(draw)
    elif how == 3:
        nodes[index].setdefault("kwargs", {})[draw.choice(("dim", "dtype", "training", "input", "x"))] = _anything(draw)
    elif how == 4:
        graph["output"] = {draw.choice(("tuple", "list", "node", "dict")): [_anything(draw), {"node": index}]}
    else:
        graph["writes"] = [[draw.choice(("norm.running_mean", "one.weight", "x")), _reference(draw, index)]]


def _call(parts: Parts, draw: random.Random) -> None:
    """Replace a node by a well-formed call of any allowed operator, with hostile values."""
    nodes = draw.choice((parts.train, parts.eval))["nodes"]
    index = draw.randrange(len(nodes))
    operator = resolve(draw.choice(list(reviewed())))
    args = [_argument(a, draw, index) for a in operator.arguments if not a.keyword_only and (a.required or draw.random() < 0.5)]
    nodes[index] = {"op": operator.name, "args": args}


def _argument(argument: Argument, draw: random.Random, index: int) -> Any:
    plain = {
        "Tensor": lambda: _reference(draw, index),
        "int": lambda: draw.choice(_INTS[:12]) if draw.random() < 0.4 else draw.randrange(-1, 4),
        "float": lambda: draw.choice((*_FLOATS, {"float": "nan"})),
        "number": lambda: draw.choice((1, 2, 0.5, -1, {"float": "inf"})),
        "bool": lambda: draw.random() < 0.5,
        "str": lambda: draw.choice(("none", "mean", "ij,jk->ik", "reflect", "floor")),
        "ScalarType": lambda: {"dtype": draw.choice(list(DTYPES))},
        "Layout": lambda: {"layout": "strided"},
        "Device": lambda: {"device": "model"},
        "MemoryFormat": lambda: {"memory_format": draw.choice(list(MEMORY_FORMATS))},
    }.get(argument.base, lambda: None)
    if argument.optional and draw.random() < 0.3:
        return None
    return [plain() for _ in range(draw.choice((1, 2, 2, 3)))] if argument.is_list else plain()


def _reference(draw: random.Random, index: int) -> Any:
    tensors = ("one.weight", "one.bias", "norm.running_mean", "norm.num_batches_tracked", "two.weight")
    choices = [{"input": "x"}, {"tensor": draw.choice(tensors)}, {"constant": 0}]
    return draw.choice([*choices, *([{"node": draw.randrange(index)}] * 3 if index else [])])


def _anything(draw: random.Random) -> Any:
    plain = (None, True, draw.choice(_INTS), draw.choice(_FLOATS), draw.choice(_TEXTS), [], {}, [draw.choice(_INTS)] * 3)
    nodes = ({"node": draw.choice((0, 1, 5, -1, 99))}, {"tuple": [{"node": 0}]}, [[[[[[[[[[1]]]]]]]]]])
    others = ({"tensor": draw.choice(_TEXTS)}, {"constant": 0}, {"dtype": "complex64"}, {"input": "x"}, {"device": "model"})
    return draw.choice((*plain, *nodes, *others, {"float": "nan"}))


_LEVELS: dict[str, Callable[..., None]] = {
    "bytes": _bytes,
    "zip": _zip,
    "tokens": _token,
    "values in records": _value,
    "records": _record,
    "names": _name,
    "weights": _values,
    "nodes": _node,
    "calls": _call,
}
