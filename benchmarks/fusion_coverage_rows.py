"""What comes of capturing one model of the zoo: outputs, parameters, work and training against the model's own (design 3.4)."""

from __future__ import annotations

import dataclasses
import gc
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from benchmarks.fusion_zoo import EXAMPLE_BATCH, Values, ZooModel, call
from fusion.graph.block import BlockSequence
from fusion.graph.errors import CaptureError
from fusion.graph.parse import parse
from fusion.search.flops import block_flops, count_flops

TOLERANCE = 1e-5
UNTRACED_BATCH = 3
MAX_TRAINED_PARAMETERS = 40_000_000  # gradients of larger models are not worth the memory
_HEAVY = re.compile(
    r"convolution|^(add|ba?dd)?b?mm$|^addmv$|embedding|attention|lstm|gru|rnn|^_?fft|linear|bilinear|einsum|scatter_mm"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of one model. Fields that do not apply are None.

    Attributes:
        name: Of the model.
        family: Its family.
        is_core: Whether the targets count it.
        outcome: ``captured``, ``refused`` (in words of the package), ``wrong`` (captured, but it answers otherwise),
            ``crashed`` (another exception) or ``not-run`` (its library is missing).
        message: Of the refusal or the exception.
        is_expected: Whether the outcome is what the zoo says it has to be.
        seconds: To capture it.
        parameters: Number of elements.
        blocks: Number of blocks.
        cuts: Number of places where it could be cut.
        largest_share: Of the FLOPs, that of the largest block.
        largest_block: Name of that block.
        spread: Largest difference between two samples' outputs: how much an error can show.
        difference: Largest absolute difference of outputs, at the traced batch with other values. As the other two: to the
            model without the fast path of ``nn.MultiheadAttention``, which PyTorch takes where no gradient is wanted.
        difference_untraced: The same at another batch.
        difference_single: The same at a batch of one; infinite if it fails.
        difference_fast: The first, to the model with that path, whose fused kernels round otherwise.
        parameters_identical: Whether all parameters are the model's own objects, under its names.
        duplicated_heavy: Calls of heavy operators that the blocks make more than the model.
        repeated_constant: The same for calls that take nothing but constants and parameters, such as tables of positions.
        writing_blocks: Blocks that write into what they take, which another task may share.
        flops: Of the model, per sample.
        flops_difference: Of the sum over blocks to it.
        train_difference: Largest difference of outputs and gradients in training mode, same random numbers; None for models
            that are too large or do not train on such inputs, infinite where the blocks do not train as the model does.
        stale_buffers: Buffers that differ after the forward pass in training mode.
        notes: Warnings of the capture.
    """

    name: str
    family: str
    is_core: bool
    outcome: str
    is_expected: bool
    message: str = ""
    seconds: float | None = None
    parameters: int | None = None
    blocks: int | None = None
    cuts: int | None = None
    largest_share: float | None = None
    largest_block: str | None = None
    spread: float | None = None
    difference: float | None = None
    difference_untraced: float | None = None
    difference_single: float | None = None
    difference_fast: float | None = None
    parameters_identical: bool | None = None
    duplicated_heavy: int | None = None
    repeated_constant: int | None = None
    writing_blocks: int | None = None
    flops: int | None = None
    flops_difference: int | None = None
    train_difference: float | None = None
    stale_buffers: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> float | None:
        """Largest difference of outputs at the traced and the untraced batch, with and without the fast path."""
        found = (self.difference, self.difference_untraced, self.difference_fast)
        return None if None in found else max(value for value in found if value is not None)

    @property
    def is_for_training(self) -> bool:
        """Whether the package says that the blocks train as the model does."""
        return self.train_difference is not None and not any(note.startswith("train() forward") for note in self.notes)

    @property
    def is_bitwise(self) -> bool:
        """Whether the blocks do what the model's own operators do, to the last bit."""
        return self.difference == 0 and self.difference_untraced == 0


def examine(entry: ZooModel) -> Row:
    """Capture a model and compare it with itself; frees it afterwards."""
    head: dict[str, Any] = {"name": entry.name, "family": entry.family, "is_core": entry.is_core}
    if not entry.is_available:
        return Row(**head, outcome="not-run", is_expected=True, message=f"{entry.family} is not installed")
    model = entry.build()
    start = time.perf_counter()
    try:
        sequence = parse(model, entry.inputs(), name=entry.name, primary=entry.primary)
    except CaptureError as error:
        text = str(error)
        is_expected = entry.refusal is not None and re.search(entry.refusal, text) is not None
        return Row(**head, outcome="refused", is_expected=is_expected, message=without_folders(text))
    except Exception as error:  # noqa: BLE001  a crash is a finding, and the others are to be looked at still
        text = f"{type(error).__name__}: {error}"
        return Row(**head, outcome="crashed", is_expected=False, message=without_folders(text))
    seconds = time.perf_counter() - start
    row = Row(**head, outcome="captured", is_expected=entry.refusal is None, seconds=seconds, **_structure(model, sequence))
    row = dataclasses.replace(row, **_outputs(entry, model, sequence))
    assert row.worst is not None, "a captured model has been compared"
    if not row.worst <= TOLERANCE:
        row = dataclasses.replace(row, outcome="wrong", is_expected=False)
    row = dataclasses.replace(row, **_work(entry, model, sequence))
    if row.parameters is not None and row.parameters <= MAX_TRAINED_PARAMETERS:
        row = dataclasses.replace(row, **_training(entry, model, sequence))
    del model, sequence
    gc.collect()
    return row


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors of an output in order, whatever records and mappings they are in; without caches."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [found for item in value.values() for found in tensors(item)]
    if isinstance(value, list | tuple):
        return [found for item in value for found in tensors(item)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [found for field in dataclasses.fields(value) for found in tensors(getattr(value, field.name))]
    return []


def difference(expected: Any, found: Any) -> float:
    """Return the largest absolute difference of two outputs; infinite if they are of another form or not finite."""
    left, right = tensors(expected), tensors(found)
    if isinstance(expected, Mapping) and (not isinstance(found, Mapping) or [*expected] != [*found]):
        kept = [key for key, item in expected.items() if tensors(item)]
        if not isinstance(found, Mapping) or kept != [*found]:
            return float("inf")
    if len(left) != len(right) or not left:
        return float("inf")
    return max(_difference(one, other) for one, other in zip(left, right, strict=True))


def _difference(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    if torch.equal(one, other):
        return 0.0
    found = (one.detach().double() - other.detach().double()).abs().max().item()
    return found if math.isfinite(found) else float("inf")


def _structure(model: nn.Module, sequence: BlockSequence) -> dict[str, Any]:
    own = dict(model.named_parameters(remove_duplicate=False))
    held = sequence.state_dict(keep_vars=True)
    is_same = all(held.get(name) is parameter for name, parameter in own.items())
    reached = {id(parameter) for parameter in sequence.parameters()}
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "parameters_identical": is_same and reached == {id(parameter) for parameter in own.values()},
        "blocks": len(sequence.blocks),
        "cuts": sequence.num_cuts,
        "notes": tuple(map(without_folders, sequence.notes)),
    }


@torch.no_grad()
def _outputs(entry: ZooModel, model: nn.Module, sequence: BlockSequence) -> dict[str, Any]:
    made: dict[str, Any] = {}
    values = entry.inputs(EXAMPLE_BATCH, seed=EXAMPLE_BATCH)
    made["difference_fast"] = difference(call(model, values), call(sequence, values))
    with plain_attention():
        for field, batch in (("difference", EXAMPLE_BATCH), ("difference_untraced", UNTRACED_BATCH)):
            values = entry.inputs(batch, seed=batch)
            expected = call(model, values)
            made[field] = difference(expected, call(sequence, values))
            made["spread"] = max((_spread(value) for value in tensors(expected)), default=0.0)
        values = entry.inputs(1, seed=11)
        try:
            made["difference_single"] = difference(call(model, values), call(sequence, values))
        except (RuntimeError, ValueError):
            made["difference_single"] = float("inf")
    return made


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keep PyTorch from calling one operator for a whole attention layer, in which nothing could be counted."""
    was_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fast)


def _spread(value: Tensor) -> float:
    return (value[0].double() - value[1].double()).abs().max().item() if value.ndim and len(value) > 1 else 0.0


def _work(entry: ZooModel, model: nn.Module, sequence: BlockSequence) -> dict[str, Any]:
    values = entry.inputs()
    inputs = sequence.signature.flatten(values)
    by_block = block_flops(sequence, inputs)
    total = round(count_flops(_Positional(model, sequence.signature.names), inputs) / EXAMPLE_BATCH)
    largest = max(range(len(by_block)), key=by_block.__getitem__)
    once, again = heavy_calls(model, values), heavy_calls(sequence, values)
    return {
        "flops": total,
        "flops_difference": sum(by_block) - total,
        "largest_share": by_block[largest] / sum(by_block) if sum(by_block) else 1.0,
        "largest_block": sequence.blocks[largest].name,
        "writing_blocks": _writing_blocks(sequence, inputs),
        "duplicated_heavy": sum((again[0] - once[0]).values()),
        "repeated_constant": sum((again[1] - once[1]).values()),
    }


@torch.no_grad()
def _writing_blocks(sequence: BlockSequence, inputs: Sequence[Tensor]) -> int:
    found = 0
    with torch.random.fork_rng(devices=[]):  # dropout draws
        for training in (False, True):
            sequence.train(training)
            for block, feature in zip(sequence.blocks, sequence.features(inputs), strict=True):
                taken = [feature, *(inputs[position] for position in block.needs)]
                versions = [value._version for value in taken]
                block(*taken)
                found += versions != [value._version for value in taken]
    sequence.eval()
    return found


def heavy_calls(module: nn.Module, values: Values) -> tuple[Counter[str], Counter[str]]:
    """Return how often heavy operators are called in one forward pass on what depends on the inputs, and on constants."""
    counting = _Counting(values)
    with plain_attention(), torch.no_grad(), counting:
        call(module, values)
    return counting.calls, counting.constant_calls


def _training(entry: ZooModel, model: nn.Module, sequence: BlockSequence) -> dict[str, Any]:
    """Compare one forward and backward pass in training mode, from the same buffers and random numbers."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        mine = _pass(entry, model, model, buffers)
    except (RuntimeError, ValueError, TypeError):
        return {}  # it does not train on such inputs itself
    try:
        theirs = _pass(entry, sequence, model, buffers)
    except (RuntimeError, ValueError):
        return {"train_difference": float("inf")}
    if len(mine.outputs) != len(theirs.outputs) or mine.gradients.keys() != theirs.gradients.keys():
        return {"train_difference": float("inf")}
    outputs = max(map(_difference, mine.outputs, theirs.outputs), default=0.0)
    gradients = max((_difference(value, theirs.gradients[name]) for name, value in mine.gradients.items()), default=0.0)
    stale = sum(not torch.equal(value, theirs.buffers[name]) for name, value in mine.buffers.items())
    return {"train_difference": max(outputs, gradients), "stale_buffers": stale}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """What a pass in training mode leaves behind."""

    outputs: list[Tensor]
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def _pass(entry: ZooModel, module: nn.Module, owner: nn.Module, buffers: Mapping[str, Tensor]) -> _Pass:
    """Run ``module``, whose parameters and buffers are those of ``owner``, forward and back."""
    with torch.no_grad():
        for name, buffer in owner.named_buffers():
            buffer.copy_(buffers[name])
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            outputs = tensors(call(module.train(), entry.inputs(4, seed=4)))
            torch.stack([value.square().mean() for value in outputs if value.is_floating_point()]).sum().backward()
        return _Pass(
            outputs=[value.detach() for value in outputs],
            gradients={name: value.grad for name, value in owner.named_parameters() if value.grad is not None},
            buffers={name: buffer.clone() for name, buffer in owner.named_buffers()},
        )
    finally:
        owner.zero_grad(set_to_none=True)
        module.eval()


class _Counting(TorchDispatchMode):
    """Counts calls of heavy operators, apart those that take nothing made from the inputs."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.constant_calls: Counter[str] = Counter()
        self._from_inputs = WeakTensorKeyDictionary(dict.fromkeys(tensors(values), True))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        depends = any(value in self._from_inputs for value in tensors([*args, *kwargs.values()]))
        name = func._schema.name.split("::")[1]
        if _HEAVY.search(name):
            (self.calls if depends else self.constant_calls)[name] += 1
        result = func(*args, **kwargs)
        if depends:
            for value in tensors(result):
                self._from_inputs[value] = True
        return result


class _Positional(nn.Module):
    """A model whose keyword inputs are given by position."""

    def __init__(self, model: nn.Module, names: tuple[str, ...] | None) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Any:
        return call(self.model, inputs if self.names is None else dict(zip(self.names, inputs, strict=True)))


def without_folders(text: str) -> str:
    """Return a message without this machine's folders, shortened."""
    return re.sub(r"(/[\w.+-]+)+/(?=[\w.+-]+)", "…/", text)[:600]
