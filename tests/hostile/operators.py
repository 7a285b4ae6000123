"""Call every operator that a ``.umodel`` may name with hostile arguments, in child processes.

``python -m tests.hostile.operators --calls 300 --seed 0`` prints each operator that ended its process, did not return in time,
wrote to an argument, or returned memory that it had not filled: what it gives, or its gradients, then differs between two
calls between which the allocator was told to hand out memory filled with other bytes.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.hostile.children import in_children
from unified.submission.operators import COUNTER, STATISTICS, Argument, Operator, RefusedOperatorError, resolve

_MALLOPT = ctypes.CDLL(None).mallopt
_M_PERTURB = -6

_INTS = (0, 1, 2, 3, -1, -2, 7, 1 << 31, -(1 << 31), 1 << 33, 1 << 62, -(1 << 62), (1 << 63) - 1, -(1 << 63) + 1)
_FLOATS = (0.0, 1.0, -1.0, 0.5, 1e-30, 1e308, -1e308, float("inf"), float("nan"))
_TEXTS = ("", "none", "mean", "sum", "reflect", "replicate", "circular", "constant", "floor", "trunc", "tanh", "same", "valid")
_EQUATIONS = ("ij,jk->ik", "i,i", "...", "->", "ii", "ij->ji", "a,b,c,d,e->abcde")
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.int64, torch.int8, torch.bool, torch.complex64, torch.bfloat16)
_SHAPES = ((2, 3, 4, 4), (2, 3, 4), (2, 3), (3,), (), (0, 3), (1, 1), (2, 3, 4, 4, 4), (4, 4), (2, 0, 4))


def allowed() -> list[str]:
    """Return the names of all operators that a ``.umodel`` may name."""
    names = [name.removeprefix("aten::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]
    pairs = [name.partition(".") for name in names]
    found = []
    for name in sorted(f"aten.{base}.{overload or 'default'}" for base, _, overload in pairs):
        try:
            resolve(name)
        except RefusedOperatorError:
            continue
        if name != COUNTER:  # it is checked to add a plain integer to a buffer
            found.append(name)
    return found


def arguments(operator: Operator, draw: random.Random) -> dict[str, Any]:
    """Draw arguments: mostly mild ones, so that they pass an operator's own first checks, with some hostile ones among them."""
    fury = draw.choice((0.05, 0.2, 0.7))
    shape = draw.choice(_SHAPES)
    given = {}
    for argument in operator.arguments:
        if not argument.required and draw.random() < 0.4:
            continue
        given[argument.name] = _argument(argument, draw, fury, shape)
    return given


def _argument(argument: Argument, draw: random.Random, fury: float, shape: tuple[int, ...]) -> Any:
    if argument.optional and draw.random() < 0.3:
        return None
    if not argument.is_list:
        return _plain(argument.base, draw, fury, shape)
    length = draw.choice((0, 1, 2, 2, 2, 3, 4, 5, 6, 64)) if draw.random() < fury else draw.choice((1, 2, 2, 3, len(shape)))
    if draw.random() < 0.5:
        return [_plain(argument.base, draw, fury, shape)] * length
    return [_plain(argument.base, draw, fury, shape) for _ in range(length)]


def _plain(base: str, draw: random.Random, fury: float, shape: tuple[int, ...]) -> Any:
    wild = draw.random() < fury
    if base == "Tensor":
        return _tensor(draw, wild, shape)
    return {
        "int": lambda: draw.choice(_INTS) if wild else draw.choice((0, 1, 1, 2, -1, 3)),
        "float": lambda: draw.choice(_FLOATS) if wild else draw.choice((0.5, 1.0, 0.1)),
        "number": lambda: draw.choice((*_FLOATS, *_INTS, True)) if wild else draw.choice((0.5, 1, 2)),
        "bool": lambda: draw.random() < 0.5,
        "str": lambda: "a" * 200 if wild else draw.choice(_TEXTS + _EQUATIONS),
        "ScalarType": lambda: draw.choice(_DTYPES) if wild else torch.float32,
        "Layout": lambda: torch.strided,
        "Device": lambda: torch.device("cpu"),
        "MemoryFormat": lambda: draw.choice((torch.contiguous_format, torch.preserve_format, torch.channels_last)),
        "Generator": lambda: None,
        "tensors": lambda: (_tensor(draw, wild, shape),),
    }[base]()


