"""Tensors with one row per sample, in memory up to a limit and in files beyond it, named by content."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LARGEST_HALF = 65504.0


class Stored:
    """Rows that can be gathered by index, wherever they are.

    Args:
        rows: `(samples, …)`, in memory or mapped from a file.
        dtype: In which they are handed out.
    """

    def __init__(self, rows: np.ndarray, dtype: torch.dtype) -> None:
        self._rows = rows
        self.dtype = dtype

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all rows: `(samples, …)`."""
        return tuple(self._rows.shape)

    @property
    def num_bytes(self) -> int:
        """Of all rows, as they are kept."""
        return self._rows.nbytes

    @property
    def is_on_disk(self) -> bool:
        """Whether the rows are read from a file."""
        return isinstance(self._rows, np.memmap)

    def gather(self, index: Tensor) -> Tensor:
        """Copy the rows at `index` `(chosen,)`, int64, on the CPU."""
        return torch.from_numpy(self._rows[index.numpy()]).to(self.dtype)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """Copy all rows, in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield torch.from_numpy(np.array(self._rows[start : start + size])).to(self.dtype)


class TensorStore:
    """Holds tensors by key; what no longer fits into memory goes to files.

    Args:
        folder: For the files, which a later process finds again; one process at a time. None: a folder that goes with this
            object.
        ram_bytes: Largest sum of what is kept in memory.
    """

    def __init__(self, folder: Path | None, ram_bytes: int) -> None:
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="fusion-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ram_bytes_left = ram_bytes
        self._stored: dict[str, Stored] = {}

    def get(self, key: str) -> Stored | None:
        """Return what has been written under a key, in this process or an earlier one; None if nothing has."""
        if key not in self._stored:
            for path in self.folder.glob(f"{key}.*.npy"):
                self._stored[key] = Stored(np.load(path, mmap_mode="r"), getattr(torch, path.suffixes[0][1:]))
        return self._stored.get(key)

    def put(self, key: str, stored: Stored) -> None:
        """Make rows findable under a key."""
        self._stored[key] = stored

    def allocate(self, key: str, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
        """Make room for rows, in memory if they fit and else in a file that nobody finds yet."""
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if num_bytes <= self.ram_bytes_left:
            self.ram_bytes_left -= num_bytes
            return np.empty(shape, dtype)
        return np.lib.format.open_memmap(self._unfinished(key), mode="w+", dtype=dtype, shape=shape)

    def release(self, key: str, rows: np.ndarray) -> None:
        """Give back room that is not used after all."""
        if isinstance(rows, np.memmap):
            self._unfinished(key).unlink()  # what is mapped stays readable until it is let go
        else:
            self.ram_bytes_left += rows.nbytes

    def finish(self, key: str, rows: np.memmap, dtype: torch.dtype) -> np.ndarray:
        """Bring a file to disk and give it its name; it is there whole, or not at all."""
        rows.flush()
        path = self.folder / f"{key}.{str(dtype).removeprefix('torch.')}.npy"
        self._unfinished(key).replace(path)
        return np.load(path, mmap_mode="r")

    def _unfinished(self, key: str) -> Path:
        return self.folder / f".{key}.tmp"


class Writer:
    """Takes rows chunk by chunk; nothing can be read before `close`.

    Args:
        store: Where they go.
        key: Under which they will be found.
        num_rows: All that will come.
        half: Keep them as float16, unless one of them is out of its range.
    """

    def __init__(self, store: TensorStore, key: str, num_rows: int, *, half: bool) -> None:
        self._store, self._key, self._num_rows, self._half = store, key, num_rows, half
        self._rows: np.ndarray | None = None
        self._dtype = torch.float32
        self._num_filled = 0

    def add(self, chunk: Tensor) -> None:
        """Append rows `(chunk, …)`."""
        chunk = chunk.detach().cpu()
        fits = self._half and not _is_beyond_half(chunk)
        if self._rows is None:
            self._dtype, self._half = chunk.dtype, fits
            kept = np.float16 if fits else np.float64 if chunk.dtype == torch.float64 else np.float32  # numpy has no bfloat16
            self._rows = self._store.allocate(self._key, (self._num_rows, *chunk.shape[1:]), kept)
        elif self._half and not fits:
            self._rows = self._widened(self._rows)
        end = self._num_filled + len(chunk)
        self._rows[self._num_filled : end] = (chunk.float() if chunk.dtype == torch.bfloat16 else chunk).numpy()
        self._num_filled = end

    def close(self) -> Stored:
        """Make the rows readable."""
        rows = self._rows
        assert rows is not None, "no rows"
        assert self._num_filled == self._num_rows, f"{self._num_filled} of {self._num_rows} rows"
        if isinstance(rows, np.memmap):
            rows = self._store.finish(self._key, rows, self._dtype)
        stored = Stored(rows, self._dtype)
        self._store.put(self._key, stored)
        return stored

    def _widened(self, narrow: np.ndarray) -> np.ndarray:
        self._half = False
        self._store.release(self._key, narrow)
        wide = self._store.allocate(self._key, narrow.shape, np.float32)
        wide[: self._num_filled] = narrow[: self._num_filled]
        return wide


def _is_beyond_half(chunk: Tensor) -> bool:
    return not bool((chunk.abs() <= LARGEST_HALF).all())
