"""Write a ``.umodel``: trace both modes, check the file against the eager model, and only then put it in its place."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import inspect
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from unified.errors import ExportError, InvalidSubmission, UnifiedError
from unified.submission.equality import Call, differences, preserved_random_state
from unified.submission.graph_export import Subject
from unified.submission.graph_trace import trace
from unified.submission.safetensors_part import write_tensors
from unified.submission.tensor_records import describe_tensors
from unified.submission.umodel_faults import MalformedError
from unified.submission.umodel_format import (
    GRAPHS,
    MANIFEST,
    STORED_DTYPES,
    VERSION,
    WEIGHTS,
    InputRecord,
    Manifest,
    encode,
)
from unified.submission.umodel_read import load_umodel, open_archive
from unified.submission.untraceable import untraceable_lines

_FIRST_DAY = (1980, 1, 1, 0, 0, 0)

_ADVICE = (
    "What differs from call to call or is not part of PyTorch's graph cannot be stored: random numbers of Python or NumPy, "
    "hooks, hidden state, custom gradients, branches on the batch size, writes through views; hand in a trusted .pt file"
)
_NESTED_ADVICE = (
    "In evaluation, nn.TransformerEncoder turns padded batches into nested tensors, depending on the mask's values, which a "
    "stored graph cannot do: construct it with enable_nested_tensor=False"
)

Inputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def export(model: nn.Module, example_inputs: Inputs, path: Path | str) -> Path:
    """Write ``model`` to ``path`` as a ``.umodel``, which can be trained elsewhere without its code.

    The model is traced in training and in evaluation mode (evaluation without gradients, as is usual) with a free batch size;
    all other sizes are those of the example. Before the file appears, it is loaded again and trained for a few steps beside the
    eager model: gradients, weights, buffers and outputs must be equal bit for bit. The model handed in stays as it is, and so
    does the random state.

    Args:
        model: Any module that ``torch.export`` can trace.
        example_inputs: What its ``forward`` takes: a tensor of shape (batch, …), several in a tuple, or a dict of them by name.
        path: Where to write; by custom it ends in ``.umodel``.

    Returns:
        ``path``.

    Raises:
        ExportError: If the model cannot be traced or stored, or would run differently; with the reason and the line to change.
    """
    path = Path(path)
    with preserved_random_state():
        inputs, tensors, call = _bind(model, example_inputs)
        records, own = describe_tensors(model)
        ties = {record.name: record.tie for record in records if record.tie is not None}
        constants: list[Tensor] = []
        subject = Subject(
            model=_on_cpu(model),
            names=[record.name for record in inputs],
            tensors=[_at_least_two(tensor) for tensor in tensors],
            call=call,
            ties=ties,
        )
        traced = {mode: trace(subject, mode, constants) for mode in GRAPHS}
        manifest = Manifest(
            version=VERSION,
            torch=torch.__version__,
            inputs=inputs,
            tensors=records,
            constants=tuple((_dtype_name(c), tuple(c.shape)) for c in constants),
            parts={},
        )
        stored = own | {f"constant:{index}": constant for index, constant in enumerate(constants)}
        draft = path.with_name(path.name + ".draft")
        try:
            _write(draft, manifest, {mode: encode(each.graph) for mode, each in traced.items()}, stored)
            sizes = {size for each in traced.values() for size in each.doubtful_sizes}
            _check(draft, _on_cpu(model), tensors, call, sizes)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    return path


def rewrite_weights(src_path: Path | str, state_dict: Mapping[str, Tensor], dst_path: Path | str) -> Path:
    """Write the archive ``src_path`` again to ``dst_path`` with other weights: the same graphs, the same constants.

    Args:
        src_path: A ``.umodel``.
        state_dict: New parameters and persistent buffers, as ``load_umodel(src_path).state_dict()`` gives them; on any device.
        dst_path: Where to write; may be ``src_path``.

    Returns:
        ``dst_path``.

    Raises:
        UnifiedError: If the archive is damaged, or the state dict has other names, shapes or types.
    """
    src_path, dst_path = Path(src_path), Path(dst_path)
    try:
        archive = open_archive(src_path)
        stored = dict(archive.tensors(archive.entries(finite=False), without=state_dict.keys()))
    except MalformedError as error:
        raise UnifiedError(f"{src_path}: {error}") from error
    _check_state_dict(archive.manifest, state_dict)
    for record in archive.manifest.tensors:
        if record.persistent and record.tie is None:
            stored[record.name] = state_dict[record.name]
    graphs = {mode: bytes(archive.parts[part]) for mode, part in GRAPHS.items()}
    draft = dst_path.with_name(dst_path.name + ".draft")
    try:
        _write(draft, archive.manifest, graphs, stored)
        draft.replace(dst_path)
    finally:
        draft.unlink(missing_ok=True)
    return dst_path


def _bind(model: nn.Module, example_inputs: Inputs) -> tuple[tuple[InputRecord, ...], list[Tensor], Call]:
    """Name the inputs after the parameters of ``forward``; return them, example tensors, and how to call a model with such."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ExportError("TorchScript cannot be stored in a .umodel: export the module that it was scripted or traced from")
    parameters = list(inspect.signature(model.forward).parameters.values())
    places = {p.name: i for i, p in enumerate(parameters) if p.kind is p.POSITIONAL_OR_KEYWORD}
    if isinstance(example_inputs, Mapping):
        names = list(example_inputs)
        tensors = list(example_inputs.values())
        positions: list[int | None] = [places.get(name) for name in names]

        def call(model: nn.Module, tensors: Sequence[Tensor]) -> Any:
            return model(**dict(zip(names, tensors, strict=True)))

    else:
        tensors = [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs)
        by_place = {place: name for name, place in places.items()}
        names = [by_place.get(index, f"input_{index}") for index in range(len(tensors))]
        positions = list(range(len(tensors)))

        def call(model: nn.Module, tensors: Sequence[Tensor]) -> Any:
            return model(*tensors)

    _check_example(names, tensors)
    records = tuple(
        InputRecord(name=name, position=position, shape=tuple(tensor.shape[1:]), dtype=_dtype_name(tensor))
        for name, position, tensor in zip(names, positions, tensors, strict=True)
    )
    return records, [tensor.detach().cpu().clone() for tensor in tensors], call


