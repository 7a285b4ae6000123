"""Rebuild a whole module from a pickle that is never unpickled: made anew from its classes, and given the stored tensors.

Every module is constructed from the arguments that its saved attributes tell, without memory for its tensors. What else is
saved of it must be what the constructor made of those arguments: so an override of ``forward``, a hook or an attribute of
somebody's own shows as a difference. Only then the stored tensors take their places.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unified.submission.layer_table import BY_PLACE, Layer
from unified.submission.pickle_machine import Global, Made
from unified.submission.rebuild_arguments import constructor_arguments
from unified.submission.refusal import MAX_FAULTS, Fault, RefusedModelError, refused
from unified.submission.saved_values import equals, in_words, mapping
from unified.submission.stored_tensors import StoredTensors, check_finite, is_parameter, parameter_data
from unified.submission.torch_file import TorchFile

MAX_DEPTH = 30
MAX_MODULES = 20_000
_PARTS_OF_LAYER = 10  #: modules in a layer of a transformer

_REMEDY = "export it where it is defined, with unified.export(model, example_inputs, path), or pass --trust if it is your own"

#: What is looked at apart from the other attributes.
_HANDLED = frozenset({"_modules", "_parameters", "_buffers", "training", "_flat_weights"})
#: Classes whose children the saver chose.
_CONTAINERS = (nn.Sequential, nn.ModuleList)


def foreign_class(root: Made) -> Global | None:
    """Return the first class in the tree of modules that is not of ``torch.nn``'s accepted ones, None if there is none."""
    seen: set[int] = set()
    waiting: list[Any] = [root]
    while waiting:
        made = waiting.pop()
        if not isinstance(made, Made) or id(made) in seen:
            continue
        seen.add(id(made))
        if made.maker not in BY_PLACE:
            return made.maker
        children = mapping((mapping(made.state) or {}).get("_modules"))
        waiting += [*(children or {}).values()][::-1]
    return None


def rebuild(file: TorchFile, path: Path, *, finite: bool = True) -> nn.Module:
    """Return the module that a ``.pt`` holds, in training mode, on the CPU, its tensors in memory of their own.

    Shared submodules and tied parameters stay shared; parameters keep their types, layouts and ``requires_grad``. No random
    number is drawn.

    Args:
        file: What is in the file; its root must be a module.
        path: Its path, for messages.
        finite: Refuse weights that are NaN or infinite.

    Raises:
        RefusedModelError: If it holds anything but modules of ``torch.nn`` as their constructors make them.
    """
    builder = _Builder(file, path.name, finite=finite)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice to whoever constructed it first
        root = builder.module(file.root, "", None)
        if isinstance(root, nn.EmbeddingBag):  # in a Sequential it gets indices alone
            expected = "a module that makes the offsets of its EmbeddingBag itself, which reads wherever they lead"
            raise builder.bad("", expected, "an EmbeddingBag that gets them with its inputs")
        builder.tensors.check_overlaps()
        return root.train().to("cpu")  # recurrent networks keep lists of their parameters, which this renews


