"""Take a model apart into blocks (paper, section 4.2; design, section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fusion.graph.assembly import Source, assemble, leftovers
from fusion.graph.block import BlockSequence, Inputs, Signature
from fusion.graph.borrowing import borrowed
from fusion.graph.capture import call, capture
from fusion.graph.captured import Captured, from_program, kept_apart, plain
from fusion.graph.coarsen import coarsen, segments
from fusion.graph.cuts import Analysis, analyze
from fusion.graph.errors import CaptureError
from fusion.graph.extract import spans
from fusion.graph.gradients import check_gradients, cut_off
from fusion.graph.kinds import find_primary
from fusion.graph.layout import feature_of
from fusion.graph.normalize import normalize
from fusion.graph.notes import notes_on
from fusion.graph.rebatch import rebatch
from fusion.graph.toggles import align, outputs_alike, switched_on
from fusion.graph.verify import Plan, Run, check_outputs, check_partition


def parse(
    model: nn.Module | ExportedProgram,
    example_inputs: Inputs,
    *,
    name: str = "model",
    max_blocks: int = 24,
    primary: str | int | None = None,
) -> BlockSequence:
    """Take a model apart into a chain of blocks that gives what the model gives.

    The model is not changed. The blocks hold its own parameters and buffers, not copies.

    Args:
        model: Any module that ``torch.export`` can capture, or a program that was exported before.
        example_inputs: A tensor, a tuple for positional inputs, or a mapping for keyword inputs; the batch is dimension 0.
        name: Name of the model in messages.
        max_blocks: Largest number of blocks; neighbours are joined where there are more.
        primary: Name or position of the input at which the path of features begins, where there are several floats.

    Returns:
        The blocks, in the mode of the model.

    Raises:
        CaptureError: If the model cannot be captured or the blocks do not give what it gives.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> sequence = parse(model, torch.zeros(2, 4))
        >>> [(block.name, block.op_type, block.capacity) for block in sequence.blocks]
        [('0', 'linear', 40), ('2', 'linear', 18)]
    """
    names = _names(model, example_inputs)
    inputs = _flat(example_inputs, names)
    evaluation, training, notes = _captures(model, inputs, names, name)
    start = find_primary(evaluation, name, names) if primary is None else _position(primary, names, len(inputs))
    plans, block_names = _cut(analyze(evaluation, start), analyze(training, start), max_blocks)
    is_exact, _ = (check_partition(plan, block_names) for plan in plans)
    source = Source(model)
    blocks = assemble(plans, block_names, source)
    spare, keys = leftovers(source, blocks)
    notes += notes_on(plans[0].analysis, plans[0].spans, block_names, spare, name)
    signature = Signature(names=names, features=tuple(map(feature_of, evaluation.inputs)), primary=start)
    num_cuts = len(plans[0].analysis.cuts)
    sequence = BlockSequence(blocks, signature, name=name, notes=notes, spare=spare, keys=keys, num_cuts=num_cuts)
    sequence.train(isinstance(model, nn.Module) and model.training)
    with _reference(model, names, is_lent=evaluation.is_lent) as reference:
        check_outputs(reference, sequence, inputs, plans[0], is_exact=is_exact)
        check_gradients(evaluation, reference, inputs, name)
    return sequence


def _names(model: nn.Module | ExportedProgram, inputs: Inputs) -> tuple[str, ...] | None:
    """Return the keyword names of the inputs, in the order of a program that has one."""
    if not isinstance(inputs, Mapping):
        return None
    names = tuple(inputs)
    if isinstance(model, ExportedProgram):
        spec = model.call_spec.in_spec
        assert spec is not None, "torch.export records how it was called"
        _, keywords = spec.children()
        order = tuple(keywords.context or ()) or tuple(model.graph_signature.user_inputs)
        if set(order) != set(names):
            raise CaptureError(f"the program takes the inputs {', '.join(map(str, order))}, got {', '.join(names)}")
        names = tuple(str(name) for name in order)
    return names


def _flat(inputs: Inputs, names: tuple[str, ...] | None) -> tuple[Tensor, ...]:
    if isinstance(inputs, Tensor):
        return (inputs,)
    if isinstance(inputs, Mapping):
        return tuple(inputs[name] for name in names or ())
    return tuple(inputs)


def _position(primary: str | int, names: tuple[str, ...] | None, num_inputs: int) -> int:
    if isinstance(primary, int) and 0 <= primary < num_inputs:
        return primary
    if isinstance(primary, str) and names is not None and primary in names:
        return names.index(primary)
    raise CaptureError(f"primary={primary!r} is no input; expected one of {names or f'the positions 0 to {num_inputs - 1}'}")


def _captures(
    model: nn.Module | ExportedProgram, inputs: tuple[Tensor, ...], names: tuple[str, ...] | None, label: str
) -> tuple[Captured, Captured, list[str]]:
    """Return the normalized graphs for evaluation and for training, and what is to be said of them."""
    if isinstance(model, ExportedProgram):
        evaluation, notes = _ready(from_program(model), label)
        return evaluation, switched_on(evaluation, None), notes
    evaluation, notes = _ready(capture(model, inputs, names, training=False, label=label), label)
    try:
        training, _ = _ready(capture(model, inputs, names, training=True, label=label), label)
    except CaptureError as error:
        note = (
            f"train() forward of '{label}' cannot be captured; using the eval graph, dropout and stochastic depth off: {error}"
        )
        return evaluation, switched_on(evaluation, None), [*notes, note]
    lost = set(cut_off(training)) - set(cut_off(evaluation))
    if outputs_alike(training, evaluation) and not lost:
        return evaluation, kept_apart(training, evaluation), notes
    reason = f"gives no gradient to {min(lost)}" if lost else "has other outputs"
    note = f"train() forward of '{label}' {reason}; using the eval graph, dropout and stochastic depth off"
    return evaluation, switched_on(evaluation, training), [*notes, note]


def _ready(captured: Captured, label: str) -> tuple[Captured, list[str]]:
    """Return a captured graph ready to be cut, for any batch."""
    batch = captured.static_batch
    normalize(captured)
    if batch is None:
        return captured, []
    captured, num_literals = rebatch(captured, label)
    note = f"captured for batch {batch}; generalised {num_literals} literals; check at batch {2 * batch} passed"
    return captured, [note]  # the check comes later, and raises if it fails


def _cut(evaluation: Analysis, training: Analysis, max_blocks: int) -> tuple[tuple[Plan, Plan], list[str]]:
    """Cut both graphs at the same places; return also the names of the blocks."""
    pairs = align(training.captured, evaluation.captured)
    shared = set(training.cuts)
    matched: dict[fx.Node, fx.Node] = {cut: pairs[cut] for cut in evaluation.cuts if pairs.get(cut) in shared}
    blocks = coarsen(segments(evaluation, list(matched)), max_blocks)
    chosen = [block.nodes[-1] for block in blocks[:-1]]
    plans = (
        Plan(analysis=evaluation, spans=spans(evaluation, chosen)),
        Plan(analysis=training, spans=spans(training, [matched[cut] for cut in chosen])),
    )
    return plans, [block.name for block in blocks]


@contextmanager
def _reference(model: nn.Module | ExportedProgram, names: tuple[str, ...] | None, *, is_lent: bool) -> Iterator[Run]:
    """Yield the model in evaluation as a function of its raw inputs."""
    if isinstance(model, ExportedProgram):
        module = model.module()
        yield lambda inputs: plain(call(module, inputs, names))
    else:
        with borrowed(model, training=False, is_lent=is_lent) as used:
            yield lambda inputs: plain(call(used, inputs, names))