def _tensor(draw: random.Random, wild: bool, shape: tuple[int, ...]) -> Tensor:
    if wild or draw.random() < 0.2:
        shape = draw.choice(_SHAPES)
    kind = draw.choice(("float", "float", "float", "index", "bad index", "other"))
    if kind == "index":
        return torch.randint(0, 2, shape)
    if kind == "bad index":
        return torch.full(shape, draw.choice((-1, 5, 1 << 31, 1 << 62, -(1 << 62))))
    if kind == "other":
        return torch.ones(shape).to(draw.choice(_DTYPES))
    tensor = torch.randn(shape)
    if draw.random() < 0.1:
        tensor = tensor * draw.choice((float("nan"), float("inf"), 1e38))
    if draw.random() < 0.1:
        tensor = tensor[..., :1].expand(shape) if shape and shape[-1] else tensor
    if draw.random() < 0.2 and tensor.ndim > 1:
        tensor = tensor.transpose(0, 1)
    return tensor.requires_grad_(draw.random() < 0.7)


def call(name: str, index: int, seed: int, fill: int = 0) -> tuple[str, list[Tensor]]:
    """Call an operator once, forwards and backwards; return how it went, and all that it gave.

    Args:
        name: The operator.
        index: Which of its calls.
        seed: Of all random numbers.
        fill: What the allocator fills memory with before it hands it out.
    """
    operator = resolve(name)
    draw = random.Random(f"{seed} {name} {index}")
    torch.manual_seed(index)
    given = arguments(operator, draw)
    tensors = [v for value in given.values() for v in (value if isinstance(value, list) else [value]) if isinstance(v, Tensor)]
    before = [tensor.detach().clone() for tensor in tensors]
    _MALLOPT(_M_PERTURB, fill)
    try:
        results = _run(operator, given)
    except Exception as error:  # noqa: BLE001 - an exception is what a bad call should end in, whichever it is
        return type(error).__name__, []
    finally:
        _MALLOPT(_M_PERTURB, 0)
    written = name not in STATISTICS and not all(_same(tensor, old) for tensor, old in zip(tensors, before, strict=True))
    grads = [tensor.grad for tensor in tensors if tensor.grad is not None]
    return "writes to an argument" if written else "returned", results + grads


def _run(operator: Operator, given: dict[str, Any]) -> list[Tensor]:
    positional = [a.name for a in operator.arguments if not a.keyword_only]
    args = []
    while positional and positional[0] in given:
        args.append(given.pop(positional.pop(0)))
    result = operator.function(*args, **given)
    results = [result] if isinstance(result, Tensor) else list(result) if isinstance(result, (tuple, list)) else []
    results = [r for r in results if isinstance(r, Tensor) and r.numel() < 1 << 20]
    losses = [r.float().sum() for r in results if r.requires_grad]
    if losses:
        torch.autograd.backward(losses)
    return results


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values, NaN among them."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if 0 in one.shape:
        return True
    if one.is_sparse:
        one, other = one.to_dense(), other.to_dense()
    return torch.allclose(one.detach().to(torch.complex128), other.detach().to(torch.complex128), 0, 0, equal_nan=True)


def _all_same(ones: list[Tensor], others: list[Tensor]) -> bool:
    try:
        return len(ones) == len(others) and all(map(_same, ones, others))
    except (RuntimeError, NotImplementedError):
        return True  # what cannot even be read, such as a negated view of truth values, tells nothing


def findings(names: list[str], calls: int, seed: int) -> Iterator[tuple[str, int, str]]:
    """Yield (operator, index of the call, what it did) for each call that did what none may do."""
    work = [(name, index) for name in names for index in range(calls)]
    for (name, index), how in zip(work, in_children(len(work), lambda i: _judged(*work[i], seed)), strict=True):
        if how != "harmless":
            yield name, index, how


def _judged(name: str, index: int, seed: int) -> str:
    how, one = call(name, index, seed, 0x11)
    if how != "returned":
        return how if " " in how else "harmless"
    other = call(name, index, seed, 0xEE)[1]
    return "harmless" if _all_same(one, other) else "returns memory that it did not fill"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300, help="calls of each operator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of operators")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.only or allowed()
    found: Counter[tuple[str, str]] = Counter()
    for name, index, how in findings(names, options.calls, options.seed):
        found[name, how] += 1
        if found[name, how] == 1:
            print(f"{name} call {index}: {how}", flush=True)
    print(f"{len(names)} operators, {options.calls} calls each: {sum(found.values())} did what none may")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
