"""The process that measures the models of the formats benchmark: each in a fork of its own, so that none can harm the next.

``python -m benchmarks.formats_child THREADS SECONDS NAME…`` prints a row of JSON for each name.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection

import torch

from benchmarks.formats_measure import measure
from benchmarks.formats_models import entries, family_of
from benchmarks.formats_tables import Row

PATIENCE_SECONDS = 240.0


def main(arguments: Sequence[str]) -> None:
    """Measure what is asked for."""
    threads, seconds, *names = arguments
    torch.set_num_threads(1)  # until the fork, as threads do not survive it
    known = entries()
    for library in sorted({known[name].family for name in names if known[name].is_available} - {"user"}):
        importlib.import_module(library)
    # imports what exporting needs, once for all
    torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(2, 2),))
    for name in names:
        row = _in_a_fork(name, int(threads), float(seconds))
        print(json.dumps(asdict(row)), flush=True)


def _in_a_fork(name: str, threads: int, seconds: float) -> Row:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send_row, args=(there, name, threads, seconds))
    process.start()
    there.close()
    reason = f"took more than {PATIENCE_SECONDS:.0f} s"
    if here.poll(PATIENCE_SECONDS):
        with contextlib.suppress(EOFError):
            row = here.recv()
            process.join()
            return row
        process.join()
        reason = f"its process ended with exit code {process.exitcode}"
    process.kill()
    process.join()
    return Row(name=name, family=family_of(name), library=entries()[name].family, inputs="", reason=reason)


def _send_row(pipe: Connection, name: str, threads: int, seconds: float) -> None:
    warnings.simplefilter("ignore")  # other libraries' advice on their own models
    with contextlib.redirect_stdout(sys.stderr):
        pipe.send(measure(name, threads=threads, seconds=seconds))


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(sys.argv[1:])
