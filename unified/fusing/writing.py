"""What a fusion leaves on disk: for each allowed drop the model in every form, and the report."""

from __future__ import annotations

import shutil
from pathlib import Path

from fusion.graph.saving import save
from fusion.graph.tree import FusedTree
from fusion.search.page import write_page
from fusion.search.report import FusionReport
from unified.dataset_problems import Inputs
from unified.errors import ExportError
from unified.fusing.rows import map_inputs
from unified.results import write_json
from unified.submission.umodel_write import export

SEARCH = "search"  #: what a search keeps in its output folder, to go on with it
REPORT = "report.json"
_WRITTEN = ("model.pt2", "model.safetensors", "model.onnx", "model.umodel", "tree.json", REPORT, "report.html")


def write_outcome(report: FusionReport, out: Path, examples: Inputs, *, onnx: bool) -> tuple[str, ...]:
    """Write the models and the report; ``report.json`` comes last.

    Args:
        report: Of the search.
        out: The model of the first threshold goes there, those of others to ``drop-0.02`` and the like in it.
        examples: A few samples, where the models are.
        onnx: Write ONNX files too.

    Returns:
        What could not be written, and why.

    Raises:
        FusionError: If ``onnx`` lacks what it needs, or a file does not answer as the model does.
    """
    notes: list[str] = []
    for threshold, folder in folders(report, out).items():
        module = report.best[threshold].module
        save(module, folder, examples, onnx=onnx)
        notes += _write_umodel(module, folder / "model.umodel", examples)
    content = report.to_json()
    write_page(report, out / "report.html")
    write_json(out / REPORT, content)
    return tuple(notes)


def folders(report: FusionReport, out: Path) -> dict[float, Path]:
    """Return where the model for each threshold goes."""
    first, *others = report.best
    return {first: out} | {threshold: out / f"drop-{threshold:g}" for threshold in others}


def forget(out: Path) -> None:
    """Remove what an earlier fusion left in ``out``, and nothing else."""
    for folder in [out, *out.glob("drop-*")]:
        for name in _WRITTEN:
            (folder / name).unlink(missing_ok=True)
        for path in (folder / "tasks").glob("*"):
            if path.suffix in {".pt2", ".safetensors"}:
                path.unlink()
    shutil.rmtree(out / SEARCH, ignore_errors=True)


def _write_umodel(module: FusedTree, path: Path, examples: Inputs) -> list[str]:
    """Write the fused module as an archive that can be trained further; it is a convenience, so that failing costs a note."""
    cpu_examples = map_inputs(examples, lambda tensor: tensor.cpu())
    try:
        export(module, cpu_examples, path)
    except ExportError as error:
        path.unlink(missing_ok=True)
        return [f"{path.name} was not written: {' '.join(str(error).split())[:500]}"]
    return []