def _check_example(names: list[str], tensors: list[Any]) -> None:
    if not tensors:
        raise ExportError("no example inputs; give what forward takes, e.g. export(model, images[:4], path)")
    for name, tensor in zip(names, tensors, strict=True):
        if not isinstance(tensor, Tensor):
            raise ExportError(
                f"example input {name!r} is a {type(tensor).__name__}; only tensors can be inputs: "
                "fix other arguments with functools.partial or in a wrapper module"
            )
        if tensor.ndim == 0 or len(tensor) == 0:
            raise ExportError(f"example input {name!r} has shape {tuple(tensor.shape)}; its first dimension must be a batch")
        if _dtype_name(tensor) not in STORED_DTYPES:
            raise ExportError(f"example input {name!r} is of type {tensor.dtype}; accepted are {sorted(STORED_DTYPES)}")
    sizes = {name: len(tensor) for name, tensor in zip(names, tensors, strict=True)}
    if len(set(sizes.values())) > 1:
        raise ExportError(f"the example inputs have different batch sizes: {sizes}; the first dimension of each is the batch")


def _on_cpu(model: nn.Module) -> nn.Module:
    """Return a copy there, so that tracing leaves the model alone and equal arithmetic can be compared bit for bit."""
    try:
        return copy.deepcopy(model).cpu()
    except Exception as error:
        raise ExportError(f"{type(model).__name__} cannot be copied: {error}") from error


def _at_least_two(tensor: Tensor) -> Tensor:
    """Repeat a single sample: PyTorch would take a batch of one for a fixed size."""
    return torch.cat([tensor, tensor]) if len(tensor) == 1 else tensor


def _check(draft: Path, eager: nn.Module, tensors: list[Tensor], call: Call, sizes: set[int]) -> None:
    name = type(eager).__name__
    try:
        loaded = load_umodel(draft, job=name)
    except InvalidSubmission as error:
        told = "; ".join(f"expected {problem.expected}, got {problem.given}" for problem in error.problems)
        raise ExportError(f"{name} cannot be stored in a .umodel: {told}") from error
    nested = any(isinstance(m, nn.TransformerEncoder) and getattr(m, "use_nested_tensor", False) for m in eager.modules())
    difference = differences(eager, loaded, tensors, call, sorted(sizes))
    if difference is not None:
        advice = _NESTED_ADVICE if nested else _ADVICE
        lines = "".join(f"\n  {line}" for line in untraceable_lines(lambda: call(eager.train(), tensors)))
        raise ExportError(f"{name} would run differently from a .umodel: {difference}.{lines}\n{advice}")


def _check_state_dict(manifest: Manifest, state_dict: Mapping[str, Tensor]) -> None:
    records = {record.name: record for record in manifest.tensors if record.persistent}
    if records.keys() != state_dict.keys():
        names = sorted(records.keys() ^ state_dict.keys())
        raise UnifiedError(f"the state dict and the archive do not have the same names: {names[:5]}")
    for name, record in records.items():
        tensor = state_dict[name]
        if tuple(tensor.shape) != record.shape or _dtype_name(tensor) != record.dtype:
            raise UnifiedError(
                f"{name!r}: expected {record.dtype} of shape {record.shape}, got {tensor.dtype} of {tuple(tensor.shape)}"
            )
        if record.tie is not None and not torch.equal(tensor, state_dict[record.tie]):
            raise UnifiedError(f"{name!r} is tied to {record.tie!r}, but their values differ")


class _HashedFile:
    """Passes on what is written and hashes it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, content: bytes | memoryview) -> None:
        self._digest.update(content)
        self._file.write(content)

    @property
    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _write(path: Path, manifest: Manifest, graphs: Mapping[str, bytes], tensors: Mapping[str, Tensor]) -> None:
    """Write an archive: the same bytes for the same content. The manifest comes last, as it holds the hashes of the others."""
    digests: dict[str, str] = {}
    in_order = {name: tensors[name] for name in manifest.stored()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for mode, part in GRAPHS.items():
            digests[part] = _write_part(archive, part, lambda write, mode=mode: write(graphs[mode]))
        digests[WEIGHTS] = _write_part(archive, WEIGHTS, lambda write: write_tensors(in_order, write))
        complete = dataclasses.replace(manifest, parts=digests)
        _write_part(archive, MANIFEST, lambda write: write(encode(complete)))


def _write_part(archive: zipfile.ZipFile, part: str, produce: Callable[[Callable], Any]) -> str:
    """Write one part and return its SHA-256."""
    entry = zipfile.ZipInfo(part, _FIRST_DAY)
    entry.create_system = 3
    entry.external_attr = 0o644 << 16
    with archive.open(entry, "w", force_zip64=True) as file:
        hashed = _HashedFile(file)
        produce(hashed.write)
    return hashed.hexdigest


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
