"""The classes of ``torch.nn`` that a model may be rebuilt from, as data: which arguments each takes, and of which kind.

A class is in :data:`LAYERS`, or in :data:`REFUSED` with the reason why not.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

MAX_TEXT = 100
MAX_ITEMS = 16
MAX_LAYERS = 1000  #: of a recurrent network, whose constructor makes them one after another


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A class and what its constructor is given.

    Attributes:
        kind: The class.
        arguments: Kinds of its arguments by name, such as ``"integer"``, or ``"integer or null"``.
        parts: Names of arguments that say whether a parameter is there, with that parameter's name.
        renamed: Attributes that hold an argument under another name.
        is_listed: Whether a list of layers may name it: its arguments are plain values.
    """

    kind: type[nn.Module]
    arguments: Mapping[str, str]
    parts: Mapping[str, str]
    renamed: Mapping[str, str]
    is_listed: bool = True

    @property
    def required(self) -> list[str]:
        """The arguments without which it cannot be made."""
        parameters = inspect.signature(self.kind).parameters
        needed = [name for name in self.arguments if name in parameters and parameters[name].default is inspect.Parameter.empty]
        return [*needed, *("input_size", "hidden_size")] if issubclass(self.kind, nn.RNNBase) else needed


#: Arguments of one kind wherever they occur.
_KIND_OF = {
    **dict.fromkeys(
        (
            *("in_features", "out_features", "in1_features", "in2_features", "in_channels", "out_channels", "groups"),
            *("num_features", "num_groups", "num_channels", "num_embeddings", "embedding_dim", "input_size", "hidden_size"),
            *("num_layers", "proj_size", "embed_dim", "num_heads", "upscale_factor", "downscale_factor", "start_dim"),
            *("end_dim", "num_parameters", "d_model", "nhead", "dim_feedforward", "num_encoder_layers", "num_decoder_layers"),
        ),
        "integer",
    ),
    **dict.fromkeys(("padding_idx", "divisor_override", "kdim", "vdim"), "integer or null"),
    **dict.fromkeys(
        (
            *("p", "eps", "alpha", "beta", "k", "negative_slope", "lambd", "lower", "upper", "min_val", "max_val"),
            *("threshold", "value", "dropout", "norm_type", "init", "layer_norm_eps"),
        ),
        "number",
    ),
    **dict.fromkeys(("momentum", "max_norm"), "number or null"),
    **dict.fromkeys(
        (
            *("inplace", "bias", "affine", "track_running_stats", "elementwise_affine", "ceil_mode", "count_include_pad"),
            *("return_indices", "scale_grad_by_freq", "sparse", "include_last_offset", "batch_first", "bidirectional"),
            *("add_bias_kv", "add_zero_attn", "keepdim", "norm_first", "enable_nested_tensor", "mask_check"),
        ),
        "boolean",
    ),
    **dict.fromkeys(("align_corners", "recompute_scale_factor"), "boolean or null"),
    **dict.fromkeys(("padding_mode", "approximate", "mode", "nonlinearity", "activation"), "text"),
    **dict.fromkeys(("kernel_size", "dilation", "padding", "output_padding", "normalized_shape", "unflattened_size"), "sizes"),
    **dict.fromkeys(("stride", "output_size"), "sizes or null"),
    **dict.fromkeys(("output_ratio", "scale_factor"), "numbers or null"),
}

_CONV = "in_channels out_channels kernel_size stride padding dilation groups bias padding_mode"
_TRANSPOSED = "in_channels out_channels kernel_size stride padding output_padding groups bias dilation padding_mode"
_BATCH_NORM = "num_features eps momentum affine track_running_stats bias"
_RECURRENT = "input_size hidden_size num_layers bias batch_first dropout bidirectional"
_ENCODER = "d_model nhead dim_feedforward dropout activation layer_norm_eps batch_first norm_first bias"

