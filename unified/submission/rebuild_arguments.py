"""Read what a saved module's constructor was given: from its attributes and parameters, or from its submodules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from unified.submission.layer_table import Layer, fits
from unified.submission.pickle_machine import Global
from unified.submission.saved_values import in_words, plain

Attributes = Mapping[Any, Any]
Children = Mapping[str, nn.Module | None]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_ACTIVATIONS = {Global("torch.nn.functional", "relu"): "relu", Global("torch._C._nn", "gelu"): "gelu"}


def constructor_arguments(layer: Layer, attributes: Attributes, parameters: Attributes, children: Children) -> Arguments:
    """Return positional and keyword arguments that make such a module.

    Raises:
        ValueError: If they cannot be read, or are of the wrong kind.
    """
    read = _FROM_CHILDREN.get(layer.kind)
    if read is not None:
        return read(attributes, children)
    found: dict[str, Any] = {}
    for name, kinds in layer.arguments.items():
        part = layer.parts.get(name)
        if part is not None:
            if name == "bias" and parameters.get("weight") is None and part != "in_proj_bias":
                continue  # without a weight it says nothing
            found[name] = parameters.get(part) is not None
            continue
        attribute = layer.renamed.get(name, name)
        if attribute not in attributes:
            raise ValueError(f"no attribute {attribute!r}")
        value = plain(attributes[attribute])
        if not fits(value, kinds):
            raise ValueError(f"{attribute} = {in_words(value)}, where {kinds} is meant")
        found[name] = value
    return (), found


def _of_layer(attributes: Attributes, children: Children) -> Arguments:
    """Read the arguments of a layer of a transformer."""
    attention, linear = _child(children, "self_attn", nn.MultiheadAttention), _child(children, "linear1", nn.Linear)
    activation = attributes.get("activation")
    if not isinstance(activation, Global) or activation not in _ACTIVATIONS:
        raise ValueError(f"activation = {in_words(activation)}, where relu or gelu is meant")
    return (), {
        "d_model": attention.embed_dim,
        "nhead": attention.num_heads,
        "dim_feedforward": linear.out_features,
        "dropout": _child(children, "dropout", nn.Dropout).p,
        "activation": _ACTIVATIONS[activation],
        "layer_norm_eps": _child(children, "norm1", nn.LayerNorm).eps,
        "batch_first": attention.batch_first,
        "norm_first": attributes.get("norm_first") is True,
        "bias": linear.bias is not None,
    }


def _of_stack(attributes: Attributes, children: Children) -> Arguments:
    """Read the arguments of an encoder or a decoder."""
    layers = _child(children, "layers", nn.ModuleList)
    if not len(layers):
        raise ValueError("no layers")
    switches = {name: attributes[name] for name in ("enable_nested_tensor", "mask_check") if name in attributes}
    if not all(type(value) is bool for value in switches.values()):
        raise ValueError(f"{in_words(switches)}, where booleans are meant")
    return (layers[0],), {"num_layers": len(layers), "norm": children.get("norm"), **switches}


def _of_transformer(attributes: Attributes, children: Children) -> Arguments:
    """Read the arguments of a whole transformer, from the first layer of its encoder."""
    encoder, decoder = (
        _child(children, "encoder", nn.TransformerEncoder),
        _child(children, "decoder", nn.TransformerDecoder),
    )
    first = encoder.layers[0]
    if not isinstance(first, nn.TransformerEncoderLayer):
        raise ValueError(f"an encoder of {type(first).__name__}")  # noqa: TRY004 - told like every other fault
    activation = getattr(first.activation, "__name__", "")
    return (), {
        "d_model": first.self_attn.embed_dim,
        "nhead": first.self_attn.num_heads,
        "num_encoder_layers": len(encoder.layers),
        "num_decoder_layers": len(decoder.layers),
        "dim_feedforward": first.linear1.out_features,
        "dropout": first.dropout.p,
        "activation": activation,
        "layer_norm_eps": first.norm1.eps,
        "batch_first": attributes.get("batch_first") is True,
        "norm_first": first.norm_first,
        "bias": first.linear1.bias is not None,
    }


def _child(children: Children, name: str, kind: type[nn.Module]) -> Any:
    child = children.get(name)
    if not isinstance(child, kind):
        raise ValueError(f"no {kind.__name__} called {name!r}")  # noqa: TRY004 - told like every other fault
    return child


_FROM_CHILDREN: dict[type[nn.Module], Callable[[Attributes, Children], Arguments]] = {
    nn.TransformerEncoderLayer: _of_layer,
    nn.TransformerDecoderLayer: _of_layer,
    nn.TransformerEncoder: _of_stack,
    nn.TransformerDecoder: _of_stack,
    nn.Transformer: _of_transformer,
}
