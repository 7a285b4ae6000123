"""The parts of a job's description: strict, frozen records that JSON and Python fill alike. Free of torch."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from unified.job_problems import refusal
from unified.job_values import Columns, FilePath, JobName, Plain, PositiveInt, Samples, plain_json
from unified.metrics import HIGHER_IS_BETTER

MAX_ARGUMENTS = 50  #: of one component; PyTorch's longest list is half that


class Part(BaseModel):
    """A strict, frozen record: unknown keys are errors, and ``"3"`` or ``true`` is not ``3``."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class ColumnSpec(Part):
    """Which columns of a table are the inputs and the targets.

    Attributes:
        inputs: One column, a list of columns (positional arguments of the model), or argument name to column.
        targets: The column of the targets.
    """

    inputs: Columns
    targets: Annotated[str, Field(min_length=1)]


class DataSpec(Part):
    """What a job trains and is tested on.

    Attributes:
        train: Path of a dataset or, in Python, ``(inputs, targets)`` with samples along the first dimension.
        test: The same, for evaluation after each epoch; None: no evaluation.
        columns: For tables (Hugging Face ``datasets``, parquet, CSV, JSON): which columns are what.
        tokenizer: Folder of a tokenizer, for text columns.
        max_length: Longest text in tokens; longer ones are cut.
    """

    train: Samples
    test: Samples | None = None
    columns: ColumnSpec | None = None
    tokenizer: FilePath | None = None
    max_length: PositiveInt | None = None


class Component(Part):
    """A class of PyTorch by its own name, with its own keyword arguments: ``{"name": "SGD", "lr": 0.1}`` or ``"SGD"``."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Plain]  # pyrefly: ignore[bad-override] - pydantic's own way to type extras

    name: Annotated[str, Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        if isinstance(value, dict) and len(value) > MAX_ARGUMENTS:
            raise refusal("E-VALUE", f"at most {MAX_ARGUMENTS} keyword arguments", "leave some out")
        return {"name": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema of the object or of its name alone."""
        return {"anyOf": [{"type": "string", "minLength": 1}, handler.resolve_ref_schema(handler(schema))]}

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments, a copy of plain JSON values."""
        return plain_json(self.model_extra or {})


class LossSpec(Component):
    """A loss of ``torch.nn`` that takes ``(output, target)`` and gives one number."""


class OptimizerSpec(Component):
    """An optimizer of ``torch.optim``."""


class LRSchedulerSpec(Component):
    """A scheduler of ``torch.optim.lr_scheduler``; ``every`` says after what it is stepped."""

    every: Literal["epoch", "step"] = "epoch"


class EarlyStopping(Part):
    """Stop when ``metric`` has not improved by more than ``min_delta`` for ``patience`` epochs.

    Attributes:
        metric: ``"train_loss"``, ``"test_loss"`` or one of the job's metrics.
        patience: Number of epochs without improvement after which training ends.
        min_delta: What counts as an improvement, in the metric's own unit.
    """

    metric: Annotated[str, WithJsonSchema({"enum": list(HIGHER_IS_BETTER)})]
    patience: PositiveInt
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class ArchitectureSpec(Part):
    """What a model file of weights alone is the weights of: a class that a library knows by name, or a list of layers.

    Attributes:
        library: Where the name is known.
        name: The name, as the library lists it; of ``transformers``, a class.
        arguments: What it is called with.
        layers: Layers of ``torch.nn``, one after another, each ``{"name": …, **arguments}``; a list in it is nested.
    """

    library: Literal["torchvision", "timm", "transformers"] | None = None
    name: Annotated[str, Field(min_length=1)] | None = None
    arguments: dict[str, Plain] = {}
    layers: list[Plain] | None = None

    def canonical(self) -> str:
        """Return it as JSON text, the same for the same architecture.

        Example:
            >>> ArchitectureSpec(library="timm", name="resnet18").canonical()
            '{"library":"timm","name":"resnet18"}'
        """
        said = {field: value for field, value in self.model_dump(mode="json").items() if value not in (None, {})}
        return json.dumps(said, sort_keys=True, separators=(",", ":"))


class FromSweep(Part):
    """Which sweep a job is a member of: written when the sweep is expanded.

    Attributes:
        name: The sweep's name.
        values: What this member got, by field; its own fields say the same.
    """

    name: JobName
    values: dict[str, Plain]


class CheckpointSpec(Part):
    """How often a job's state is saved. ``every_steps`` None: at pauses and as the operator's settings say."""

    every_steps: PositiveInt | None = None
