"""Names by content: the same tensors or model have the same hash in every process, so caches know what is theirs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, fx, nn

from fusion.graph.block import Block


def hash_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    """Hash names, dtypes, shapes and bytes of tensors, in the order given: 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in named:
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_model(model: nn.Module) -> str:
    """Hash what a model computes: its weights and buffers, its modules' settings, and the code of captured graphs."""
    digest = hashlib.blake2b(digest_size=16)
    text = "\n".join([repr(model), *(graph.python_code("self").src for graph in _graphs(model))])
    digest.update(re.sub(r" at 0x[0-9a-f]+", "", text).encode())  # addresses of functions differ between processes
    digest.update(hash_tensors(tensors_of(model).items()).encode())
    return digest.hexdigest()


def _graphs(model: nn.Module) -> Iterator[fx.Graph]:
    for module in model.modules():
        if isinstance(module, Block):
            for program in module.programs:
                yield program.graph
                yield from (graph for part in program.parts.values() for graph in _graphs(part))
        elif isinstance(module, fx.GraphModule):
            yield module.graph


def tensors_of(model: nn.Module) -> Mapping[str, Tensor]:
    """Collect all parameters and buffers by name, those too that are no part of the state dict."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
