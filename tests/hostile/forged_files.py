"""Model files that nobody's torch.save would write, and what all of them must end in."""

from __future__ import annotations

import contextlib
import resource
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from unified.errors import InvalidSubmission, Problem
from unified.job_parts import ArchitectureSpec
from unified.submission.models import load_model, recognise

_SPARE_BYTES = 200 << 20


def load(path: Path, architecture: Mapping[str, Any] | None = None, *, trust: bool = False) -> Any:
    """Recognise and load a model as a job's is."""
    spec = None if architecture is None else ArchitectureSpec(**architecture)
    ref = recognise(path, job="hostile", trust=trust, staged=False, architecture=spec)
    return load_model(ref, job="hostile")


def refusal(path: Path, architecture: Mapping[str, Any] | None = None) -> Problem:
    """Return the first problem of a model that must be refused, with hardly any memory taken."""
    with little_memory(), pytest.raises(InvalidSubmission) as caught:
        load(path, architecture)
    assert all(problem.job == "hostile" and problem.remedy for problem in caught.value.problems)
    return caught.value.problems[0]


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Check that what is done within does not allocate much, even for a moment."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < _SPARE_BYTES


def write_pt(path: Path, pickle: bytes, parts: Mapping[str, bytes] | None = None, *, deflated: bool = False) -> Path:
    """Write a zip laid out as torch.save does."""
    kind = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", "little")
        for name, content in (parts or {}).items():
            archive.writestr(f"archive/{name}", content)
        archive.writestr("archive/version", "3\n")
    return path


def rewritten(source: Path, path: Path, *, deflated: bool = False, change: Mapping[str, bytes] | None = None) -> Path:
    """Write a file of torch.save again, compressed or with other parts."""
    kind = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", kind) as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, (change or {}).get(name.partition("/")[2], content))
    return path


def text(value: str) -> bytes:
    """Return the operation that pushes a short text."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def mapping_of(value: bytes) -> bytes:
    """Return a pickle of a mapping from ``"weight"`` to what the operations ``value`` push."""
    return b"\x80\x02}" + text("weight") + value + b"s."


def tensor_of(*, kind: bytes = b"ctorch\nFloatStorage\n", numel: bytes = b"K\x01", shape: bytes = b"K\x01\x85") -> bytes:
    """Return the operations that push a tensor of one storage, what is said of it being pushed by those given."""
    storage = b"(" + text("storage") + kind + text("0") + text("cpu") + numel + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + shape + shape + b"\x89ccollections\nOrderedDict\n)RtR"


def whole_linear_with(attribute: str, value: bytes) -> bytes:
    """Return a pickle of a Linear without weights that has one attribute more, of what the operations ``value`` push."""
    parameters = b"}" + text("weight") + b"Ns" + text("bias") + b"Ns"
    attributes = {"_modules": b"}", "_parameters": parameters, "_buffers": b"}", "training": b"\x88", attribute: value}
    sizes = {"in_features": b"K\x03", "out_features": b"K\x02"}
    state = b"}" + b"".join(text(name) + content + b"s" for name, content in (sizes | attributes).items())
    return b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81" + state + b"b."


def linear_with(attribute: str, value: bytes) -> bytes:
    """Return a pickle of a Linear that has nothing but one attribute, of what the operations ``value`` push."""
    state = b"}" + text(attribute) + value + b"s"
    return b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81" + state + b"b."
