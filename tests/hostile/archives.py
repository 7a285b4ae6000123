"""Archives with any part changed: read apart, changed, put together again, with the hashes mended or not."""

from __future__ import annotations

import copy
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unified.submission.umodel_write import export

MANIFEST, TRAIN, EVAL, WEIGHTS = "manifest.json", "graph.train.json", "graph.eval.json", "weights.safetensors"
ORDER = (TRAIN, EVAL, WEIGHTS, MANIFEST)


class Tiny(nn.Module):
    """A little of everything: batch statistics, a counter, a view, a tied weight, a constant, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.two = nn.Linear(3, 3)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.one(x).relu()).reshape(-1, 3)
        return nn.functional.dropout(self.two(hidden), 0.5, self.training) + torch.tensor([1.0, 2.0, 3.0])


def tiny(folder: Path) -> Path:
    """Write the smallest archive that has a little of everything; it takes a tensor ``x`` of shape (batch, 3)."""
    torch.manual_seed(0)
    return export(Tiny(), torch.randn(4, 3), folder / "tiny.umodel")


class Parts:
    """The parts of an archive, parsed, to be changed in place; ``raw`` holds what is written instead of the parsed part."""

    def __init__(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            content = {name: archive.read(name) for name in archive.namelist()}
        self.manifest: Any = json.loads(content[MANIFEST])
        self.train: Any = json.loads(content[TRAIN])
        self.eval: Any = json.loads(content[EVAL])
        length = int.from_bytes(content[WEIGHTS][:8], "little")
        self.header: Any = json.loads(content[WEIGHTS][8 : 8 + length])
        self.values = bytearray(content[WEIGHTS][8 + length :])
        self.raw: dict[str, bytes] = {}

    def copy(self) -> Parts:
        """Return a copy that shares nothing."""
        return copy.deepcopy(self)

    def rename(self, old: str, new: str) -> None:
        """Give a tensor another name everywhere, so that only the name is wrong."""
        self.header = {new if name == old else name: entry for name, entry in self.header.items()}
        for record in self.manifest["tensors"]:
            for field in ("name", "tie"):
                if record.get(field) == old:
                    record[field] = new
        for graph in (self.train, self.eval):
            for holder, key, value in walk(graph):
                if value == {"tensor": old}:
                    holder[key] = {"tensor": new}
            for write in graph.get("writes", []):
                write[0] = new if write[0] == old else write[0]

    def content(self, *, mend: bool = True) -> dict[str, bytes]:
        """Return the bytes of every part; ``mend`` writes their right hashes into the manifest."""
        text = json.dumps(self.header).encode()
        parts = {
            TRAIN: json.dumps(self.train).encode(),
            EVAL: json.dumps(self.eval).encode(),
            WEIGHTS: len(text).to_bytes(8, "little") + text + bytes(self.values),
        } | {name: raw for name, raw in self.raw.items() if name != MANIFEST}
        hashes = self.manifest.get("parts") if isinstance(self.manifest, dict) else None
        if mend and isinstance(hashes, dict):
            for name in hashes:
                hashes[name] = hashlib.sha256(parts.get(name, b"")).hexdigest()
        manifest = self.raw.get(MANIFEST, json.dumps(self.manifest).encode())
        return {name: parts.get(name, manifest) for name in ORDER}

    def write(self, path: Path, *, mend: bool = True, compression: int = zipfile.ZIP_STORED) -> Path:
        """Write them as an archive."""
        return pack(path, self.content(mend=mend), compression=compression)


def pack(path: Path, parts: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write parts as a zip, as they are."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def walk(value: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield (holder, key, value) of everything in a JSON value, so that ``holder[key] = …`` changes it."""
    pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    for key, inner in pairs:
        yield value, key, inner
        yield from walk(inner)


@contextmanager
def marker(folder: Path) -> Iterator[Path]:
    """Give the path of a file that hostile content tries to create, and check afterwards that it was not."""
    path = folder / "owned"
    yield path
    assert not path.exists()


Change = Callable[[Parts], None]
