"""Mixed precision of one member: autocast and, for fp16, a gradient scaler of its own, through ``accelerate``.

``accelerate`` keeps one precision per process in ``AcceleratorState``. Members of one hybrid may each have another, so every
member keeps the state that its own ``Accelerator`` was made with and puts it in place for its turn, as it does with its
random state. fp16 on a CPU, which ``accelerate`` refuses, uses ``torch.autocast`` and ``torch.amp.GradScaler`` directly: the
same arithmetic, slow, for tests and for owners who want the rounding of their GPU runs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator


class Precision:
    """Forward context, backward, clipping and optimizer step at one precision.

    Args:
        name: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        device: Where the member trains.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device
        self.scaler: Any = None
        self._accelerator: Accelerator | None = None
        self._state: dict[str, Any] = {}
        if name == "fp16" and device.type == "cpu":
            self.scaler = torch.amp.GradScaler("cpu")
        elif name != "fp32":
            self._accelerator, self._state = _make_accelerator(name, device)
            self.scaler = self._accelerator.scaler

    def enter_turn(self) -> None:
        """Put this member's ``accelerate`` state in place; call it before the first step of a turn."""
        if self._accelerator is not None:
            _install_state(self._state)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which forward and loss are computed."""
        if self._accelerator is not None:
            return self._accelerator.autocast()
        if self.name == "fp16":
            return torch.autocast(self.device.type, dtype=torch.float16)
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Compute gradients of ``loss``, shape ``()``, scaled if there is a scaler."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self, optimizer: torch.optim.Optimizer, module: torch.nn.Module, clip_grad_norm: float | None) -> None:
        """Clip if asked to, then let ``optimizer`` step; with a scaler, on unscaled gradients and only if they are finite."""
        if clip_grad_norm is not None:
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip_grad_norm)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return the scaler's state, empty without one."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)


def _make_accelerator(name: str, device: torch.device) -> tuple[Accelerator, dict[str, Any]]:
    # Imported here: accelerate costs 0.7 s and tens of MiB, which a hybrid of fp32 members need not pay.
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._shared_state.clear()
    accelerator = Accelerator(mixed_precision=name, cpu=device.type == "cpu", device_placement=False)
    return accelerator, dict(AcceleratorState._shared_state)


def _install_state(state: dict[str, Any]) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._shared_state.clear()
    AcceleratorState._shared_state.update(state)
