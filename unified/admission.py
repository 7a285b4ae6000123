"""What is known of a job before it runs: frozen records, free of torch, so that the engine's own process stays small."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from unified.job import JobSpec

STAGED_MODEL = "model.staged"  #: file of a model that the Python API wrote for its caller


class ModelForm(StrEnum):
    """The form in which a model came."""

    UMODEL = "umodel"  #: our archive: data, runs no code on loading
    WEIGHTS = "weights"  #: tensors only (.safetensors, .pt, .pth); the job declares the architecture
    PRETRAINED = "pretrained"  #: a Hugging Face folder: config.json and safetensors, remote code off
    MODULE = "module"  #: a whole module of torch.nn classes written by torch.save: parsed and rebuilt, never unpickled
    PICKLE = "pickle"  #: a whole module written by torch.save; needs trust
    PT2 = "pt2"  #: a torch.export archive; needs trust
    TORCHSCRIPT = "torchscript"  #: needs trust
    OBJECT = "object"  #: an nn.Module of the caller of the Python API, staged with cloudpickle


#: Forms whose loading runs code of the owner's; an OBJECT is the very caller's own.
TRUSTED_FORMS = frozenset({ModelForm.PICKLE, ModelForm.PT2, ModelForm.TORCHSCRIPT})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A model file, its form and the SHA-256 of its bytes.

    Attributes:
        path: The file, or the folder of a ``PRETRAINED`` one.
        form: Its form.
        sha256: Of its bytes; of a folder, of the names and hashes of the files that are read.
        architecture: What the job declares its architecture to be, as canonical JSON; ``""`` where the file says it itself.
    """

    path: Path
    form: ModelForm
    sha256: str
    architecture: str = ""

    @property
    def runs_code(self) -> bool:
        """Whether loading it runs code of its owner's, who must be trusted, and shares no process with another user."""
        return self.form in TRUSTED_FORMS


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRef:
    """A dataset ready to be mapped: a tensor file whose content, not name, is its identity.

    Attributes:
        path: The tensor file (``.safetensors``, or a ``.pt`` that ``torch.load(mmap=True, weights_only=True)`` reads).
        key: SHA-256 of the content: equal keys are one dataset, loaded once.
        num_samples: Number of samples.
        nbytes: Size of the tensors in bytes.
        source: The name the user gave it, for messages.
    """

    path: Path
    key: str
    num_samples: int
    nbytes: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What one training step and one evaluation batch need, from fake tensors at the requested batch size.

    Attributes:
        num_parameters: Number of parameters, each tied one counted once.
        resident_bytes: Parameters + buffers + gradients (if kept) + optimizer state: held while parked.
        peak_bytes: Highest total during a training step or an evaluation batch (includes ``resident_bytes``).
        flops_per_step: Floating-point operations of one forward and backward pass.
        num_ops_per_step: Number of ATen operators of one step, forward, backward and optimizer.
        eval_peak_bytes: Highest total during an evaluation batch, ``resident_bytes`` included; 0 if it was not estimated.
        eval_flops: Floating-point operations of an evaluation batch.
    """

    num_parameters: int
    resident_bytes: int
    peak_bytes: int
    flops_per_step: int
    num_ops_per_step: int
    eval_peak_bytes: int = 0
    eval_flops: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job that was read, found well-formed and measured; what a worker needs to host it.

    ``id`` is what a queue calls it: names are unique within a run, but not within a queue. ``stack_key`` is equal for jobs that
    may step as one (:func:`unified.stack_key.stack_key`); None for a job that steps by itself.
    """

    spec: JobSpec
    folder: Path
    model: ModelRef
    train: DatasetRef
    test: DatasetRef | None
    estimate: Estimate
    id: str = ""
    stack_key: str | None = None

    @property
    def name(self) -> str:
        """What everybody calls the job: its id in a queue, else its name, which is unique within a run."""
        return self.id or self.spec.name

    def fingerprint(self) -> str:
        """Return a hash of what determines the trained weights: hyper-parameters, model and data."""
        test_key = "" if self.test is None else self.test.key
        return self.spec.fingerprint(self.model.sha256, self.train.key, test_key)

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in one epoch."""
        full, rest = divmod(self.train.num_samples, self.spec.batch_size)
        return full + (1 if rest and not self.spec.drop_last else 0)

    @property
    def num_steps(self) -> int:
        """Number of optimizer steps in all, unless stopped early."""
        if self.spec.max_steps is not None:
            return self.spec.max_steps
        assert self.spec.epochs is not None, "a validated spec has epochs or max_steps"
        return self.spec.epochs * self.steps_per_epoch

    @property
    def num_epochs(self) -> int:
        """Number of epochs, the last one possibly partial."""
        return -(-self.num_steps // max(1, self.steps_per_epoch))
