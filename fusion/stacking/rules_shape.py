"""Views and rearrangements: the members' dimension stays in front."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fusion.stacking.arguments import argument, shifted, spread
from fusion.stacking.dispatch import APART, Rule, StackMode, name_of
from fusion.stacking.rules_pointwise import aligned, must_be_written
from fusion.stacking.stacked_tensor import StackedTensor


def _view(mode: StackMode, source: StackedTensor, result: Tensor | tuple[Tensor, ...] | list[Tensor]) -> Any:
    """Wrap a view of ``source``, which from now on shares its memory with others."""
    source.is_aliased = True
    if not isinstance(result, Tensor):
        made = tuple(map(StackedTensor.of, result))
        for each in made:
            each.is_aliased = True
        return made
    view = StackedTensor.of(result)
    view.is_aliased = True
    return view


def _apart_or(rule: Callable[[StackMode, StackedTensor, tuple, dict[str, Any]], Any]) -> Rule:
    """Make a rule for values in one tensor; values that lie apart stay so, each viewed for itself."""

    def checked(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        source = args[0]
        if type(source) is not StackedTensor:
            return mode.each(func, args, kwargs)
        if source.is_split:
            return mode.each(func, args, kwargs, way=APART)
        source.close_up()
        return rule(mode, source, args, kwargs)

    return checked


def _reshape(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    if len(args) > 1 and isinstance(args[1], torch.dtype):
        return _view(mode, x, x.merged().view(args[1]))
    sizes = spread(args, kwargs, 1, "size", "shape")
    return _view(mode, x, x.merged().reshape(mode.num_members, *sizes))


def _like(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    return _view(mode, x, x.merged().reshape(mode.num_members, *args[1].shape))


def _flatten(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    start, end = argument(args, kwargs, 1, "start_dim", default=0), argument(args, kwargs, 2, "end_dim", default=-1)
    if x.dim() == 0:
        return _view(mode, x, x.merged().unsqueeze(1))
    return _view(mode, x, x.merged().flatten(shifted(start), shifted(end)))


def _unflatten(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    dim = argument(args, kwargs, 1, "dim")
    return _view(mode, x, x.merged().unflatten(shifted(dim), spread(args, kwargs, 2, "sizes")))


def _permute(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    dims = spread(args, kwargs, 1, "dims")
    return _view(mode, x, x.merged().permute(0, *(dim % x.dim() + 1 for dim in dims)))


def _reversed(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``.T`` and ``.t()``."""
    return _view(mode, x, x.merged().permute(0, *range(x.dim(), 0, -1)))


