"""Jobs made of Python objects become job folders that any queue takes: models as data, and no code of the caller's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified.job import JobSpec

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "model.umodel"


def stage_job(spec: JobSpec, folder: Path, cache: Path) -> Path:
    """Write a job as a job folder and return it; the caller's model and tensors are left as they are.

    Args:
        spec: The job; a model that is an ``nn.Module`` is exported with its first training samples as the example.
        folder: Where to; it is made.
        cache: Where tensors are written, under the name of their content.

    Raises:
        ExportError: If the model cannot be exported; the message has the reason and the line to change.
        InvalidSubmission: If the training data are no dataset.
    """
    folder.mkdir(parents=True)
    content = dict(spec)
    content["data"] = dict(spec.data)
    if isinstance(spec.model, str):
        content["model"] = str(Path(spec.model).resolve())
    else:
        from unified.submission.umodel_write import export

        export(spec.model, _example(spec, cache), folder / MODEL)
        content["model"] = MODEL
    for split in ("train", "test"):
        content["data"][split] = _stage_samples(spec, content["data"][split], cache)
    if spec.data.tokenizer is not None:
        content["data"]["tokenizer"] = str(Path(spec.data.tokenizer).resolve())
    (folder / "job.json").write_text(json.dumps(JobSpec(**content).to_json()), encoding="utf-8")
    return folder


def _stage_samples(spec: JobSpec, samples: Any, cache: Path) -> str | None:
    if samples is None:
        return None
    if isinstance(samples, str):
        return str(Path(samples).resolve())
    from unified.dataset_files import reference_tensors

    inputs, targets = samples
    return str(reference_tensors(inputs, targets, source="tensors", cache_dir=cache, job=spec.name).path)


def _example(spec: JobSpec, cache: Path) -> Tensor | dict[str, Tensor]:
    """Return the inputs of the first two training samples."""
    import torch

    from unified.dataset_files import reference, reference_tensors
    from unified.datasets import load_tensors

    train, data = spec.data.train, spec.data
    if isinstance(train, str):
        found = reference(
            Path(train).resolve(),
            columns=data.columns,
            tokenizer=None if data.tokenizer is None else Path(data.tokenizer).resolve(),
            max_length=data.max_length,
            cache_dir=cache,
            job=spec.name,
        )
    else:
        found = reference_tensors(*train, source="tensors", cache_dir=cache, job=spec.name)
    samples = load_tensors(found)
    inputs, _ = samples.batch(torch.arange(min(2, len(samples))), device="cpu")
    return inputs