class _Builder:
    """What was made so far, by the description that it was made from."""

    def __init__(self, file: TorchFile, name: str, *, finite: bool) -> None:
        self.tensors = StoredTensors(file.storages)
        self._name = name
        self._finite = finite
        self._modules: dict[int, nn.Module] = {}
        self._open: set[int] = set()
        self._parameters: dict[int, nn.Parameter] = {}
        self._owners: dict[int, int] = {}
        self._training: bool | None = None
        self._num_copied = 0

    def module(self, made: Any, path: str, parent: type[nn.Module] | None) -> nn.Module:
        """Return the module that ``made`` describes."""
        if id(made) in self._open or path.count(".") > MAX_DEPTH:
            raise self.bad(path, "a tree of modules", "one that contains itself, or is too deep")
        if id(made) in self._modules:
            return self._modules[id(made)]
        if len(self._modules) >= MAX_MODULES:
            raise self.bad(path, f"at most {MAX_MODULES} modules", "more")
        layer, attributes = self._layer(made, path, parent)
        self._open.add(id(made))
        children = {
            name: None if child is None else self.module(child, self._child(path, name), layer.kind)
            for name, child in self._dict(attributes, "_modules", path).items()
        }
        self._open.remove(id(made))
        built = self._construct(layer, attributes, children, path)
        self._check_attributes(built, attributes, path)
        self._attach(built, children, path)
        self._fill(built, attributes, path)
        self._modules[id(made)] = built
        return built

    def _layer(self, made: Any, path: str, parent: type[nn.Module] | None) -> tuple[Layer, dict[Any, Any]]:
        layer = BY_PLACE.get(made.maker) if isinstance(made, Made) and made.is_new and not made.args else None
        if layer is None or made.items:
            given = f"a {made.maker}" if isinstance(made, Made) else f"a {type(made).__name__}"
            raise self.bad(path, "a module of an accepted class of torch.nn", given)
        if layer.kind is nn.ModuleList and parent not in (nn.TransformerEncoder, nn.TransformerDecoder):
            raise self.bad(path, "a module with a forward", "a ModuleList, which has none")
        attributes = mapping(made.state)
        if attributes is None:
            raise self.bad(path, "a module with its attributes", "one without")
        return layer, attributes

    def _construct(
        self, layer: Layer, attributes: Mapping[Any, Any], children: Mapping[str, nn.Module | None], path: str
    ) -> nn.Module:
        """Make the module without memory: its sizes may be anything."""
        parameters = self._dict(attributes, "_parameters", path)
        self._num_copied += len(children)  # a stack's constructor copies its layers, though they all be one
        self._num_copied += _num_layers(children) * _PARTS_OF_LAYER
        if self._num_copied > MAX_MODULES:
            raise self.bad(path, f"at most {MAX_MODULES} modules", "more")
        try:
            positional, arguments = constructor_arguments(layer, attributes, parameters, children)
        except ValueError as error:
            raise self.bad(path, f"what a {layer.kind.__name__} is made of", str(error)) from error
        if issubclass(layer.kind, nn.RNNBase) and arguments["num_layers"] > len(parameters):
            place = self._child(path, "num_layers")
            raise self.bad(place, "as many layers as there are weights of", str(arguments["num_layers"]))
        try:
            with torch.device("meta"):
                return layer.kind(*positional, **arguments)
        except Exception as error:  # PyTorch's constructors refuse with errors of any kind, asserts among them
            given = f"{in_words(arguments)}: {type(error).__name__}: {' '.join(str(error).split())[:150]}"
            raise self.bad(path, f"arguments that {layer.kind.__name__} takes", given) from error

    def _check_attributes(self, built: nn.Module, attributes: Mapping[Any, Any], path: str) -> None:
        """Refuse what the constructor would not have made."""
        faults = []
        own = vars(built)
        for name, saved in attributes.items():
            if name in _HANDLED:
                continue
            if name not in own or not equals(saved, own[name]):
                expected = in_words(own[name]) if name in own else "no such attribute"
                faults.append(self._fault(self._child(path, str(name)[:80]), expected, in_words(saved)))
        training = attributes.get("training")
        if type(training) is not bool or self._training not in (None, training):
            faults.append(self._fault(self._child(path, "training"), "one mode of all modules", in_words(training)))
        self._training = training
        if faults:
            raise RefusedModelError(faults[:MAX_FAULTS])

    def _attach(self, built: nn.Module, children: Mapping[str, nn.Module | None], path: str) -> None:
        if isinstance(built, _CONTAINERS):
            for index, (name, child) in enumerate(children.items()):
                is_taken = not name or "." in name or not name.isprintable() or name.startswith("__") or hasattr(built, name)
                if child is None or is_taken or (isinstance(built, nn.ModuleList) and name != str(index)):
                    raise self.bad(self._child(path, name[:80]), "a module under a name of its own", in_words(name))
                built.register_module(name, child)
            return
        expected = {name: type(child) for name, child in built.named_children()}
        given = {name: type(child) for name, child in children.items()}
        if expected != given:
            raise self.bad(path, f"the submodules {in_words(expected)}", in_words(given))
        built._modules.update(children)

    def _fill(self, built: nn.Module, attributes: Mapping[Any, Any], path: str) -> None:
        """Put the stored tensors where the constructor left room for them."""
        parameters, buffers = self._dict(attributes, "_parameters", path), self._dict(attributes, "_buffers", path)
        for kind, saved, own in (("parameter", parameters, built._parameters), ("buffer", buffers, built._buffers)):
            if saved.keys() != own.keys():
                raise self.bad(path, f"the {kind}s {sorted(own)}", in_words(sorted(map(str, saved))))
            for name, described in saved.items():
                place = self._child(path, name)
                room = own[name]
                if described is None or room is None:
                    if described is not room:
                        raise self.bad(place, f"a {kind}" if room is not None else "none", in_words(described))
                    continue
                filled = self._parameter(described, place) if kind == "parameter" else self._buffer(described, place)
                self._check_room(room, filled, place)
                setattr(built, name, filled)
        flat = attributes.get("_flat_weights")
        names = getattr(built, "_flat_weights_names", None)
        if "_flat_weights" in attributes and (names is None or flat != [parameters.get(name) for name in names]):
            raise self.bad(self._child(path, "_flat_weights"), "the module's own parameters", in_words(flat))

    def _parameter(self, described: Any, place: str) -> nn.Parameter:
        if id(described) in self._parameters:
            return self._parameters[id(described)]
        if not is_parameter(described):
            raise self.bad(place, "a parameter", in_words(described))
        data, requires_grad = parameter_data(place, described)
        tensor = self.tensors.tensor(place, data)
        if self._owners.setdefault(id(tensor), id(described)) != id(described):
            raise self.bad(place, "a parameter with memory of its own, or one under two names", "two over the same memory")
        if not tensor.is_floating_point():
            raise self.bad(place, "a floating-point parameter", str(tensor.dtype))
        if self._finite:
            check_finite(place, tensor)
        parameter = nn.Parameter(tensor, requires_grad=requires_grad)
        self._parameters[id(described)] = parameter
        return parameter

    def _buffer(self, described: Any, place: str) -> torch.Tensor:
        if is_parameter(described) or (
            isinstance(described, Made) and len(described.args) > 4 and described.args[4] is not False
        ):
            raise self.bad(place, "a buffer, which is not trained", "a tensor that requires a gradient")
        return self.tensors.tensor(place, described)

    def _check_room(self, room: torch.Tensor, filled: torch.Tensor, place: str) -> None:
        alike = room.dtype == filled.dtype or (room.is_floating_point() and filled.is_floating_point())
        if room.shape != filled.shape or not alike:
            expected, given = (f"{tensor.dtype} of shape {tuple(tensor.shape)}" for tensor in (room, filled))
            raise refused("E-TENSORS", self._where(place), expected, given, "save the module as its constructor made it")

    def _dict(self, attributes: Mapping[Any, Any], name: str, path: str) -> dict[str, Any]:
        found = mapping(attributes.get(name))
        if found is None or not all(isinstance(key, str) for key in found):
            raise self.bad(self._child(path, name), "a dict by name", in_words(attributes.get(name)))
        return found

    @staticmethod
    def _child(path: str, name: str) -> str:
        return f"{path}.{name}" if path else name

    def _where(self, path: str) -> str:
        return f"{self._name}: {path[:200] or 'the module'}"

    def _fault(self, path: str, expected: str, given: str) -> Fault:
        return Fault(code="E-CLASS", where=self._where(path), expected=expected, given=given, remedy=_REMEDY)

    def bad(self, path: str, expected: str, given: str) -> RefusedModelError:
        """Return the error for a module that is not accepted."""
        return RefusedModelError([self._fault(path, expected, given)])


def _num_layers(children: Mapping[str, nn.Module | None]) -> int:
    """Return how many layers a transformer, or a stack of one, has: one counts as often as it is in there."""
    stacks = [children.get("layers"), *(getattr(children.get(name), "layers", None) for name in ("encoder", "decoder"))]
    return sum(len(layers) for layers in stacks if isinstance(layers, nn.ModuleList))
