"""The command line as its users meet it: ``python -m unified`` in a process of its own, and what it leaves on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.integration.batches import TEST, TRAIN, alone

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 300  #: for what must happen; a busy machine is slow, and a hang must end
RESULT_FILES = {"model.safetensors", "state_dict.pt", "model.umodel", "metrics.jsonl", "result.json"}


def environment(*more_paths: Path, **variables: str) -> dict[str, str]:
    """Return an environment in which this checkout is importable, wherever the command is started."""
    paths = [str(ROOT), *map(str, more_paths), *filter(None, [os.environ.get("PYTHONPATH")])]
    clean = {name: value for name, value in os.environ.items() if name != "UNIFIED_DEBUG"}
    return clean | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "default"} | variables


#: The command line in a process that fails if it has imported torch by its end.
WITHOUT_TORCH = """
import sys
from unified.cli import main
code = main(sys.argv[1:])
sys.exit("torch was imported" if "torch" in sys.modules else code)
"""


def unified_command(*arguments: object, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end; it must do without torch, whatever it was asked for."""
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    settings = {"env": environment()} | settings
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS, **settings)


def start_unified(*arguments: object) -> subprocess.Popen[str]:
    """Start ``python -m unified`` and return the process, its output in pipes."""
    command = [sys.executable, "-m", "unified", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def lines_until(process: subprocess.Popen[str], is_last: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Return the JSON lines of ``unified run --json`` up to the first that ``is_last``, or all if none is."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(json.loads(line))
        if is_last(seen[-1]):
            break
    return seen


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return all processes below ``process``: nursery, inspectors, workers."""
    return psutil.Process(process.pid).children(recursive=True)


def assert_all_end(processes: list[psutil.Process]) -> None:
    """Wait until all are gone; a zombie that nobody has collected yet is gone."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while alive := [process for process in processes if is_alive(process)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def rows_of(folder: Path) -> list[dict[str, float]]:
    """Return the rows of a result's ``metrics.jsonl``."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_equals(folder: Path, weights: dict[str, torch.Tensor], rows: list[dict[str, float]]) -> None:
    """Check a result on disk against what the plain loop gave: weights, buffers, order, and every row of metrics."""
    found = torch.load(folder / "state_dict.pt", weights_only=True)
    assert list(found) == list(weights)
    for name, value in weights.items():
        assert torch.equal(found[name], value), (folder, name)
    assert [{key: row[key] for key in rows[0]} for row in rows_of(folder)] == rows


def assert_equals_alone(folder: Path, member: str, **changes: Any) -> None:
    """Check a result on disk against the plain loop with as many threads as it says it had."""
    threads = json.loads((folder / "result.json").read_text())["threads"]
    assert_equals(folder, *alone(member, threads, **changes))


def write_data(root: Path) -> Path:
    """Write what the jobs of a batch train and are tested on, and return the folder for their folders."""
    (root / "data").mkdir(parents=True)
    torch.save(TRAIN, root / "data" / "train.pt")
    torch.save(TEST, root / "data" / "test.pt")
    return root
