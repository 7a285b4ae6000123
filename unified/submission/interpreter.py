"""Run stored graphs: a module with the original parameter names whose ``forward`` walks a list of operator calls."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unified.submission.program import DEVICE_SLOT, compile_graph
from unified.submission.umodel_format import GraphRecord, InputRecord, Manifest, TensorRecord, encode

#: The one attribute that a loaded module has beyond methods and what ``nn.Module`` has.
STATE_ATTRIBUTE = "_umodel"


class ArchiveModule(nn.Module):
    """A model read from a ``.umodel``: ``train()`` and ``eval()`` choose its graph, and it is called as the original was.

    Inputs are tensors whose first dimension is the batch. The output is a tensor, or tuples, lists and dicts of tensors.
    """

    _umodel: _State

    def __init__(
        self,
        manifest: Manifest,
        graphs: Mapping[str, GraphRecord],
        tensors: Mapping[str, Tensor],
        constants: list[Tensor],
    ) -> None:
        super().__init__()
        owners = {record.name: _place(self, record.name) for record in manifest.tensors}
        own: dict[str, Any] = {}
        for record in manifest.tensors:
            module, name = owners[record.name]
            source = record.tie or record.name
            if source not in own:
                own[source] = _own_tensor(record, tensors[source])
            if record.kind == "parameter":
                module.register_parameter(name, own[source])
            else:
                module.register_buffer(name, own[source], persistent=record.persistent)
        homes = {
            name: (module._parameters if key in module._parameters else module._buffers, key)
            for name, (module, key) in owners.items()
        }
        self._umodel = _State(manifest=manifest, graphs=dict(graphs), homes=homes, constants=list(constants))

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Run the graph of the current mode on inputs of shapes (batch, …), given as to the original's ``forward``.

        Raises:
            TypeError: If an input is missing or unknown.
            ValueError: If an input has another shape than the model was exported with.
        """
        return self._umodel.call("train" if self.training else "eval", args, kwargs)

    def structure(self) -> dict[str, object]:
        """Return what the model computes whatever its weights are: inputs, graphs and constants, long ones by SHA-256."""
        state = self._umodel
        graphs = {f"graph {mode}": hashlib.sha256(encode(graph)).hexdigest() for mode, graph in state.graphs.items()}
        constants = {f"constant {index}": constant for index, constant in enumerate(state.constants)}
        return {"inputs": state.manifest.inputs, **graphs, **constants}

    def sizes(self) -> tuple[dict[str, int], int]:
        """Return the number of nodes of each graph, and of different operators in both."""
        graphs = self._umodel.graphs
        operators = {node.op for graph in graphs.values() for node in graph.nodes}
        return {mode: len(graph.nodes) for mode, graph in graphs.items()}, len(operators)

    def extra_repr(self) -> str:
        """Name the inputs."""
        return ", ".join(f"{record.name}: (batch, *{record.shape})" for record in self._umodel.manifest.inputs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ArchiveModule:
        super()._apply(fn, recurse)
        self._umodel.constants = [fn(constant) for constant in self._umodel.constants]
        return self


class _State:
    """What a loaded module holds beside its parameters and buffers."""

    def __init__(
        self,
        *,
        manifest: Manifest,
        graphs: dict[str, GraphRecord],
        homes: dict[str, tuple[dict[str, Any], str]],
        constants: list[Tensor],
    ) -> None:
        self.manifest = manifest
        self.graphs = graphs
        self.homes = homes
        self.constants = constants
        self._compile()

    def _compile(self) -> None:
        self._programs = {mode: compile_graph(graph) for mode, graph in self.graphs.items()}
        self._sources = {
            mode: tuple((*self.homes[name], slot) for name, slot in program.tensors) for mode, program in self._programs.items()
        }
        self._names = {record.name: record for record in self.manifest.inputs}
        self._positions = {r.position: r for r in self.manifest.inputs if r.position is not None}

    def __getstate__(self) -> dict[str, Any]:
        # compiled steps hold operators, which cannot be pickled; they are made anew
        kept = ("manifest", "graphs", "homes", "constants")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._compile()

    def call(self, mode: str, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Any:
        program = self._programs[mode]
        inputs = self._bind(args, kwargs)
        slots = program.template.copy()
        for name, slot in program.inputs:
            slots[slot] = inputs[name]
        for home, name, slot in self._sources[mode]:
            slots[slot] = home[name]
        for index, slot in program.constants:
            slots[slot] = self.constants[index]
        slots[DEVICE_SLOT] = self._device(inputs)
        return program.run(slots)

    def _bind(self, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        inputs = dict(kwargs)
        for position, value in enumerate(args):
            record = self._positions.get(position)
            if record is None or record.name in inputs:
                raise TypeError(f"unexpected positional input {position}; expected {self._expected()}")
            inputs[record.name] = value
        if inputs.keys() != self._names.keys():
            raise TypeError(f"expected {self._expected()}, got {', '.join(inputs) or 'nothing'}")
        for name, value in inputs.items():
            _check_shape(self._names[name], value)
        return inputs

    def _expected(self) -> str:
        return "the inputs " + ", ".join(self._names)

    def _device(self, inputs: dict[str, Tensor]) -> torch.device:
        for home, name in self.homes.values():
            return home[name].device
        return next(iter(inputs.values())).device


def _place(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the submodule that owns ``name``, made where it is missing, and the last part of the name."""
    *path, last = name.split(".")
    module = root
    for part in path:
        child = module._modules.get(part)
        if child is None:
            child = nn.Module()
            module.add_module(part, child)
        module = child
    return module, last


def _own_tensor(record: TensorRecord, tensor: Tensor) -> Tensor:
    if record.kind == "parameter":
        return nn.Parameter(tensor, requires_grad=record.requires_grad)
    return tensor.requires_grad_(record.requires_grad)


def _check_shape(record: InputRecord, value: Tensor) -> None:
    if value.ndim == 0 or value.shape[1:] != record.shape:
        wanted = ", ".join(map(str, ("batch", *record.shape)))
        raise ValueError(f"input {record.name!r}: expected shape ({wanted}), got {tuple(value.shape)}")
