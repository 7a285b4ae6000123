"""Compare a loaded model with the eager one, bit for bit: a few training steps, and evaluation."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unified.errors import ExportError
from unified.submission.output_structure import flatten
from unified.submission.source_lines import line_of_error

Call = Callable[[nn.Module, Sequence[Tensor]], Any]


def differences(
    eager: nn.Module, loaded: nn.Module, tensors: list[Tensor], call: Call, sizes: Sequence[int] = ()
) -> str | None:
    """Train and evaluate both and say what differs first, or return None. Both are changed by it.

    Args:
        eager: The original.
        loaded: Its copy under test.
        tensors: Example inputs of shapes (batch, …).
        call: Calls a model with such inputs.
        sizes: Batch sizes to compare at, beside those of the example, twice as many and one, and one.

    Raises:
        ExportError: If one of them fails, or gives what no archive can hold.
    """
    batch = len(tensors[0])
    for size in (batch, 2 * batch + 1, 1, *sizes):
        inputs = _resized(tensors, size)
        for training, compare in ((True, _compare_step), (False, _compare_evaluation)):
            # some models refuse some sizes, as batch normalisation refuses one value; their plain loop would fail, too
            if size == batch or (_accepts(eager, inputs, call, training=training) and not _is_too_small(loaded, inputs, call)):
                difference = compare(eager, loaded, inputs, call)
                if difference is not None:
                    return f"{'training' if training else 'evaluating'} with a batch of {size}, {difference}"
    return None


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Put the random states of Python, NumPy and PyTorch back as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - models may draw from the old global state
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _compare_step(eager: nn.Module, loaded: nn.Module, tensors: list[Tensor], call: Call) -> str | None:
    outcomes = [_attempt(who, _step, model, tensors, call) for who, model in _named(eager, loaded)]
    for name, value in outcomes[0].items():
        other = outcomes[1].get(name)
        if not _same(value, other):
            return f"{name} differs{_by_how_much(value, other)}"
    return None


def _compare_evaluation(eager: nn.Module, loaded: nn.Module, tensors: list[Tensor], call: Call) -> str | None:
    outcomes = [_attempt(who, _evaluate, model, tensors, call) for who, model in _named(eager, loaded)]
    for index, (value, other) in enumerate(zip(*outcomes, strict=True)):
        if not _same(value, other):
            return f"output {index} differs{_by_how_much(value, other)}"
    return None


def _named(eager: nn.Module, loaded: nn.Module) -> tuple[tuple[str, nn.Module], ...]:
    return (("the model itself", eager), ("its stored graph", loaded))


def _attempt(who: str, run: Callable[..., Any], *args: Any) -> Any:
    try:
        return run(*args)
    except Exception as error:
        line = line_of_error(error)
        raise ExportError(f"{who} fails on the example: {error}" + (f"\n  {line}" if line else "")) from error


def _evaluate(model: nn.Module, tensors: list[Tensor], call: Call) -> list[Any]:
    model.eval()
    torch.default_generator.manual_seed(1)
    with torch.no_grad():
        return _leaves(call(model, [tensor.clone() for tensor in tensors]))


def _step(model: nn.Module, tensors: list[Tensor], call: Call) -> dict[str, Any]:
    """Train for one step and return all that came of it, in the order in which it came about."""
    model.train()
    model.zero_grad(set_to_none=True)
    torch.default_generator.manual_seed(0)
    outputs = _leaves(call(model, [tensor.clone() for tensor in tensors]))
    found: dict[str, Any] = {f"output {index}": value for index, value in enumerate(outputs)}
    loss = _loss(outputs)
    if loss is not None:
        loss.backward()
    found |= {f"the gradient of {name}": p.grad for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
    found |= {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    found |= {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    found["the random state"] = torch.get_rng_state()
    return found


def _accepts(eager: nn.Module, tensors: list[Tensor], call: Call, *, training: bool) -> bool:
    """Whether the eager model takes these inputs; what that does to its buffers is undone."""
    return _failure(eager.train(training), tensors, call) is None


def _is_too_small(loaded: nn.Module, tensors: list[Tensor], call: Call) -> bool:
    """Whether these are too few samples for batch statistics: graphs refuse them as ``nn.BatchNorm``, a ``.pt2`` does not."""
    if len(tensors[0]) > 1:
        return False
    return "more than 1 value per channel" in str(_failure(loaded.train(), tensors, call))


def _failure(model: nn.Module, tensors: list[Tensor], call: Call) -> Exception | None:
    """Return what a model raises on these inputs, None if it takes them; what that does to its buffers is undone."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.no_grad():
            call(model, [tensor.clone() for tensor in tensors])
    except Exception as error:  # noqa: BLE001 - whatever the model raises
        return error
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
    return None


def _loss(outputs: list[Any]) -> Tensor | None:
    """Weigh every output value differently, so that no gradient cancels out."""
    terms = []
    for output in outputs:
        if isinstance(output, Tensor) and output.requires_grad:
            flat = output.flatten().float().nan_to_num(0.0, 0.0, 0.0)
            terms.append((flat * torch.cos(torch.arange(len(flat)))).mean())
    return torch.stack(terms).sum() if terms else None


def _leaves(output: Any) -> list[Any]:
    leaves: list[Any] = []
    structure = flatten(output, leaves)
    return [*leaves, structure]


def _resized(tensors: list[Tensor], size: int) -> list[Tensor]:
    """Return inputs of ``size`` samples, repeating those there are."""
    return [tensor[torch.arange(size) % len(tensor)] for tensor in tensors]


def _same(one: Any, other: Any) -> bool:
    """Whether two results are equal bit for bit, NaN being equal to itself."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and one == other
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _by_how_much(one: Any, other: Any) -> str:
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape:
        return f" by up to {(one.double() - other.double()).abs().max():.3g}"
    return f": {str(one)[:100]} and {str(other)[:100]}"
