"""What a merge leaves on disk: the network in every form, and the report."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fusion.graph.saving import write_program
from fusion.merging.errors import MergeError
from fusion.merging.merged import MergedNetwork
from fusion.merging.page import write_page
from fusion.merging.pipeline import MergeOutcome
from fusion.merging.records import joined
from fusion.merging.report import combinations_of
from fusion.merging.saving import save
from unified.errors import ExportError, UnifiedError
from unified.results import write_json
from unified.submission.umodel_write import export

REPORT = "report.json"
MAX_SUBSETS = 3  #: tasks up to which every subset gets a file


def write_outcome(outcome: MergeOutcome, out: Path, example: Tensor, notes: tuple[str, ...]) -> tuple[str, ...]:
    """Write the network and the report; ``report.json`` comes last.

    =============================  =====================================================================================
    ``model.pt2``                  all tasks: ``torch.export`` archive for any batch size; its output is a dict
    ``tasks/NAME.pt2``             one task alone; its output is that of the task's model
    ``subsets/A+B.pt2``            each subset of two tasks or more, up to three tasks; its output is a dict
    ``alone/NAME.pt2``             with baselines, each task's own model pruned alone (B1)
    ``model.umodel``               all tasks, to be trained or fused further
    ``merged/``                    the merged network itself: weights by group, and which neurons serve which tasks
    ``report.html``, ``plots/``    the page, and its pictures
    ``report.json``                the report
    =============================  =====================================================================================

    Args:
        outcome: Of the merge.
        out: Folder, made if need be.
        example: A few inputs, where the network is.
        notes: Of the data, which stand in the report.

    Returns:
        What could not be written, and why.

    Raises:
        FusionError: A file, read back, does not answer as the network does.
    """
    network, report = outcome.network, outcome.report
    out.mkdir(parents=True, exist_ok=True)
    whole = network.specialize(network.tasks, example=example).eval()
    write_program(whole, example, out / "model.pt2")
    (out / "tasks").mkdir(exist_ok=True)
    for task in network.tasks:
        write_program(network.specialize([task], example=example, single=True).eval(), example, out / "tasks" / f"{task}.pt2")
    for task, module in outcome.alone.items():
        (out / "alone").mkdir(exist_ok=True)
        write_program(module, example, out / "alone" / f"{task}.pt2")
    _write_subsets(network, example, out / "subsets")
    content = report.to_json()
    told = _write_merged(network, out / "merged", {name: content[name] for name in ("alpha", "settings")})
    told += _write_umodel(whole, out / "model.umodel", example)
    write_page(report, out)
    write_json(out / REPORT, content | {"notes": [*content["notes"], *notes, *told]})
    return told


def check_room(out: Path, tasks: Collection[str] = ()) -> None:
    """Refuse to write among other files, or files that cannot bear the name of their tasks.

    Raises:
        UnifiedError: If the folder holds anything, or is a file; or a name has other marks than letters, digits, ``_``, ``-``.
    """
    bad = [task for task in tasks if not re.fullmatch(r"[\w-]+", task)]
    if bad:
        raise UnifiedError(f"a task's files bear its name, of letters, digits, _ and -; got {', '.join(map(repr, bad))}")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UnifiedError(f"--out {out}: expected a new or an empty folder; there is something in it: choose another one")


def _write_subsets(network: MergedNetwork, example: Tensor, folder: Path) -> None:
    if len(network.tasks) > MAX_SUBSETS:
        return
    folder.mkdir(exist_ok=True)
    for names in combinations_of(network.tasks):
        if len(names) > 1:
            write_program(network.specialize(names, example=example).eval(), example, folder / f"{joined(names)}.pt2")


def _write_merged(network: MergedNetwork, folder: Path, metadata: dict[str, Any]) -> tuple[str, ...]:
    """Write the network with its groups; one with private operators that a file may not name costs a note."""
    try:
        save(network, folder, metadata=metadata)
    except MergeError as error:
        return (f"{folder.name}/ was not written: {error}",)
    return ()


def _write_umodel(module: nn.Module, path: Path, example: Tensor) -> tuple[str, ...]:
    """Write the network as an archive that can be trained further; it is a convenience, so that failing costs a note."""
    try:
        export(module.cpu(), example.cpu(), path)
    except ExportError as error:
        path.unlink(missing_ok=True)
        return (f"{path.name} was not written: {' '.join(str(error).split())[:500]}",)
    return ()
