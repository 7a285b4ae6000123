"""A block's graph as a function over the tensors of whichever module it is called for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn


class Program:
    """A graph made callable. It holds no tensors of its own and never changes, so copies of a block share it.

    Args:
        graph: Placeholders are the inputs, ``get_attr`` nodes name tensors or sub-graphs.
        parts: Sub-graphs by name.
        output: Where the graph gives a tuple: plain Python with positions in place of tensors; None for one tensor.

    Attributes:
        graph: The graph. Not to be changed.
        names: Names of the tensors that it takes, in order.
    """

    def __init__(self, graph: fx.Graph, parts: Mapping[str, nn.Module], output: Any = None) -> None:
        self.graph = graph
        self.parts = {name: _bare(part) for name, part in parts.items()}
        self.output = output
        self.names: tuple[str, ...] = ()
        self._function = self._compile()

    def __call__(self, home: nn.Module, inputs: Sequence[Tensor]) -> Any:
        """Run on ``inputs`` with the tensors of ``home``."""
        result = self._function(*inputs, *(_look_up(home, path) for path in self._paths), *self._part_values)
        return result if self.output is None else _fill(self.output, result)

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Program, (self.graph, self.parts, self.output)

    def _compile(self) -> Any:
        """Return a Python function: inputs, then tensors, then sub-graphs."""
        graph = fx.Graph()
        made: dict[fx.Node, fx.Node] = {}
        sources = [node for node in self.graph.nodes if node.op == "placeholder"]
        attributes = [node for node in self.graph.nodes if node.op == "get_attr"]
        tensors = [node for node in attributes if node.target not in self.parts]
        parts = [node for node in attributes if node.target in self.parts]
        for node in [*sources, *tensors, *parts]:
            made[node] = graph.placeholder(node.name)
        for node in self.graph.nodes:
            if node.op == "output":
                graph.output(fx.map_arg(node.args[0], made.__getitem__))
            elif node not in made:
                made[node] = graph.node_copy(node, made.__getitem__)
        self.names = tuple(str(node.target) for node in tensors)
        self._paths = tuple(tuple(name.split(".")) for name in self.names)
        self._part_values = tuple(self.parts[str(node.target)] for node in parts)
        code = graph.python_code("self")
        scope: dict[str, Any] = dict(code.globals)
        exec(compile(code.src, "<block>", "exec"), scope)
        function = scope["forward"]
        return lambda *values: function(None, *values)


def _bare(part: nn.Module) -> fx.GraphModule:
    """Return a copy of a sub-graph without the fake tensors of its capture, which could not be copied later."""
    assert isinstance(part, fx.GraphModule)
    inner = {str(node.target) for node in part.graph.nodes if node.op == "get_attr"}
    graph = fx.Graph()
    graph.output(graph.graph_copy(part.graph, {}))
    for node in graph.nodes:
        node.meta = {}
    return fx.GraphModule({name: _bare(part.get_submodule(name)) for name in inner}, graph)


def _look_up(home: nn.Module, path: tuple[str, ...]) -> Tensor:
    module: Any = home
    for part in path[:-1]:
        module = module._modules[part]
    found = module._parameters.get(path[-1])
    return module._buffers[path[-1]] if found is None else found


def _fill(shape: Any, leaves: Sequence[Any]) -> Any:
    """Return ``shape`` with the leaves at their positions."""
    if shape is None:
        return None
    if isinstance(shape, int):
        return leaves[shape]
    if isinstance(shape, dict):
        return {key: _fill(item, leaves) for key, item in shape.items()}
    return type(shape)(_fill(item, leaves) for item in shape)
