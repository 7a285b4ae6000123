"""Which rule computes an operator for all members of a stack, and what becomes of one that has no rule.

In this order: a rule of its own; an elementwise operator runs once over all members' values; a function that PyTorch wrote in
Python (``F.multi_head_attention_forward``, …) runs its own body, whose operators come back here; anything else runs member by
member (:func:`each`), which is always right. :meth:`StackMode.explain` says which operators went that way and why.
"""

from __future__ import annotations

import contextlib
import functools
import types
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode

from fusion.stacking.choices import Chooser
from fusion.stacking.errors import NotStackableError, ValueDependentError
from fusion.stacking.member_random import MemberRandom
from fusion.stacking.stacked_tensor import StackedTensor, share_memory

Rule = Callable[["StackMode", Callable[..., Any], tuple, dict[str, Any]], Any]

NO_RULE = "member by member: no rule for it"
MEMBER_DRAWS = "member by member: each draws its own random numbers"
APART = "member by member: its input lies apart"

#: Python's spellings of operators.
_SPELLINGS = {
    "__add__": "add", "__radd__": "add", "__iadd__": "add_", "__sub__": "sub", "__rsub__": "rsub", "__isub__": "sub_",
    "__mul__": "mul", "__rmul__": "mul", "__imul__": "mul_", "__truediv__": "div", "__rtruediv__": "rdiv", "__rdiv__": "rdiv",
    "__div__": "div", "__itruediv__": "div_", "__idiv__": "div_", "__neg__": "neg", "__pos__": "positive", "__abs__": "abs",
    "__invert__": "bitwise_not", "__and__": "bitwise_and", "__or__": "bitwise_or", "__xor__": "bitwise_xor",
    "__rand__": "bitwise_and", "__ror__": "bitwise_or", "__rxor__": "bitwise_xor",
    "__eq__": "eq", "__ne__": "ne", "__lt__": "lt", "__le__": "le", "__gt__": "gt", "__ge__": "ge",
    "__mod__": "remainder", "__rmod__": "remainder", "__pow__": "pow", "__rpow__": "rpow", "__ipow__": "pow_",
    "__floordiv__": "floor_divide", "__rfloordiv__": "floor_divide", "__matmul__": "matmul", "__rmatmul__": "rmatmul",
    "__lshift__": "bitwise_left_shift", "__rshift__": "bitwise_right_shift",
}  # fmt: skip


_GUARDS = frozenset({"has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"})


