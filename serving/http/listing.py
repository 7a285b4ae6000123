"""What is served, as JSON: the profile table of a model with what is on the device now."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from serving.table import Table


def variants_of(table: Table, residents: Collection[str]) -> dict[str, Any]:
    """Return all variants of a model with their profiles.

    Args:
        table: Of the model.
        residents: Ids of the variants on the device, of any model.
    """
    return {
        "name": table.family.name,
        "hardware": table.hardware,
        "tasks": [{"name": task.name, "kind": str(task.kind)} for task in table.family.tasks],
        "batches": list(table.batches),
        "variants": [_variant(table, place, residents) for place in range(len(table))],
    }


def _variant(table: Table, place: int, residents: Collection[str]) -> dict[str, Any]:
    variant = table.variants[place]
    scores = zip(table.family.task_names, table.scores[place].tolist(), strict=True)
    return {
        "id": variant.id,
        "name": variant.name,
        "tasks": list(variant.tasks),
        "source": str(variant.source),
        "parent": variant.parent,
        "ratio": variant.ratio,
        "achieved": dict(variant.achieved),
        "num_parameters": variant.num_parameters,
        "flops": variant.flops,
        "num_bytes": variant.num_bytes,
        "scores": {task: round(score, 6) for task, score in scores if not math.isnan(score)},
        "infer_ms": {quantile: _rounded(values[place].tolist()) for quantile, values in table.infer_ms.items()},
        "load_cold_ms": round(float(table.load_cold_ms[place]), 4),
        "load_warm_ms": round(float(table.load_warm_ms[place]), 4),
        "is_suspect": place in table.suspect,
        "is_resident": variant.id in residents,
    }


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 4) for value in values]
