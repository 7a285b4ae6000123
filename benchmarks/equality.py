"""Compares state dicts bit for bit, in a process of its own so that the one that measures never maps torch.

``python -m benchmarks.equality`` reads a JSON list of pairs of files from its input and writes a list of booleans.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import ROOT


def are_equal(pairs: Sequence[tuple[Path, Path]]) -> list[bool]:
    """Return for each pair of ``state_dict.pt`` files whether names, order, types, shapes and bytes are the same."""
    lines = json.dumps([[str(left), str(right)] for left, right in pairs])
    command = [sys.executable, "-m", "benchmarks.equality"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


def _same_file(left: str, right: str) -> bool:
    import torch  # only in the process that compares

    first, second = (torch.load(path, weights_only=True) for path in (left, right))
    if list(first) != list(second):
        return False
    return all(
        a.dtype == b.dtype and a.shape == b.shape and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
        for a, b in zip(first.values(), second.values(), strict=True)
    )


if __name__ == "__main__":
    print(json.dumps([_same_file(left, right) for left, right in json.load(sys.stdin)]))
