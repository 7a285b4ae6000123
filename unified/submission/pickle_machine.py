"""Read a pickle without unpickling it: what it would make is described, nothing is imported, called or allocated.

Only what ``torch.save`` writes of modules and of tensors is known; any other operation is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from unified.submission.refusal import RefusedModelError, refused

MAX_BYTES = 16 << 20  #: of a pickle without the tensors' data
MAX_OPERATIONS = 2_000_000
MAX_MARKS = 100
MAX_INT = 1 << 63

_WHERE = "data.pkl"
_REMEDY = "write it again with torch.save"


class Global(NamedTuple):
    """A class or function that the pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:200]


@dataclass(eq=False, slots=True)
class Made:
    """What a call would make: ``maker(*args)``, then ``state`` set on it and ``items`` put into it.

    Attributes:
        maker: The class or function.
        args: What it is called with.
        is_new: Whether the class makes an empty object (``__new__``), rather than being called.
        state: The object's attributes, None if none are set.
        items: (key, value) pairs put into it.
    """

    maker: Global
    args: tuple[Any, ...]
    is_new: bool
    state: Any = None
    items: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class StorageRef:
    """A storage outside the pickle, by what the pickle says of it."""

    args: tuple[Any, ...]


def describe_pickle(content: bytes) -> Any:
    """Return what a pickle would make: plain values, lists, tuples, dicts, and :class:`Made` for everything else.

    Raises:
        RefusedModelError: If it is malformed, too large, or does what ``torch.save`` does not.
    """
    if len(content) > MAX_BYTES:
        raise _malformed(f"at most {MAX_BYTES} bytes", f"{len(content)} bytes")
    machine = _Machine()
    try:
        end = _run(machine, content)
    except RefusedModelError:
        raise
    except Exception as error:  # whatever the standard library's parser meets, and an empty stack or memo
        raise _malformed("a whole pickle", f"{type(error).__name__}: {str(error)[:100]}") from error
    if end + 1 != len(content):
        raise _malformed("nothing behind its end", f"{len(content) - end - 1} bytes")
    return machine.result()


def _run(machine: _Machine, content: bytes) -> int:
    """Work off all operations and return where the last one stands."""
    position = -1
    for count, (operation, argument, where) in enumerate(pickletools.genops(content)):
        position = position if where is None else where
        if count >= MAX_OPERATIONS:
            raise _malformed(f"at most {MAX_OPERATIONS} operations", "more")
        if operation.name == "STOP":
            break
        act = _ACTS.get(operation.name)
        if act is None:
            raise _malformed("what torch.save writes", f"the operation {operation.name}")
        act(machine, argument)
    return position


def _malformed(expected: str, given: str) -> RefusedModelError:
    return refused("E-PICKLE", _WHERE, expected, given, _REMEDY)


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def result(self) -> Any:
        if len(self.stack) != 1 or self.marks:
            raise _malformed("one object", f"{len(self.stack)}")
        return self.stack[0]

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise _malformed("a whole pickle", "one that takes more from its stack than there is")
        return self.stack.pop()

    def mark(self) -> None:
        if len(self.marks) >= MAX_MARKS:
            raise _malformed(f"at most {MAX_MARKS} levels of nesting", "more")
        self.marks.append(len(self.stack))

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def top(self, *kinds: type) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise _malformed("a whole pickle", "one that takes more from its stack than there is")
        value = self.stack[-1]
        if not isinstance(value, kinds):
            raise _malformed(f"a {kinds[0].__name__}", f"a {type(value).__name__}")
        return value

    def push_int(self, value: int) -> None:
        if not -MAX_INT <= value < MAX_INT:
            raise _malformed("integers of at most 64 bits", "a longer one")
        self.stack.append(value)

    def push_tuple(self, size: int) -> None:
        values = [self.pop() for _ in range(size)]
        self.stack.append(tuple(reversed(values)))

    def recall(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def remember(self, index: int) -> None:
        self.memo[index] = self.top(object)

    def push_global(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise _malformed("the name of a class", "something else")
        self.stack.append(Global(module, name))

    def call(self, *, is_new: bool) -> None:
        args, maker = self.pop(), self.pop()
        if not isinstance(maker, Global) or not isinstance(args, tuple):
            raise _malformed("a call of a named class or function", f"a call of a {type(maker).__name__}")
        self.stack.append(Made(maker, args, is_new))

    def build(self) -> None:
        state = self.pop()
        made = self.top(Made)
        if made.state is not None:
            raise _malformed("the state of an object once", f"that of a {made.maker} twice")
        made.state = state

    def put_items(self, flat: list[Any]) -> None:
        if len(flat) % 2:
            raise _malformed("keys with values", "a key without one")
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        target = self.top(dict, Made)
        if isinstance(target, Made):
            target.items += pairs
            return
        for key, value in pairs:
            if not isinstance(key, str | int | float | None):  # not shown: written out, it may be of any length
                raise _malformed("plain keys, each once", f"a {type(key).__name__}")
            if key in target:
                raise _malformed("plain keys, each once", f"{str(key)[:80]!r} twice")
            target[key] = value


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _global(machine: _Machine, text: str) -> None:
    machine.push_global(*text.split(" ", 1))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push_global(module, name)


def _append(machine: _Machine, _: Any) -> None:
    value = machine.pop()
    machine.top(list).append(value)


def _appends(machine: _Machine, _: Any) -> None:
    values = machine.since_mark()
    machine.top(list).extend(values)


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.put_items([key, value])


def _persistent(machine: _Machine, _: Any) -> None:
    args = machine.pop()
    if not isinstance(args, tuple):
        raise _malformed("a reference to a storage", f"a {type(args).__name__}")
    machine.stack.append(StorageRef(args))


_ACTS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": lambda machine, _: machine.mark(),
    "NONE": lambda machine, _: _push(machine, None),
    "NEWTRUE": lambda machine, _: _push(machine, True),
    "NEWFALSE": lambda machine, _: _push(machine, False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), _Machine.push_int),
    **dict.fromkeys(("BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"), _push),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.remember),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "EMPTY_TUPLE": lambda machine, _: _push(machine, ()),
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push_tuple(1),
    "TUPLE2": lambda machine, _: machine.push_tuple(2),
    "TUPLE3": lambda machine, _: machine.push_tuple(3),
    "EMPTY_LIST": lambda machine, _: _push(machine, []),
    "APPEND": _append,
    "APPENDS": _appends,
    "EMPTY_DICT": lambda machine, _: _push(machine, {}),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: machine.put_items(machine.since_mark()),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": lambda machine, _: machine.call(is_new=False),
    "NEWOBJ": lambda machine, _: machine.call(is_new=True),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": _persistent,
}
