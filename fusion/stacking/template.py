"""One member's module, emptied of its tensors, into which those of a run are put: all members' at once, or one member's."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusion.stacking.stacked_tensor import StackedTensor

_HOLDERS = (StackedTensor, list, tuple, dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Where a tensor lives in a module: the dict of its parameters or buffers, its name there, and its whole name.

    ``source`` is the name under which its values are kept: another one's if the two are tied.
    """

    module: nn.Module
    key: str
    name: str
    source: str
    is_parameter: bool

    def value(self) -> Tensor | None:
        """Return what is there."""
        return (self.module._parameters if self.is_parameter else self.module._buffers).get(self.key)

    def put(self, value: Tensor | None) -> None:
        """Put a tensor there, or leave the place empty."""
        place = self.module._parameters if self.is_parameter else self.module._buffers
        place[self.key] = value  # type: ignore[assignment]  # in a run a parameter is a stacked tensor


class Template:
    """A copy of a model without its tensors.

    Args:
        model: The model; it is not changed.
    """

    def __init__(self, model: nn.Module) -> None:
        memo = {id(tensor): tensor for tensor in _tensors(model)}  # shared with the copy for a moment, not copied
        self.module = _copied(model, memo)
        self.homes = tuple(_homes(self.module))
        self._recurrent = [module for module in self.module.modules() if isinstance(module, nn.RNNBase)]
        self.clear()

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Let the module compute with these tensors, by name."""
        self._put = {home.name: tensors[home.source] for home in self.homes}
        for home in self.homes:
            home.put(tensors[home.source])
        for module in self._recurrent:
            names: list[str] = module._flat_weights_names  # type: ignore[assignment]
            module.__dict__["_flat_weights"] = [getattr(module, name, None) for name in names]

    def replaced(self) -> dict[str, Tensor]:
        """Return buffers in whose places the module has put other tensors, by name."""
        found = {home.name: home.value() for home in self.homes if not home.is_parameter}
        return {name: value for name, value in found.items() if value is not None and value is not self._put.get(name)}

    def clear(self) -> None:
        """Leave all places empty, so that nothing of a run is kept."""
        self._put: dict[str, Tensor] = {}
        for home in self.homes:
            home.put(None)
        for module in self._recurrent:
            module.__dict__["_flat_weights"] = []

    def filled(self, tensors: Mapping[str, Tensor], index: int) -> nn.Module:
        """Return member ``index``'s module with these tensors, which are not copied; what a run left is the member's part."""
        memo = {id(value): value.parts()[index].detach().clone() for value in self._left()}
        made = _copied(self.module, memo)
        copies = Template.__new__(Template)
        copies.module = made
        homes = zip(self.homes, _homes_like(self.module, made, self.homes), strict=True)
        copies.homes = tuple(home for _, home in homes)
        copies._recurrent = [module for module in made.modules() if isinstance(module, nn.RNNBase)]
        copies.put(tensors)
        for module in copies._recurrent:
            module._init_flat_weights()  # type: ignore[operator]
        return made

    def _left(self) -> list[StackedTensor]:
        """Return stacked tensors that a run has left in plain attributes."""
        values = torch.utils._pytree.tree_leaves(
            [value for module in self.module.modules() for value in vars(module).values() if isinstance(value, _HOLDERS)]
        )
        return [value for value in values if type(value) is StackedTensor]


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    with warnings.catch_warnings():  # copying an exported program's graph, PyTorch warns of its own use of pytree
        warnings.simplefilter("ignore", FutureWarning)
        return copy.deepcopy(model, memo)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _homes(root: nn.Module) -> list[Home]:
    first: dict[int, str] = {}
    found = []
    for path, module in root.named_modules(remove_duplicate=False):
        for is_parameter, tensors in ((True, module._parameters), (False, module._buffers)):
            for key, tensor in tensors.items():
                if tensor is None:
                    continue
                name = f"{path}.{key}" if path else key
                source = first.setdefault(id(tensor), name)
                found.append(Home(module=module, key=key, name=name, source=source, is_parameter=is_parameter))
    return found


def _homes_like(old: nn.Module, new: nn.Module, homes: tuple[Home, ...]) -> list[Home]:
    """Return the same places in a copy."""
    new_modules = dict(new.named_modules(remove_duplicate=False))
    paths: dict[int, str] = {id(module): path for path, module in old.named_modules(remove_duplicate=False)}
    return [
        Home(
            module=new_modules[paths[id(home.module)]],
            key=home.key,
            name=home.name,
            source=home.source,
            is_parameter=home.is_parameter,
        )
        for home in homes
    ]


def tree_map(function: Any, value: Any, kind: type) -> Any:
    """Return ``value`` with ``function`` applied to every ``kind`` in its tuples, lists, mappings and data classes."""
    return torch.utils._pytree.tree_map_only(kind, function, value)
