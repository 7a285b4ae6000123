"""Check that a chain of blocks is the model it was made from; equal outputs are not enough (design 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fusion.graph.block import BlockSequence, register
from fusion.graph.capture import at_batch, batch_size
from fusion.graph.cuts import Analysis
from fusion.graph.errors import CaptureError
from fusion.graph.extract import Span, required
from fusion.graph.flop_counter import FlopCounter
from fusion.graph.kinds import Kind
from fusion.graph.operators import EMBEDDING, HEAVY, packet
from fusion.graph.program import Program

_TOLERANCE = 1e-5  # relative to the largest value of an output: kernels may add up in another order

Run = Callable[[tuple[Tensor, ...]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one graph of a model was cut."""

    analysis: Analysis
    spans: Sequence[Span]


def check_partition(plan: Plan, names: Sequence[str]) -> bool:
    """Check that whatever is heavy or keeps state runs in exactly one block.

    Args:
        plan: How the graph was cut.
        names: Names of the blocks.

    Returns:
        Whether no product at all is made twice, not even one of constants.

    Raises:
        CaptureError: If a parameter is used in two blocks where the model uses it once.
    """
    places: dict[fx.Node, list[int]] = {}
    for index, span in enumerate(plan.spans):
        for node in required(plan.analysis, span) - {span.source}:
            places.setdefault(node, []).append(index)
    is_exact = True
    for node, found in places.items():
        if len(found) == 1 or packet(node) not in HEAVY:
            continue
        is_exact = False
        parameters = [str(need.target) for need in node.all_input_nodes if need.op == "get_attr"]
        is_table = plan.analysis.kinds[node] is Kind.CONST and packet(node) in EMBEDDING
        if isinstance(next(iter(parameters), None), str) and not is_table and _is_learned(plan.analysis, parameters):
            raise CaptureError(
                f"parameter {parameters[0]} is used by blocks {names[found[0]]} and {names[found[1]]} but once in the model; "
                "partition rejected"
            )
    missing = [node.name for node in plan.analysis.order if len(places.get(node, [])) != 1]
    assert not missing, f"main nodes must be in exactly one block: {missing[:5]}"
    return is_exact


def check_outputs(reference: Run, sequence: BlockSequence, inputs: tuple[Tensor, ...], plan: Plan, *, is_exact: bool) -> None:
    """Check outputs, and the work done for them, against those of the model, at the traced batch and at another one.

    Args:
        reference: The model in evaluation.
        sequence: Its blocks.
        inputs: Example inputs.
        plan: How the evaluation graph was cut.
        is_exact: Whether the blocks must make exactly the model's multiplications.

    Raises:
        CaptureError: If something differs.
    """
    static = plan.analysis.captured.static_batch
    primary = sequence.signature.primary
    was_training = sequence.training
    sequence.eval()
    try:
        with torch.no_grad():
            if static is not None and all(_takes(reference, _varied(inputs, size, primary)) for size in (2, 3)):
                static = None
            for size in (2, 3) if static is None else (static, 2 * static):
                batch = _varied(inputs, size, primary)
                _check_at(_by_parts(reference, static), sequence, batch, plan, is_exact=is_exact and static is None)
    finally:
        sequence.train(was_training)


def _check_at(reference: Run, sequence: BlockSequence, batch: tuple[Tensor, ...], plan: Plan, *, is_exact: bool) -> None:
    with FlopCounter() as wanted:
        expected = reference(tuple(value.clone() for value in batch))  # it may write into its inputs
    with FlopCounter() as done:
        found = sequence.run(batch)
    left, right = pytree.tree_leaves(expected), pytree.tree_leaves(found)
    for index, (value, other) in enumerate(zip(left, right, strict=True)):
        difference = _difference(value, other)
        if difference > 0:
            block = _first_differing(sequence, batch, plan)
            raise CaptureError(
                f"block sequence differs from model '{sequence.name}' by {difference:.3g} at output {index}; "
                f"first differing block: {block}"
            )
    work, own = done.get_total_flops(), wanted.get_total_flops()
    if is_exact and work != own:
        raise CaptureError(f"the blocks of model '{sequence.name}' make {work} FLOPs where it makes {own}; partition rejected")


def _difference(expected: Any, found: Any) -> float:
    """Return the largest difference; 0 if it is within the tolerance."""
    if not isinstance(expected, Tensor) or not expected.numel():
        return 0.0
    left, right = expected.double(), found.double()
    if left.shape != right.shape:
        return float("inf")
    scale = max(1.0, left[left.isfinite()].abs().max().item() if left.isfinite().any() else 1.0)
    if torch.allclose(left, right, rtol=0.0, atol=_TOLERANCE * scale, equal_nan=True):
        return 0.0
    return float((left - right).abs().nan_to_num(nan=float("inf")).max().item())


def _first_differing(sequence: BlockSequence, batch: tuple[Tensor, ...], plan: Plan) -> str:
    """Return the first block whose result is not the value that the uncut graph has there."""
    captured = plan.analysis.captured
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(captured.graph, made)
    graph.output(tuple(made[span.result] for span in plan.spans if span.result is not None))
    home = nn.Module()
    for name, tensor in captured.tensors.items():
        register(home, name, tensor, is_persistent=False)
    expected = Program(graph, captured.parts)(home, batch)
    features = sequence.features(batch)[1:]
    for index, (value, other) in enumerate(zip(expected, features, strict=True)):
        if _difference(value, other) > 0:
            return str(sequence.blocks[index].name or index)
    return str(sequence.blocks[-1].name or len(sequence.blocks) - 1)


def _varied(inputs: tuple[Tensor, ...], size: int, primary: int) -> tuple[Tensor, ...]:
    """Return the inputs at another batch; where samples repeat, a float primary input is scaled so that they differ."""
    batch = list(at_batch(inputs, size))
    value = batch[primary]
    if value.is_floating_point():
        rounds = torch.arange(size, device=value.device) // batch_size(inputs)
        batch[primary] = value * (1 + 0.05 * rounds.to(value.dtype)).reshape(-1, *[1] * (value.ndim - 1))
    return tuple(batch)


def _takes(reference: Run, batch: tuple[Tensor, ...]) -> bool:
    """Return whether the model runs at another batch than that of its capture."""
    try:
        reference(batch)
    except Exception:  # noqa: BLE001  a model that is bound to its batch raises what it likes
        return False
    return True


def _by_parts(reference: Run, static: int | None) -> Run:
    """Return the reference, run on parts of its own batch where it takes no other."""
    return reference if static is None else _Parts(reference, static)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Runs a model that takes one batch size only on larger batches."""

    reference: Run
    static: int

    def __call__(self, inputs: tuple[Tensor, ...]) -> Any:
        size = batch_size(inputs)
        outputs = [self.reference(_rows(inputs, size, slice(at, at + self.static))) for at in range(0, size, self.static)]
        leaves = [pytree.tree_leaves(output) for output in outputs]
        return [torch.cat(values) if isinstance(values[0], Tensor) else values[0] for values in zip(*leaves, strict=True)]


def _rows(inputs: tuple[Tensor, ...], size: int, rows: slice) -> tuple[Tensor, ...]:
    return tuple(value[rows] if value.ndim and value.shape[0] == size else value for value in inputs)


def _is_learned(analysis: Analysis, names: Sequence[str]) -> bool:
    return any(isinstance(analysis.captured.tensors.get(name), nn.Parameter) for name in names)
