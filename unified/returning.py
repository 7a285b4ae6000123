"""The way out of a finished member: separated from the hybrid, written to disk, read back and proved, then returned.

The paper copies the whole hybrid to the CPU when one sub-model ends. Here one member is copied, in memory, at the boundary of
its last step; its files are written by another thread while the others train; and what was written is loaded into a fresh
instance of the submitted model whose outputs must equal the trained member's, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from separator.result import read_weights, write_weights
from separator.separate import Separated, separate
from separator.verify import differing_outputs, verify
from unified.admission import ModelForm, ModelRef
from unified.errors import JobFailedError
from unified.member import Member
from unified.messages import Returned
from unified.queue.files import sync_tree, write_durably
from unified.submission.models import load_model
from unified.submission.pretrained import CONFIG
from unified.submission.trusted import save_trusted
from unified.submission.umodel_read import load_umodel
from unified.submission.umodel_write import rewrite_weights
from unified.summary import finite

NUM_PROOF_SAMPLES = 8
MODULE = "model.pt"  #: a whole module, rebuilt and saved with its new weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """A member on its way out: its own copy of the weights, and outputs to recognise it by.

    ``hidden`` are its non-persistent buffers: no state dict holds them, but its outputs may depend on them.
    """

    name: str
    step: int
    folder: Path
    model: ModelRef
    device: torch.device
    separated: Separated
    rows: list[dict[str, float]]
    hidden: dict[str, torch.Tensor]
    inputs: torch.Tensor | dict[str, torch.Tensor]
    outputs: Any


def depart(member: Member, folder: Path) -> Departure:
    """Copy a finished member out of the hybrid.

    Raises:
        JobFailedError: If the copy is not equal to the member.
    """
    separated = separate(member.module)
    _raise_if(member.name, "the separated weights differ from the trained ones", verify(separated, member.module))
    data = member.test_data or member.train_data
    inputs, _ = data.batch(torch.arange(min(NUM_PROOF_SAMPLES, len(data))), device="cpu")
    return Departure(
        name=member.name,
        step=member.progress.step,
        folder=folder,
        model=member.submission.model,
        device=member.device,
        separated=separated,
        rows=member.progress.rows,
        hidden=_hidden_buffers(member.module, separated),
        inputs=inputs,
        outputs=_outputs(member.module, inputs, member.device),
    )


def write_departure(departure: Departure) -> None:
    """Write weights, model file and metrics; run in a thread of its own: it computes nothing and draws nothing."""
    folder = departure.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(departure.separated, folder)
    model = departure.model
    if model.form is ModelForm.UMODEL:
        rewrite_weights(model.path, departure.separated.state_dict, folder / "model.umodel")
    elif model.form is ModelForm.MODULE:
        module = load_model(model)
        module.load_state_dict(departure.separated.state_dict, strict=True)
        torch.save(module, folder / MODULE)
    elif model.form is ModelForm.PRETRAINED:
        write_durably(folder / CONFIG, (model.path / CONFIG).read_bytes())
    elif model.runs_code:
        save_trusted(model.path, model.form, departure.separated.state_dict, folder / f"model{model.path.suffix}")
    lines = "".join(json.dumps(finite(row)) + "\n" for row in departure.rows)
    write_durably(folder / "metrics.jsonl", lines.encode())
    sync_tree(folder)  # here, beside training, rather than where the result is published


def verify_departure(departure: Departure) -> Returned:
    """Read back what was written into a fresh instance of the submitted model and compare its outputs.

    Raises:
        JobFailedError: If anything differs.
    """
    restored = load_model(departure.model)
    if departure.model.form is ModelForm.UMODEL:
        returned = load_umodel(departure.folder / "model.umodel", finite=False)  # a job may keep its NaNs
        _raise_if(departure.name, "model.umodel differs", verify(departure.separated, returned))
    if departure.model.form is ModelForm.MODULE:
        written = ModelRef(path=departure.folder / MODULE, form=ModelForm.MODULE, sha256="")
        _raise_if(departure.name, f"{MODULE} differs", verify(departure.separated, load_model(written, finite=False)))
    restored.load_state_dict(read_weights(departure.folder), strict=True)
    _raise_if(departure.name, "the files differ from the trained weights", verify(departure.separated, restored))
    with torch.no_grad():
        for name, buffer in restored.named_buffers():
            if name in departure.hidden:
                buffer.copy_(departure.hidden[name])
    outputs = _outputs(restored.to(departure.device), departure.inputs, departure.device)
    _raise_if(departure.name, "the returned model's outputs differ", differing_outputs(departure.outputs, outputs))
    return Returned(
        job=departure.name,
        metrics=departure.rows[-1] if departure.rows else {},
        hashes={path.name: _sha256(path) for path in sorted(departure.folder.iterdir()) if path.suffix != ".log"},
        # as plain text: unpickling PyTorch's own kind of text would import torch in the engine's process
        versions={"python": platform.python_version(), "torch": str(torch.__version__)},
    )


def _hidden_buffers(module: torch.nn.Module, separated: Separated) -> dict[str, torch.Tensor]:
    buffers = module.named_buffers()
    return {name: buffer.cpu().clone() for name, buffer in buffers if name not in separated.state_dict}


def _outputs(module: torch.nn.Module, inputs: torch.Tensor | dict[str, torch.Tensor], device: torch.device) -> Any:
    """Run in eval mode from a fixed random state (some models draw even then); the caller preserves the state there was."""
    was_training = module.training
    module.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        if isinstance(inputs, dict):
            outputs = module(**{name: value.to(device) for name, value in inputs.items()})
        else:
            outputs = module(inputs.to(device))
    module.train(was_training)
    return outputs


def _raise_if(job: str, what: str, problems: list[str]) -> None:
    if problems:
        raise JobFailedError(f"job {job!r}: {what}: {'; '.join(problems[:3])}; this is a fault of ours, please report it")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
