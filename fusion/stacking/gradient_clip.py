"""Clip the gradients of each member of a stack by its own norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def clip_rows_(grads: Sequence[Tensor], max_norms: Sequence[float | None]) -> None:
    """Do `torch.nn.utils.clip_grad_norm_` for each member alone.

    Args:
        grads: `(members, ...)` each, all gradients of all members; changed in place.
        max_norms: One a member; one with None stays as it is.
    """
    if not grads or all(norm is None for norm in max_norms):
        return
    device = grads[0].device
    norms = [torch.linalg.vector_norm(_rows(grad), dim=1).to(device) for grad in grads]
    total = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    limits = torch.tensor([1.0 if norm is None else float(norm) for norm in max_norms], device=device, dtype=total.dtype)
    factors = (limits / (total + 1e-6)).clamp_(max=1.0)
    kept = torch.tensor([norm is None for norm in max_norms], device=device)
    factors.masked_fill_(kept, 1.0)  # afterwards, since a norm that is not a number spreads even from a limit without end
    if device.type == "cpu" and bool((factors == 1.0).all()):  # a look that costs a pass less here, and a wait elsewhere
        return
    torch._foreach_mul_(list(grads), [_broadcast(factors, grad) for grad in grads])


def _rows(grad: Tensor) -> Tensor:
    return grad.flatten(1) if grad.ndim > 1 else grad.unsqueeze(1)


def _broadcast(factors: Tensor, grad: Tensor) -> Tensor:
    return factors.to(grad.device, grad.dtype).view(-1, *[1] * (grad.ndim - 1))
