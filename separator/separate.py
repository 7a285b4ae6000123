"""Copy one finished model out of its hybrid, so that nothing that happens there can reach the copy.

The paper copies the entire hybrid to the CPU when one sub-model ends; here only that sub-model is copied.

References:
    UnifiedNN, section "Model Separator".
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class SeparationError(ValueError):
    """A model's state cannot be handed back as plain tensors. The message names the entry and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Separated:
    """A model's weights and buffers, its owner's own.

    Attributes:
        state_dict: Plain tensors on the CPU in the names and the order of ``module.state_dict()``. Names that are tied
            hold the same tensor; apart from that no two share storage.
    """

    state_dict: dict[str, Tensor]

    @property
    def ties(self) -> tuple[tuple[str, ...], ...]:
        """The groups of two or more names that stand for one tensor."""
        return tie_groups(self.state_dict)


def separate(module: nn.Module) -> Separated:
    """Copy the state of ``module`` to the CPU.

    Tensors that merely overlap (slices of one buffer, a weight and its transpose) are copied each on its own.

    Args:
        module: One model, not a hybrid that holds several.

    Returns:
        A copy that shares no storage with ``module``, has no gradients and no hooks.

    Raises:
        SeparationError: If an entry of the state dict is not a dense tensor with data.

    Example:
        >>> encoder, decoder = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        >>> decoder.weight = encoder.weight
        >>> separated = separate(nn.Sequential(encoder, decoder))
        >>> list(separated.state_dict), separated.ties
        (['0.weight', '1.weight'], (('0.weight', '1.weight'),))
    """
    source = live_state(module)
    _check(source)
    copies: dict[Hashable, Tensor] = {}
    state_dict: dict[str, Tensor] = {}
    for name, tensor in source.items():
        identity = _identity(tensor)
        if identity not in copies:
            copies[identity] = tensor.detach().resolve_conj().resolve_neg().to("cpu", copy=True)
        state_dict[name] = copies[identity]
    return Separated(state_dict=state_dict)


def live_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of ``module`` with its very own parameters and buffers, not copies."""
    return dict(module.state_dict(keep_vars=True))


def tie_groups(state_dict: Mapping[str, Tensor]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of two or more names that stand for the same elements in the same layout."""
    groups: dict[Hashable, list[str]] = {}
    for name, tensor in state_dict.items():
        groups.setdefault(_identity(tensor), []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _identity(tensor: Tensor) -> Hashable:
    if tensor.numel() == 0:  # has no address; only the object itself can be shared
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _check(state_dict: Mapping[str, object]) -> None:
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            kind = f"a {type(value).__name__}"
        elif value.layout is not torch.strided or value.is_quantized or value.is_meta:
            kind = f"a tensor on {value.device} with layout {value.layout} and dtype {value.dtype}"
        else:
            continue
        raise SeparationError(
            f"{name!r}: expected a dense tensor with data, got {kind}; return tensors from get_extra_state() "
            "and register only dense ones, or make the buffer non-persistent"
        )
