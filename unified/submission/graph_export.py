"""Export one mode of a model with ``torch.export``, so that the graph does what the eager model does."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from unified.errors import ExportError
from unified.submission.output_structure import flatten
from unified.submission.source_lines import line_of_error

#: Up to here a bound on the batch size is put to the test; beyond, it comes from the limits of integers.
_MAX_COMPARED_BATCH = 1024

#: What PyTorch adds to its errors for its own developers.
_NOISE = re.compile(
    r"The error above occurred when calling torch.export[^\n]*|For more information, run with [^\n]*|"
    r"The following call raised this error:\n[^\n]*\n[^\n]*|Suggested fixes:[^\n]*\n[^\n]*|"
    r"(consider using data-dependent|Caused by:|For extended|If you suspect|For more debugging|For C\+\+)[^\n]*",
)

#: What to do, by a part of PyTorch's reason.
_ADVICE = {
    "data-dependent": "A stored graph cannot branch on values of tensors: use torch.where, or hand in a trusted .pt file.",
    "onstraints violated": "The batch size must stay free: use x.size(0) or -1 instead of a number.",
    "constant's list": "Does forward write through .data, or keep tensors from one call to the next? Use buffers.",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is traced.

    Attributes:
        model: A copy of the user's model, on the CPU.
        names: The names of its inputs.
        tensors: An example of each, of two samples or more.
        call: Calls a model with such tensors.
        ties: Each tied name with the name it is stored under.
    """

    model: nn.Module
    names: Sequence[str]
    tensors: list[Tensor]
    call: Callable[[nn.Module, Sequence[Tensor]], Any]
    ties: Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What PyTorch exported.

    Attributes:
        program: The graph, its placeholders and outputs being tensors.
        structure: The structure of the model's output, its leaves numbering the outputs.
        doubtful_sizes: Batch sizes at which PyTorch saw that the model might branch.
    """

    program: ExportedProgram
    structure: Any
    doubtful_sizes: tuple[int, ...]


def export_mode(subject: Subject, mode: str) -> Exported:
    """Export as the eager model runs; where that cannot be traced, as PyTorch exports by itself.

    The batch size must be free. PyTorch complains where it might not be, among others where one of its own operators chooses
    its algorithm by size; what it does not know for certain is then left to a comparison at doubtful batch sizes.

    Raises:
        ExportError: If PyTorch cannot export the model, with its reason and the user's line.
    """
    training = mode == "train"
    subject.model.train(training)
    eager = functools.partial(_as_eager, fast_paths=not training)
    failures: list[Exception] = []
    for regions, dim in ((eager, Dim("batch")), (contextlib.nullcontext, Dim("batch")), (eager, Dim.AUTO)):
        structures: list[Any] = []
        plain = _Plain(subject, regions, structures.append)
        plain.training = training
        shapes = ([{0: dim} for _ in subject.tensors],)
        try:
            with _quietly(), _known_shapes(), torch.set_grad_enabled(training):
                program = torch.export.export(plain, (subject.tensors,), dynamic_shapes=shapes, strict=False)
        except ExportError:
            raise
        except Exception as error:  # noqa: BLE001 - PyTorch raises whatever the model raised, and many kinds of its own
            failures.append(error)
            continue
        if dim is not Dim.AUTO:
            return Exported(program=program, structure=structures[-1], doubtful_sizes=())
        sizes = _doubtful_sizes(program, len(subject.tensors[0]))
        if sizes is not None:
            return Exported(program=program, structure=structures[-1], doubtful_sizes=sizes)
    failure = failures[1]  # in PyTorch's own way, with its reasons
    raise ExportError(_explain(subject.model, mode, failure)) from failure


def _doubtful_sizes(program: ExportedProgram, batch: int) -> tuple[int, ...] | None:
    """Return batch sizes beyond those that PyTorch vouches for; None if the batch size is not free at all."""
    names = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT}
    sizes = {batch + 1}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            size = node.meta["val"].shape[0]
            if isinstance(size, int):
                return None
            bounds = program.range_constraints.get(size.node.expr)
            if bounds is None:
                return None
            if bounds.upper < _MAX_COMPARED_BATCH:
                sizes.add(int(bounds.upper) + 1)
    return tuple(sorted(sizes))


@contextlib.contextmanager
def _as_eager(*, fast_paths: bool) -> Iterator[None]:
    """Let the model see itself run eagerly, so that it takes the branches that it takes in training.

    Hugging Face models build masks for export that their eager selves leave to the attention operator, and in evaluation
    PyTorch's own encoder layers use fused operators unless they are being traced: either way other kernels would run, and other
    bits come out.
    """
    questions: list[tuple[Any, str]] = [(torch.compiler, "is_compiling"), (torch.compiler, "is_exporting")]
    if fast_paths:
        questions += [(torch.overrides, "has_torch_function"), (nn.modules.activation, "_is_make_fx_tracing")]
    answers = [(owner, name, getattr(owner, name)) for owner, name in questions if hasattr(owner, name)]
    try:
        for owner, name, _ in answers:
            setattr(owner, name, lambda *_: False)
        yield
    finally:
        for owner, name, answer in answers:
            setattr(owner, name, answer)


@contextlib.contextmanager
def _known_shapes() -> Iterator[None]:
    """Tell PyTorch 2.11 the shape that its fused encoder layer returns; later versions know it."""
    name = "_transformer_encoder_layer_fwd"
    with torch.library._scoped_library("aten", "IMPL") as library:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "Meta"):
            library.impl(name, lambda source, *_: torch.empty_like(source), "Meta")
        yield


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep what PyTorch prints while tracing off the terminal: what matters is in the error it raises."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _explain(model: nn.Module, mode: str, error: Exception) -> str:
    text = _NOISE.sub("", str(error)) or type(error).__name__
    reason = "\n  ".join([line.strip() for line in text.splitlines() if line.strip()][:3])
    line = line_of_error(error)
    where = f"\n  {line}" if line else ""
    advice = next((f"\n{advice}" for cause, advice in _ADVICE.items() if cause in reason), "")
    return f"{type(model).__name__} cannot be exported in {mode} mode: {reason}{where}{advice}"


class _Plain(nn.Module):
    """Calls a model with a list of tensors and returns its output as one; the output's structure goes to ``report``."""

    def __init__(
        self,
        subject: Subject,
        regions: Callable[[], contextlib.AbstractContextManager],
        report: Callable[[Any], None],
    ) -> None:
        super().__init__()
        self.model = subject.model
        self.subject_call = subject.call
        self.regions = regions
        self.report = report  # torch.export puts attributes back as they were, hence not a list of our own

    def forward(self, tensors: list[Tensor]) -> list[Any]:
        before = [(module, dict(module._buffers)) for module in self.model.modules()]
        with self.regions():
            output = self.subject_call(self.model, tensors)
        for module, buffers in before:
            for name, buffer in buffers.items():
                assigned = module._buffers.get(name)
                if assigned is not buffer and buffer is not None and assigned is not None:
                    buffer.copy_(assigned)  # an assignment leaves no trace in the graph, a copy does
                    module._buffers[name] = buffer
        leaves: list[Any] = []
        self.report(flatten(output, leaves))
        return leaves