def _last_swapped(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    return _view(mode, x, x.merged().transpose(-1, -2))


def _two_dims(method: Callable[..., Tensor]) -> Rule:
    """``transpose``, ``movedim``: two dimensions, or two lists of them."""

    def rule(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
        one = argument(args, kwargs, 1, "dim0", "source", "axis0")
        other = argument(args, kwargs, 2, "dim1", "destination", "axis1")
        return _view(mode, x, method(x.merged(), shifted(one), shifted(other)))

    return _apart_or(rule)


def _unsqueeze(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    return _view(mode, x, x.merged().unsqueeze(shifted(argument(args, kwargs, 1, "dim"))))


def _squeeze(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    dim = argument(args, kwargs, 1, "dim", default=None)
    dims = tuple(range(x.dim())) if dim is None else tuple(dim) if isinstance(dim, tuple | list) else (dim,)
    return _view(mode, x, x.merged().squeeze(shifted(dims)))


def _expand(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    sizes = spread(args, kwargs, 1, "size")
    return _view(mode, x, aligned(x, len(sizes)).expand(mode.num_members, *sizes))


def _expand_as(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    sizes = args[1].shape
    return _view(mode, x, aligned(x, len(sizes)).expand(mode.num_members, *sizes))


def _repeat(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    times = spread(args, kwargs, 1, "repeats", "dims")
    times = (1,) * (x.dim() - len(times)) + times  # torch.tile may give fewer
    return StackedTensor.of(aligned(x, len(times)).repeat(1, *times))


def _select(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    dim, index = argument(args, kwargs, 1, "dim"), argument(args, kwargs, 2, "index")
    return _view(mode, x, x.merged().select(shifted(dim), index))


def _narrow(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    dim, start, length = (argument(args, kwargs, i + 1, name) for i, name in enumerate(("dim", "start", "length")))
    return _view(mode, x, x.merged().narrow(shifted(dim), start, length))


def _slice(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    dim = argument(args, kwargs, 1, "dim", default=0)
    rest = {name: argument(args, kwargs, i + 2, name, default=None) for i, name in enumerate(("start", "end"))}
    step = argument(args, kwargs, 4, "step", default=1)
    return _view(mode, x, torch.ops.aten.slice(x.merged(), shifted(dim), rest["start"], rest["end"], step))


def _split(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    sizes = argument(args, kwargs, 1, "split_size", "split_sizes", "split_size_or_sections")
    dim = argument(args, kwargs, 2, "dim", default=0)
    return _view(mode, x, x.merged().split(sizes, shifted(dim)))


def _chunk(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    chunks, dim = argument(args, kwargs, 1, "chunks"), argument(args, kwargs, 2, "dim", default=0)
    return _view(mode, x, x.merged().chunk(chunks, shifted(dim)))


def _unbind(mode: StackMode, x: StackedTensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    return _view(mode, x, x.merged().unbind(shifted(argument(args, kwargs, 1, "dim", default=0))))


def _iterate(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    return iter(RULES["unbind"](mode, torch.Tensor.unbind, args, kwargs))


def _joining(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """``cat`` and ``stack``, also of tensors that all members share."""
    tensors, dim = argument(args, kwargs, 0, "tensors"), argument(args, kwargs, 1, "dim", "axis", default=0)
    stacked = [each for each in tensors if type(each) is StackedTensor]
    if all(each.is_split for each in stacked):
        return mode.each(func, args, kwargs, way=APART)
    if any(each.shape == (0,) for each in tensors):  # PyTorch passes over them, whatever the others' dimensions
        tensors = [each for each in tensors if each.shape != (0,)]
    merged = [_spread_out(each, mode.num_members) for each in tensors]
    join = torch.stack if name_of(func) == "stack" else torch.cat
    return StackedTensor.of(join(merged, shifted(dim)))


def _spread_out(value: Tensor, num_members: int) -> Tensor:
    """Return all members' values; a shared tensor is everybody's."""
    return value.merged() if type(value) is StackedTensor else value.unsqueeze(0).expand(num_members, *value.shape)


def _get(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    x, index = args[0], _tuple(args[1])
    if type(x) is not StackedTensor:
        return _looked_up(mode, func, args, index)
    if x.is_split:
        return mode.each(func, args, kwargs, way=APART)
    if not _is_plain_index(index):
        return mode.each(func, args, kwargs)
    x.close_up()
    result = x.merged()[(slice(None), *index)]
    if any(isinstance(part, Tensor | list) for part in index):
        return StackedTensor.of(result)
    return _view(mode, x, result)


def _looked_up(mode: StackMode, func: Callable[..., Any], args: tuple, index: tuple) -> Any:
    """``table[numbers]``: a shared table at each member's own places."""
    if len(index) == 1 and type(index[0]) is StackedTensor and index[0].dtype is not torch.bool:
        return StackedTensor.of(args[0][index[0].merged()])
    return mode.each(func, args, {})


def _set(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> None:
    x, index, value = args[0], _tuple(args[1]), args[2]
    if x.is_split and not must_be_written(x):
        x.become(x.merged())
    if x.is_split or not _is_plain_index(index):
        mode.each(func, args, kwargs)
        return
    place = (slice(None), *index)
    x.merged()[place] = aligned(value, x.merged()[place].dim() - 1) if isinstance(value, Tensor) else value
    x.become(x.merged())


def _tuple(index: Any) -> tuple:
    return index if isinstance(index, tuple) else (index,)


def _is_plain_index(index: tuple) -> bool:
    """Whether the members' dimension in front does not change what the index means."""
    if any(type(part) is StackedTensor for part in index):
        return False
    advanced = [i for i, part in enumerate(index) if isinstance(part, Tensor | list)]
    if not advanced:
        return True
    advanced = [i for i, part in enumerate(index) if isinstance(part, Tensor | list | int) and not isinstance(part, bool)]
    return advanced == list(range(advanced[0], advanced[-1] + 1))  # else their dimensions would go to the front


def _index(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """``aten.index.Tensor``."""
    x, indices = args[0], args[1]
    whole = tuple(slice(None) if part is None else part for part in indices)
    return _get(mode, torch.Tensor.__getitem__, (x, whole), {})


def _filled(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """``new_zeros`` and the like: each member gets its own, for it may be written to."""
    like = args[0].any_part()
    parts = func(like, *args[1:], **kwargs)
    made = StackedTensor.of(parts.unsqueeze(0).repeat(mode.num_members, *[1] * parts.dim()))
    return made if parts.dim() else StackedTensor.of(parts.repeat(mode.num_members))


def _broadcast(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    tensors = args[0] if len(args) == 1 and isinstance(args[0], tuple | list) else args
    shape = torch.broadcast_shapes(*(each.shape for each in tensors))
    return tuple(
        StackedTensor.of(aligned(each, len(shape)).expand(mode.num_members, *shape))
        if type(each) is StackedTensor
        else each.expand(shape)
        for each in tensors
    )


RULES: dict[str, Rule] = {
    "view": _apart_or(_reshape), "reshape": _apart_or(_reshape), "_unsafe_view": _apart_or(_reshape),
    "view_as": _apart_or(_like), "reshape_as": _apart_or(_like),
    "flatten": _apart_or(_flatten), "ravel": _apart_or(_flatten), "unflatten": _apart_or(_unflatten),
    "permute": _apart_or(_permute), "transpose": _two_dims(torch.Tensor.transpose), "swapaxes": _two_dims(torch.swapaxes),
    "swapdims": _two_dims(torch.swapaxes), "movedim": _two_dims(torch.movedim), "moveaxis": _two_dims(torch.movedim),
    "t": _apart_or(_reversed), "get T": _apart_or(_reversed), "get mT": _apart_or(_last_swapped),
    "adjoint": _apart_or(_last_swapped),
    "unsqueeze": _apart_or(_unsqueeze), "squeeze": _apart_or(_squeeze), "expand": _apart_or(_expand),
    "expand_as": _apart_or(_expand_as), "repeat": _apart_or(_repeat), "tile": _apart_or(_repeat),
    "select": _apart_or(_select), "narrow": _apart_or(_narrow), "slice": _apart_or(_slice),
    "split": _apart_or(_split), "split_with_sizes": _apart_or(_split), "chunk": _apart_or(_chunk), "unbind": _apart_or(_unbind),
    "__iter__": _iterate, "cat": _joining, "concat": _joining, "concatenate": _joining, "stack": _joining,
    "__getitem__": _get, "__setitem__": _set, "index": _index, "broadcast_tensors": _broadcast,
    "new_zeros": _filled, "new_ones": _filled, "new_full": _filled, "new_empty": _filled, "new_tensor": _filled,
}  # fmt: skip
