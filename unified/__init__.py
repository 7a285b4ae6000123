"""unified: train many people's PyTorch models as one, and hand each back exactly as if it had trained alone."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unified.answering.api import stack
    from unified.answering.session import Stacked
    from unified.api import train
    from unified.converting.converting import convert
    from unified.converting.restoring import restore
    from unified.engine import Engine
    from unified.errors import (
        CheckpointError,
        DoesNotFitError,
        ExportError,
        InvalidSubmission,
        JobFailedError,
        Problem,
        UnifiedError,
        WorkerDiedError,
    )
    from unified.fusing.api import fuse
    from unified.fusing.session import Fusion
    from unified.job import JobSpec
    from unified.job_state import JobState
    from unified.merging.api import merge
    from unified.merging.session import Merged
    from unified.results import Result, Timing
    from unified.service.client import Client
    from unified.submission.umodel_read import load_umodel
    from unified.submission.umodel_write import export
    from unified.variants.api import Building, build_variants

#: Public name -> the module that defines it. Resolved on first use, so that the command line starts without torch.
_HOMES = {
    "Building": "unified.variants.api",
    "CheckpointError": "unified.errors",
    "Client": "unified.service.client",
    "DoesNotFitError": "unified.errors",
    "Engine": "unified.engine",
    "ExportError": "unified.errors",
    "Fusion": "unified.fusing.session",
    "InvalidSubmission": "unified.errors",
    "JobFailedError": "unified.errors",
    "JobSpec": "unified.job",
    "JobState": "unified.job_state",
    "Merged": "unified.merging.session",
    "Problem": "unified.errors",
    "Result": "unified.results",
    "Stacked": "unified.answering.session",
    "Timing": "unified.results",
    "UnifiedError": "unified.errors",
    "WorkerDiedError": "unified.errors",
    "build_variants": "unified.variants.api",
    "convert": "unified.converting.converting",
    "export": "unified.submission.umodel_write",
    "fuse": "unified.fusing.api",
    "load_umodel": "unified.submission.umodel_read",
    "merge": "unified.merging.api",
    "restore": "unified.converting.restoring",
    "stack": "unified.answering.api",
    "train": "unified.api",
}

__version__ = "0.1.0"
__all__ = [
    "Building",
    "CheckpointError",
    "Client",
    "DoesNotFitError",
    "Engine",
    "ExportError",
    "Fusion",
    "InvalidSubmission",
    "JobFailedError",
    "JobSpec",
    "JobState",
    "Merged",
    "Problem",
    "Result",
    "Stacked",
    "Timing",
    "UnifiedError",
    "WorkerDiedError",
    "build_variants",
    "convert",
    "export",
    "fuse",
    "load_umodel",
    "merge",
    "restore",
    "stack",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'unified' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