class StackMode(TorchFunctionMode):
    """While it is entered, operators on stacked tensors compute all members' results.

    Args:
        num_members: How many members there are.
        rules: Rules by the operator's name.
        random: Each member's own random state.
        choices: Which variant of an operator is fastest for which shape.
    """

    def __init__(self, num_members: int, *, rules: Mapping[str, Rule], random: MemberRandom, choices: Chooser) -> None:
        super().__init__()
        self.num_members = num_members
        self.random = random
        self.choices = choices
        self.asked_values = False  #: a value was read from a tensor; it was the same for all members
        self.drew = False  #: random numbers were drawn
        self.ways: Counter[tuple[str, str]] = Counter()  #: how often which operator went which way
        self._rules = rules
        self._resolved: dict[Any, Rule] = {}
        self._depth = 0
        self._made: dict[int, weakref.ref[Tensor]] = {}  # plain tensors made in this run
        self._own: dict[int, tuple[Tensor, StackedTensor]] = {}  # those into which members' values were written
        self._running: set[Any] = set()  # Python functions whose bodies are being run

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute one operator."""
        kwargs = kwargs or {}
        if self._own:
            args, kwargs = self._with_own(args), self._with_own(kwargs)
        if not holds_stacked(args) and not (kwargs and holds_stacked(kwargs.values())):
            if draws(func) and not _has_generator(kwargs):
                return self.each(func, self._writable(func, args), kwargs, way=MEMBER_DRAWS)
            return self._noted(func(*args, **kwargs))
        if kwargs.get("out") is not None:
            return self._given_out(func, args, kwargs)
        args = self._writable(func, args)
        rule = self._resolved.get(func)
        if rule is None:
            rule = self._resolved[func] = self._rule_of(func)
        return rule(self, func, args, kwargs)

    def __enter__(self) -> StackMode:
        """Begin a run, or go on with it."""
        self._depth += 1
        return super().__enter__()

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        """End a run; what was kept for it goes."""
        super().__exit__(exc_type, exc_val, exc_tb)
        self._depth -= 1
        if not self._depth:
            self._own.clear()
            self._made.clear()

    def own(self, value: Any) -> Any:
        """Return what stands for a plain tensor into which members' values were written; others as they are."""
        found = self._own.get(id(value))
        return value if found is None else found[1]

    def made_own(self, target: Tensor, func: Callable[..., Any]) -> StackedTensor:
        """Give each member a plain tensor of its own: it is about to be written into. From now on these stand for it.

        Raises:
            NotStackableError: If it is older than this run, or others see its memory.
        """
        made = self._made.get(id(target))
        is_alone = target._base is None and torch._C._storage_Use_Count(target.untyped_storage()._cdata) <= 2
        if made is None or made() is not target or not is_alone:
            raise NotStackableError(f"{name_of(func)} writes members' values into a tensor that all members share")
        rows = StackedTensor.of(target.unsqueeze(0).repeat(self.num_members, *[1] * target.dim()))
        self._own[id(target)] = (target, rows)
        return rows

    def _given_out(self, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Compute what is to be written into ``out``, and write it."""
        out = kwargs["out"]
        if type(out) is not StackedTensor:
            raise NotStackableError(f"{name_of(func)} writes members' values into out=, which all members share")
        result = self.__torch_function__(func, (), args, {key: value for key, value in kwargs.items() if key != "out"})
        return self.__torch_function__(Tensor.copy_, (), (out, result))

    def _writable(self, func: Callable[..., Any], args: tuple) -> tuple:
        if args and type(args[0]) is not StackedTensor and isinstance(args[0], Tensor) and _writes(func):
            return (self.made_own(args[0], func), *args[1:])
        return args

    def _with_own(self, values: Any) -> Any:
        if type(values) in (tuple, list):
            return type(values)(self._with_own(value) for value in values)
        if isinstance(values, dict):
            return {key: self._with_own(value) for key, value in values.items()}
        return self.own(values)

    def _noted(self, result: Any) -> Any:
        """Keep in mind that a plain tensor was made in this run."""
        if type(result) is Tensor:
            self._made[id(result)] = weakref.ref(result)
        return result

    def each(self, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any], *, way: str = NO_RULE) -> Any:
        """Run an operator member by member, each with its own random state.

        Raises:
            ValueDependentError: If what it gives differs in shape, or as a plain value, between the members.
        """
        self.ways[name_of(func), way] += 1
        self.drew |= way == MEMBER_DRAWS
        may_draw = way in {NO_RULE, MEMBER_DRAWS}
        target = args[0] if args and _writes(func) else None
        if may_draw:
            _relay(args, kwargs)
        results = []
        for index in range(self.num_members):
            own_args, own_kwargs = _part(args, index), _part(kwargs, index)
            if isinstance(target, StackedTensor) and not target.is_split:
                own_args = (target.merged().select(0, index), *own_args[1:])
            with self.random.of(index) if may_draw else contextlib.nullcontext():
                results.append(func(*own_args, **own_kwargs))
        if isinstance(target, StackedTensor):
            return target.become_parts(target.parts()) if target.is_split else target.become(target.merged())
        joined = _joined(results, func)
        mark_aliases(joined, (*args, *kwargs.values()))
        return joined

    def explain(self) -> list[tuple[str, str, int]]:
        """Return (operator, way, how often) of what did not run once for all members, most frequent first."""
        return [(name, way, count) for (name, way), count in self.ways.most_common()]

    def run_body(self, func: types.FunctionType, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run the body of one of PyTorch's Python functions; the operators in it come back to the rules."""
        if func in self._running:  # a helper of its own has asked again whether an argument overrides it
            return self.each(func, args, kwargs)
        self._running.add(func)
        try:
            with self:
                return unguarded(func)(*args, **kwargs)
        finally:
            self._running.discard(func)

    def _rule_of(self, func: Callable[..., Any]) -> Rule:
        name = name_of(func)
        if name in self._rules:
            return self._rules[name]
        if is_pointwise(name):
            return self._rules["pointwise"]
        if draws(func):
            return lambda mode, func, args, kwargs: mode.each(func, args, kwargs, way=MEMBER_DRAWS)
        if isinstance(func, types.FunctionType) and not _GUARDS.isdisjoint(func.__globals__):
            return lambda mode, func, args, kwargs: mode.run_body(func, args, kwargs)
        return StackMode.each


@functools.lru_cache(maxsize=4096)
def name_of(func: Callable[..., Any]) -> str:
    """Return the operator's ATen name, ``"get shape"`` for reading an attribute."""
    if isinstance(func, OpOverload):
        return func._schema.name.rpartition("::")[2]
    name = getattr(func, "__name__", "") or type(func).__name__
    if name == "__get__":
        return f"get {func.__self__.__name__}"  # type: ignore[attr-defined]  # a getset descriptor's
    return _SPELLINGS.get(name, name)


@functools.lru_cache(maxsize=4096)
def is_pointwise(name: str) -> bool:
    """Whether each element of the result depends on the elements at its own place alone."""
    return torch.Tag.pointwise in _tags(name) and torch.Tag.nondeterministic_seeded not in _tags(name)


@functools.lru_cache(maxsize=4096)
def draws(func: Callable[..., Any]) -> bool:
    """Whether an operator draws random numbers."""
    return torch.Tag.nondeterministic_seeded in _tags(name_of(func))


def _tags(name: str) -> set[torch.Tag]:
    for spelled in (name, name.removesuffix("_")):
        packet = getattr(torch.ops.aten, spelled, None) if spelled.isidentifier() else None
        if packet is not None and hasattr(packet, "overloads"):
            return {tag for overload in packet.overloads() for tag in getattr(packet, overload).tags}
    return set()


@functools.lru_cache(maxsize=512)
def unguarded(func: types.FunctionType) -> types.FunctionType:
    """Return one of PyTorch's Python functions without its question whether an argument overrides it: the answer is known."""

    def no(*_: object) -> bool:
        return False

    body = types.FunctionType(
        func.__code__, func.__globals__ | dict.fromkeys(_GUARDS, no), func.__name__, func.__defaults__, func.__closure__
    )
    body.__kwdefaults__ = func.__kwdefaults__
    return body


def holds_stacked(values: Iterable[Any]) -> bool:
    """Whether a stacked tensor is among some arguments, or in their tuples and lists."""
    for value in values:
        kind = type(value)
        if kind is StackedTensor or ((kind is tuple or kind is list) and holds_stacked(value)):
            return True
    return False


def _has_generator(kwargs: dict[str, Any]) -> bool:
    return kwargs.get("generator") is not None


def _part(value: Any, index: int) -> Any:
    """Return member ``index``'s part of an argument."""
    if isinstance(value, StackedTensor):
        return value.parts()[index]
    if type(value) in (tuple, list):
        return type(value)(_part(item, index) for item in value)
    if isinstance(value, dict):
        return {key: _part(item, index) for key, item in value.items()}
    return value


def mark_aliases(results: Any, sources: Iterable[Any]) -> None:
    """Note which results lie in the memory of what they were made of, and that this is seen through others now."""
    made = [results] if isinstance(results, StackedTensor) else results if isinstance(results, tuple | list) else []
    for source in sources:
        if type(source) is not StackedTensor:
            continue
        for result in made:
            if (
                type(result) is StackedTensor
                and result is not source
                and share_memory(result.any_values(), source.any_values())
            ):
                result.is_aliased = source.is_aliased = True


def _relay(args: tuple, kwargs: dict[str, Any]) -> None:
    """Let members' values lie as they would alone: random numbers are filled in in the order of memory."""
    for value in (*args, *kwargs.values()):
        if type(value) is StackedTensor:
            value.close_up()


def _writes(func: Callable[..., Any]) -> bool:
    name = name_of(func)
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _joined(results: list[Any], func: Callable[..., Any]) -> Any:
    """Make one result of the members'."""
    first = results[0]
    if isinstance(first, Tensor):
        if any(other.shape != first.shape or other.dtype != first.dtype for other in results):
            raise ValueDependentError(f"{name_of(func)} gives results of other shapes for other members")
        return StackedTensor.of_parts(results)
    if isinstance(first, tuple | list):
        items = [_joined([result[index] for result in results], func) for index in range(len(first))]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)  # namedtuple; torch's own; list
    if isinstance(first, dict):
        return {key: _joined([result[key] for result in results], func) for key in first}
    if any(other != first for other in results):
        raise ValueDependentError(f"{name_of(func)} gives {first!r} for one member and something else for another")
    return first