#: Arguments of each class, in words; those that this version of PyTorch does not know are left out.
_ARGUMENTS: dict[str, str] = {
    "Linear": "in_features out_features bias",
    "Bilinear": "in1_features in2_features out_features bias",
    **dict.fromkeys(("Conv1d", "Conv2d", "Conv3d"), _CONV),
    **dict.fromkeys(("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"), _TRANSPOSED),
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"), _BATCH_NORM),
    **dict.fromkeys(("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"), _BATCH_NORM),
    "GroupNorm": "num_groups num_channels eps affine bias",
    "LayerNorm": "normalized_shape eps elementwise_affine bias",
    "RMSNorm": "normalized_shape eps elementwise_affine",
    "LocalResponseNorm": "size alpha beta k",
    "Embedding": "num_embeddings embedding_dim padding_idx max_norm norm_type scale_grad_by_freq sparse",
    "EmbeddingBag": (
        "num_embeddings embedding_dim max_norm norm_type scale_grad_by_freq mode sparse include_last_offset padding_idx"
    ),
    "RNN": f"{_RECURRENT} nonlinearity",
    "LSTM": f"{_RECURRENT} proj_size",
    "GRU": _RECURRENT,
    "RNNCell": "input_size hidden_size bias nonlinearity",
    **dict.fromkeys(("LSTMCell", "GRUCell"), "input_size hidden_size bias"),
    "MultiheadAttention": "embed_dim num_heads dropout bias add_bias_kv add_zero_attn kdim vdim batch_first",
    **dict.fromkeys(("TransformerEncoderLayer", "TransformerDecoderLayer"), _ENCODER),
    "Transformer": f"{_ENCODER} num_encoder_layers num_decoder_layers",
    "TransformerEncoder": "num_layers enable_nested_tensor mask_check",
    "TransformerDecoder": "num_layers",
    **dict.fromkeys(("Sequential", "ModuleList", "Identity"), ""),
    **dict.fromkeys(("Sigmoid", "Tanh", "Tanhshrink", "Softsign", "LogSigmoid", "Softmax2d"), ""),
    **dict.fromkeys(("ReLU", "ReLU6", "SELU", "SiLU", "Mish", "Hardsigmoid", "Hardswish"), "inplace"),
    **dict.fromkeys(("ELU", "CELU"), "alpha inplace"),
    "LeakyReLU": "negative_slope inplace",
    "RReLU": "lower upper inplace",
    "Hardtanh": "min_val max_val inplace",
    "Threshold": "threshold value inplace",
    "Softplus": "beta threshold",
    **dict.fromkeys(("Hardshrink", "Softshrink"), "lambd"),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Softmin", "GLU"), "dim"),
    "GELU": "approximate",
    "PReLU": "num_parameters init",
    **dict.fromkeys(("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"), "p inplace"),
    "Flatten": "start_dim end_dim",
    "Unflatten": "dim unflattened_size",
    "Fold": "output_size kernel_size dilation padding stride",
    "Unfold": "kernel_size dilation padding stride",
    **dict.fromkeys(("MaxPool1d", "MaxPool2d", "MaxPool3d"), "kernel_size stride padding dilation return_indices ceil_mode"),
    **dict.fromkeys(("MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d"), "kernel_size stride padding"),
    "AvgPool1d": "kernel_size stride padding ceil_mode count_include_pad",
    **dict.fromkeys(("AvgPool2d", "AvgPool3d"), "kernel_size stride padding ceil_mode count_include_pad divisor_override"),
    **dict.fromkeys(("LPPool1d", "LPPool2d", "LPPool3d"), "norm_type kernel_size stride ceil_mode"),
    **dict.fromkeys(("FractionalMaxPool2d", "FractionalMaxPool3d"), "kernel_size output_size output_ratio return_indices"),
    **dict.fromkeys(("AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d"), "output_size"),
    **dict.fromkeys(("AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "AdaptiveMaxPool3d"), "output_size return_indices"),
    **dict.fromkeys(
        (f"{kind}Pad{n}d" for kind in ("Reflection", "Replication", "Zero", "Circular") for n in (1, 2, 3)), "padding"
    ),
    **dict.fromkeys((f"ConstantPad{n}d" for n in (1, 2, 3)), "padding value"),
    "Upsample": "size scale_factor mode align_corners recompute_scale_factor",
    **dict.fromkeys(("UpsamplingNearest2d", "UpsamplingBilinear2d"), "size scale_factor"),
    "PixelShuffle": "upscale_factor",
    "PixelUnshuffle": "downscale_factor",
    "ChannelShuffle": "groups",
    "CosineSimilarity": "dim eps",
    "PairwiseDistance": "p eps keepdim",
}

#: Kinds that differ from those of the same name elsewhere.
_OWN_KINDS: dict[tuple[str, str], str] = {
    ("LocalResponseNorm", "size"): "integer",
    **{(name, "size"): "sizes or null" for name in ("Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d")},
    **{(name, "dim"): "integer or null" for name in ("Softmax", "LogSoftmax", "Softmin")},
    **{(name, "dim"): "integer" for name in ("GLU", "Unflatten", "CosineSimilarity")},
    **{(f"Conv{n}d", "padding"): "sizes or text" for n in (1, 2, 3)},
    ("RMSNorm", "eps"): "number or null",
}

#: Arguments that are seen in a saved module by whether a parameter is there.
_PARTS: dict[str, dict[str, str]] = {
    **{name: {"bias": "bias"} for name in ("Linear", "Bilinear", "LayerNorm")},
    **{f"{kind}{n}d": {"bias": "bias"} for kind in ("Conv", "ConvTranspose") for n in (1, 2, 3)},
    "MultiheadAttention": {"bias": "in_proj_bias", "add_bias_kv": "bias_k"},
}
#: The same, but only where there is a weight: without it the argument has no effect.
_PARTS_OF_WEIGHTED = (*(f"{kind}{n}d" for kind in ("BatchNorm", "InstanceNorm") for n in (1, 2, 3)), "GroupNorm")

_RENAMED = {"PairwiseDistance": {"p": "norm"}}

#: Made of other modules: their arguments are read from those, and a list of layers may not name them.
_OF_MODULES = frozenset({"Sequential", "ModuleList", "Transformer", "TransformerEncoder", "TransformerDecoder"})

_LOSS = "it is a loss, which a job names in 'loss'"
_LAZY = "it has no shapes yet: call the model once before saving it"
_NO_FORWARD = "it has no forward of its own, and no other class of torch.nn holds one"

#: Classes of torch.nn that are not accepted, and why.
REFUSED: dict[str, str] = {
    **{name: _LOSS for name in vars(nn) if name.endswith("Loss") or name == "NLLLoss2d"},
    **{name: _LAZY for name in vars(nn) if name.startswith("Lazy")},
    **dict.fromkeys(("Module", "Container", "RNNBase", "RNNCellBase"), "it is a base of other classes"),
    **dict.fromkeys(("ModuleDict", "ParameterList", "ParameterDict"), _NO_FORWARD),
    "AdaptiveLogSoftmaxWithLoss": "its forward takes the targets: it is a loss with weights of its own",
    "DataParallel": "a job trains on one device: save its .module",
    "SyncBatchNorm": "a job trains in one process: use BatchNorm",
    "CrossMapLRN2d": "PyTorch has retired it: use LocalResponseNorm",
}


def _layer(name: str, words: str) -> Layer:
    kind: type[nn.Module] = getattr(nn, name)
    known = inspect.signature(kind).parameters
    takes_any = issubclass(kind, nn.RNNBase)  # its signature says nothing
    arguments = [word for word in words.split() if takes_any or word in known or name in _OF_MODULES]
    parts = {"bias": "bias"} if name in _PARTS_OF_WEIGHTED and "bias" in arguments else _PARTS.get(name, {})
    return Layer(
        kind=kind,
        arguments={argument: _OWN_KINDS.get((name, argument)) or _KIND_OF[argument] for argument in arguments},
        parts=parts,
        renamed=_RENAMED.get(name, {}),
        is_listed=name not in _OF_MODULES,
    )


LAYERS: dict[str, Layer] = {name: _layer(name, words) for name, words in _ARGUMENTS.items() if hasattr(nn, name)}

#: The output projection of attention: a Linear that only differs in how it may be quantized.
_PROJECTION = dataclasses.replace(LAYERS["Linear"], kind=nn.modules.linear.NonDynamicallyQuantizableLinear, is_listed=False)

#: The same by what a pickle calls the class.
BY_PLACE: dict[tuple[str, str], Layer] = {
    (layer.kind.__module__, layer.kind.__qualname__): layer for layer in (*LAYERS.values(), _PROJECTION)
}


def fits(value: Any, kinds: str) -> bool:
    """Return whether a value is of one of these kinds, such as ``"sizes or null"``: one number, or several in a tuple.

    >>> fits((3, 3), "sizes"), fits(True, "integer"), fits(None, "integer or null")
    (True, False, True)
    """
    return any(_CHECKS[kind](value) for kind in kinds.split(" or "))


def _is_integer(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


_CHECKS = {
    "integer": _is_integer,
    "number": _is_number,
    "boolean": lambda value: type(value) is bool,
    "null": lambda value: value is None,
    "text": lambda value: isinstance(value, str) and len(value) <= MAX_TEXT,
    "sizes": lambda value: _is_integer(value) or _is_tuple(value, lambda item: item is None or _is_integer(item)),
    "numbers": lambda value: _is_number(value) or _is_tuple(value, _is_number),
}


def _is_tuple(value: Any, check: Any) -> bool:
    return isinstance(value, tuple | list) and 0 < len(value) <= MAX_ITEMS and all(check(item) for item in value)
