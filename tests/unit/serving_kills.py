"""Changes of a store that are killed at every point: ``python -m tests.unit.serving_kills FOLDER``.

Each change is made by a child, which kills itself (SIGKILL: nothing is tidied up) before or after something reaches the disk.
Prints, for every point, what the store held afterwards and whether the change could then be made after all.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from serving.metadata import Metadata
from serving.store import VariantStore
from tests.unit.serving_models import draft, filled_store, images, labelled

STEP = 3  #: of the points; there are two for each thing that reaches the disk, and so some of either kind


class Points:
    """Counts the points that a change has passed, and kills it at one of them."""

    def __init__(self, last: int | None) -> None:
        self.passed = 0
        self._last = last

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*values: object, **options: object) -> object:
            self._count()
            found = function(*values, **options)
            self._count()
            return found

        return wrapped

    def _count(self) -> None:
        self.passed += 1
        if self.passed == self._last:
            os.kill(os.getpid(), signal.SIGKILL)


def main(root: Path) -> None:
    torch.set_num_threads(1)
    store, [old, _] = filled_store(root / "before", draft("old"), draft("kept", seed=1))
    store.close()
    gc.collect()
    gc.freeze()
    num_points = _change(root / "before", root / "whole", old.id, None)
    results = [_killed(root, old.id, last) for last in range(1, num_points + 1, STEP)]
    sys.stdout.write(json.dumps(results))


def _killed(root: Path, old: str, last: int) -> dict[str, object]:
    path = root / str(last)
    _change(root / "before", path, old, last)
    left = len(list(path.glob(".new-*")))
    store = VariantStore.open(path)
    names = [variant.name for variant in store.variants()]
    on_disk = {folder.name for folder in (path / "panels").glob("*/")}
    validation = store.validation("panels")
    for variant in store.variants():
        store.load(variant.id)
    found = {
        "names": names,
        "left": left,
        "swept": not list(path.glob(".new-*")) and on_disk == {variant.id for variant in store.variants()},
        "validation": validation is not None,
        "whole": validation is None or validation.digest() == labelled().digest(),
    }
    _make(store, old)
    found["after"] = [variant.name for variant in store.variants()]
    store.close()
    return found


def _change(before: Path, path: Path, old: str, last: int | None) -> int:
    """Copy the store and change it in a child; return how many points it passed, if it was not killed."""
    shutil.copytree(before, path)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            points = Points(last)
            for name in ("fsync", "rename", "replace"):
                setattr(os, name, points.around(getattr(os, name)))
            for name in ("add_variant", "remove_variant"):
                setattr(Metadata, name, points.around(getattr(Metadata, name)))
            _make(VariantStore.open(path), old)
            os.write(write, str(points.passed).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as file:
        told = file.read()
    assert os.waitstatus_to_exitcode(status) == (0 if last is None else -signal.SIGKILL), f"the change in {path} failed"
    return int(told or 0)


def _make(store: VariantStore, old: str) -> None:
    """Make what is not made yet of the change: a variant less, another one more, and data to score by."""
    names = [variant.name for variant in store.variants()]
    if "old" in names:
        store.remove(old)
    if "new" not in names:
        store.add(draft("new", seed=2), (images(3),))
    store.keep_validation("panels", labelled())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
