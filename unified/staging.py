"""Jobs made of Python objects become job folders, so that everything behind the API knows one form only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified.admission import STAGED_MODEL
from unified.errors import InvalidSubmission, Problem
from unified.job import JobSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


def stage(spec: JobSpec, folder: Path, cache: Path) -> Path:
    """Write ``spec`` as a job folder and return it; the caller's model and tensors are left as they are.

    The model is written with ``cloudpickle``, which takes classes of scripts, notebooks and functions by value.

    Raises:
        InvalidSubmission: If the model cannot be pickled, or the tensors are no dataset.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = dict(spec)
    content["data"] = dict(spec.data)
    if not isinstance(spec.model, str):
        _write_model(spec.name, spec.model, folder / STAGED_MODEL)
        content["model"] = STAGED_MODEL
    else:
        content["model"] = str(Path(spec.model).resolve())
    for split in ("train", "test"):
        content["data"][split] = _stage_samples(spec.name, content["data"][split], cache)
    if spec.data.tokenizer is not None:
        content["data"]["tokenizer"] = str(Path(spec.data.tokenizer).resolve())
    plain = JobSpec(**content)
    (folder / "job.json").write_text(json.dumps(plain.to_json()))
    return folder


def _write_model(job: str, model: nn.Module, path: Path) -> None:
    import cloudpickle

    try:
        path.write_bytes(cloudpickle.dumps(model))
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise InvalidSubmission(
            [
                Problem(
                    code="E-PICKLE",
                    job=job,
                    field="model",
                    expected="an nn.Module that can be sent to a worker process",
                    given=f"{type(model).__name__}: {error}",
                    remedy="remove what cannot be pickled (locks, open files, non-leaf tensors), or unified.export the model",
                )
            ]
        ) from error


def _stage_samples(job: str, samples: Any, cache: Path) -> str | None:
    """Write tensors under the name of their content, so that jobs which are given the same ones share one file."""
    if samples is None:
        return None
    if isinstance(samples, str):
        return str(Path(samples).resolve())
    from unified.dataset_files import reference_tensors

    inputs: Tensor | dict[str, Tensor]
    inputs, targets = samples
    return str(reference_tensors(inputs, targets, source="tensors", cache_dir=cache, job=job).path)
