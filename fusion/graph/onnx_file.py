"""A fused model as an ONNX file, where the extra for it is installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fusion.graph.errors import FusionError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from fusion.graph.tree import FusedTree

_TOLERANCE = 1e-4  # of the largest output: other kernels round otherwise, a wrong operator is far beyond
_MAX_PROTOBUF_BYTES = 1 << 30  # the format ends at 2 GiB; larger weights go to a file beside it


def check_onnx() -> None:
    """Refuse early.

    Raises:
        FusionError: If what writes ONNX is not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise FusionError(f"writing ONNX needs {' and '.join(missing)}; install the extra: pip install 'unifiednn[onnx]'")


def write_onnx(
    program: ExportedProgram, tree: FusedTree, path: Path, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]
) -> None:
    """Write what ``tree`` was exported to, and compare the two if ONNX Runtime is installed.

    The outputs are called after their tasks; of a task with several, after where they stand (``pose.0``, ``pose.scores``).

    Args:
        program: Made from ``tree``.
        tree: On the CPU or a device; in evaluation mode.
        path: File to write.
        args: Positional inputs to compare at, of another batch size than the traced one.
        kwargs: Inputs by name.

    Raises:
        FusionError: If ONNX Runtime answers otherwise.
    """
    with torch.no_grad():
        outputs, _ = pytree.tree_flatten_with_path(tree(*args, **kwargs))
    names = [".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in where) for where, _ in outputs]
    num_bytes = sum(tensor.nbytes for tensor in tree.state_dict().values())
    torch.onnx.export(
        program, f=path, dynamo=True, output_names=names, verbose=False, external_data=num_bytes > _MAX_PROTOBUF_BYTES
    )
    if importlib.util.find_spec("onnxruntime") is not None:
        _compare(path, [*args, *kwargs.values()], {name: value for name, (_, value) in zip(names, outputs, strict=True)})


def _compare(path: Path, inputs: Sequence[Tensor], expected: Mapping[str, Any]) -> None:
    session = importlib.import_module("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {entry.name: value.cpu().numpy() for entry, value in zip(session.get_inputs(), inputs, strict=True)}
    for (name, value), got in zip(expected.items(), session.run(None, feed), strict=True):
        wanted = value.detach().cpu()
        difference = (torch.as_tensor(got).double() - wanted.double()).abs().max().item()
        if not difference <= _TOLERANCE * max(1.0, wanted.double().abs().max().item()):
            raise FusionError(
                f"{path.name}: ONNX Runtime answers otherwise at output {name}: largest difference {difference:.3g}"
            )
