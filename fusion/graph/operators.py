"""Families of torch's operators, by name, as captured graphs use them."""

from __future__ import annotations

from torch import fx
from torch._ops import OpOverload

CONV = frozenset(
    [
        "conv1d",
        "conv2d",
        "conv3d",
        "convolution",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "_convolution",
        "mkldnn_convolution",
    ]
)
LINEAR = frozenset(["linear", "addmm", "mm", "bilinear"])
PRODUCT = frozenset(["matmul", "bmm", "baddbmm", "einsum"])
ATTENTION = frozenset(
    [
        "scaled_dot_product_attention",
        "_native_multi_head_attention",
        "_transformer_encoder_layer_fwd",
        "flex_attention",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    ]
)
RECURRENT = frozenset(["lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"])
EMBEDDING = frozenset({"embedding", "embedding_bag"})
HEAVY = CONV | LINEAR | PRODUCT | ATTENTION | RECURRENT | EMBEDDING
NORM = frozenset(
    [
        "batch_norm",
        "layer_norm",
        "group_norm",
        "instance_norm",
        "rms_norm",
        "native_layer_norm",
        "native_group_norm",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
    ]
)
# where these join raw inputs with a parameter, the path of features starts
START = EMBEDDING | CONV | LINEAR | PRODUCT | frozenset({"index", "gather", "index_select"})


def packet(node: fx.Node) -> str:
    """Return the operator's name without namespace and overload (``conv2d``); empty if it is none of torch's."""
    return node.target._schema.name.split("::")[1] if isinstance(node.target, OpOverload) else ""
