"""Operators of a captured graph as layers of ``torch.nn``: modules that train, are pruned and know their mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from fusion.graph.operators import packet
from serving.networks.makers import MAKERS, held_by, input_of, setting

_DROPOUTS: Mapping[str, type[nn.Module]] = {
    "dropout": nn.Dropout,
    "alpha_dropout": nn.AlphaDropout,
    "feature_alpha_dropout": nn.FeatureAlphaDropout,
}
_OF_CHANNELS: Mapping[int, type[nn.Module]] = {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d}


class Attention(nn.Module):
    """Scaled dot-product attention whose dropout follows the mode.

    Args:
        dropout: Share of the attention weights that training drops.
        options: Further keyword arguments of ``scaled_dot_product_attention``.
    """

    def __init__(self, dropout: float, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.dropout = dropout
        self.options = dict(options)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``(..., length, features)``."""
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, **self.options)


@dataclass(slots=True)
class Layers:
    """The layers of one graph, while they are made.

    Attributes:
        tensors: Of the model, by the names that the graph uses.
        is_training: Whether the graph was captured in training mode.
        modules: By name.
    """

    tensors: Mapping[str, Tensor]
    is_training: bool
    modules: dict[str, nn.Module] = field(default_factory=dict)

    def raise_all(self, graph: fx.Graph) -> None:
        """Put calls of modules in the place of operators, wherever torch has a layer that does the same."""
        for node in list(graph.nodes):
            name = packet(node)
            kind = _dropout(node)
            if kind is not None:
                self._raise_dropout(graph, node, kind)
            elif name == "scaled_dot_product_attention" and self.is_training and setting(node, "dropout_p"):
                self._raise_attention(graph, node)
            elif name in MAKERS:
                self._raise_weighted(graph, node)

    def _raise_dropout(self, graph: fx.Graph, node: fx.Node, kind: type[nn.Module]) -> None:
        source: Any = node.args[0]
        if setting(node, "train") == self.is_training:
            self._put(graph, node, kind(setting(node, "p")), (source,))
        elif self.is_training:
            node.replace_all_uses_with(source, propagate_meta=False)  # it never drops
            graph.erase_node(node)
        # what drops in evaluation too stays what it is

    def _raise_attention(self, graph: fx.Graph, node: fx.Node) -> None:
        options = {name: setting(node, name) for name in ("is_causal", "scale", "enable_gqa")}
        inputs = tuple(setting(node, name) for name in ("query", "key", "value", "attn_mask"))
        self._put(graph, node, Attention(setting(node, "dropout_p"), options), inputs)

    def _raise_weighted(self, graph: fx.Graph, node: fx.Node) -> None:
        home = self._home(node)
        if home is None or not self._follows_mode(node):
            return
        held = {name: setting(node, name) for name in held_by(node)}
        tensors = {name: None if value is None else self.tensors[str(value.target)] for name, value in held.items()}
        module = MAKERS[packet(node)](node, tensors)
        if module is None or repr(self.modules.setdefault(home, module)) != repr(module):
            return  # the same weights under other settings stay an operator
        _replace(graph, node, home, (input_of(node),))

    def _put(self, graph: fx.Graph, node: fx.Node, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Put a layer without weights in the place of an operator, under a name of its own."""
        path = str(node.meta.get("path") or "")
        name = path
        number = 0
        while not name or name in self.modules or any(held.startswith(f"{name}.") for held in (*self.tensors, *self.modules)):
            name = ".".join(part for part in (path, f"{packet(node)}_{number}") if part)
            number += 1
        self.modules[name] = module
        _replace(graph, node, name, inputs)

    def _home(self, node: fx.Node) -> str | None:
        """Return the path that holds all its tensors under the names that layers give them; None if there is none."""
        homes = set()
        for name in held_by(node):
            value = setting(node, name)
            if value is None:
                continue
            if value.op != "get_attr" or str(value.target) not in self.tensors:
                return None
            path, _, last = str(value.target).rpartition(".")
            homes.add(path if last == name else "")
        return homes.pop() or None if len(homes) == 1 else None

    def _follows_mode(self, node: fx.Node) -> bool:
        """Return whether a batch norm takes its statistics as one of ``torch.nn`` would."""
        if packet(node) != "batch_norm" or setting(node, "running_mean") is None:
            return True
        return setting(node, "training") == self.is_training


def _dropout(node: fx.Node) -> type[nn.Module] | None:
    """Return the layer of a dropout; None if it is none, or there is none."""
    if packet(node) == "feature_dropout":
        return _OF_CHANNELS.get(input_of(node).meta["val"].ndim)
    return _DROPOUTS.get(packet(node))


def _replace(graph: fx.Graph, node: fx.Node, name: str, inputs: tuple[Any, ...]) -> None:
    with graph.inserting_before(node):
        call = graph.create_node("call_module", name, inputs)
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call, propagate_meta=False)
    graph.erase_node(node)
