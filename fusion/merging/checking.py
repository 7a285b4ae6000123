"""Whether the layers that a network was read as answer as it does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from fusion.graph.captured import Captured
from fusion.merging.errors import MergeError
from fusion.merging.layers import Network
from fusion.merging.reconnect import alone

TOLERANCE = 1e-3  #: of the largest output; above what another order of the same sums makes, below what a wrong layer makes
LOW_PRECISION = 5e-2  #: the same for formats of 16 bits


def check_reading(network: Network, captured: Captured) -> None:
    """Run a network both ways, on its example and on a batch of another size.

    Raises:
        MergeError: If the answers differ, or the layers cannot be run.
    """
    rebuilt = alone(network)
    longer = torch.cat([network.example, network.example[:1]])
    remedy = "keep what is unusual in it private with private=[…]"
    for inputs in (network.example, longer):
        with torch.no_grad():
            try:
                expected = _answer(captured, inputs)
            except (RuntimeError, IndexError, TypeError) as error:  # of operators: other types of numbers, a fixed batch size
                why = str(error).splitlines()[0]
                raise MergeError(
                    f"{network.name}: cannot be run on {len(inputs)} samples of {inputs.dtype} ({why}); give a network and "
                    "samples of one type of numbers, and a network for any number of samples"
                ) from error
            try:
                answer = rebuilt(inputs)[network.name]
            except (RuntimeError, IndexError, TypeError) as error:  # of operators, over sizes that its layers do not have
                raise MergeError(
                    f"{network.name}: cannot be run layer by layer on {len(inputs)} samples ({error}); {remedy}"
                ) from error
        if answer.shape != expected.shape or not _is_close(answer, expected):
            raise MergeError(f"{network.name}: does not answer the same when it is run layer by layer; {remedy}")


def _is_close(answer: Tensor, expected: Tensor) -> bool:
    relative = TOLERANCE if torch.finfo(expected.dtype).bits > 16 else LOW_PRECISION
    largest = float(expected.abs().nan_to_num().max()) if expected.numel() else 0.0
    return torch.allclose(answer, expected, rtol=0, atol=relative * max(largest, 1e-3), equal_nan=True)


def _answer(captured: Captured, inputs: Tensor) -> Tensor:
    (answer,) = [value for value in _Run(captured).run(inputs) if isinstance(value, Tensor)]
    return answer


class _Run(fx.Interpreter):
    """Runs a captured graph."""

    def __init__(self, captured: Captured) -> None:
        super().__init__(nn.Module(), graph=captured.graph)
        self._captured = captured

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        del args, kwargs
        name = str(target)
        return self._captured.tensors[name] if name in self._captured.tensors else self._captured.parts[name]
