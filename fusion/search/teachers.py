"""What the original models answer, computed once: outputs to imitate, and features below blocks that do not change.

The paper distils from the models' outputs (section 5.2); kept features are ours.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from fusion.graph.errors import FusionError
from fusion.search.data import Part
from fusion.search.hashing import hash_model, tensors_of
from fusion.search.outputs import float_tensors, scored_path
from fusion.search.tasks import Task
from fusion.search.tensor_store import Stored, TensorStore, Writer
from fusion.search.training import Batch, Hint

if TYPE_CHECKING:
    from fusion.graph.block import BlockSequence
    from fusion.graph.tree import FusedTree

Boundary = tuple[int, int]
"""(task, op): the input of that task's block. A `BlockId` is one."""


class TeacherCache:
    """Answers and features of the original models on whole parts of the data, each computed once.

    Args:
        sequences: The models in blocks; their names are the tasks'.
        folder: For what does not fit into memory; a later process finds it again. None: a temporary folder.
        ram_bytes: Largest sum of what is kept in memory.
        batch_size: Samples of one forward pass.
    """

    def __init__(
        self,
        sequences: Sequence[BlockSequence],
        *,
        folder: Path | None = None,
        ram_bytes: int = 2 << 30,
        batch_size: int = 64,
    ) -> None:
        self.tasks = tuple(sequence.name for sequence in sequences)
        self._sequences = tuple(sequences)
        self._store = TensorStore(folder, ram_bytes)
        self._batch_size = batch_size
        self._contents = tuple(hash_model(sequence) for sequence in sequences)
        self._outputs: dict[tuple[str, int], dict[str, Stored]] = {}
        self._flat: dict[str, tuple[Tensor, ...]] = {}
        self._weights: dict[tuple[str, str], dict[str, tuple[float, ...]]] = {}

    @property
    def content(self) -> dict[str, str]:
        """Hash of each model by task name."""
        return dict(zip(self.tasks, self._contents, strict=True))

    def inputs(self, part: Part) -> tuple[Tensor, ...]:
        """Return the flat inputs of a part, each `(samples, …)`: the very tensors that teachers and students see."""
        if part.content not in self._flat:
            self._flat[part.content] = tuple(self._sequences[0].signature.flatten(part.inputs))
        return self._flat[part.content]

    def outputs(self, part: Part, task: str) -> Mapping[str, Stored]:
        """Return every float tensor of a model's output on a part, by path, in the output's order.

        Raises:
            FusionError: An output has no float tensor with a row per sample, or holds NaN or infinity.
        """
        key = (part.content, self.tasks.index(task))
        if key not in self._outputs:
            self._outputs[key] = self._compute_outputs(part, key[1])
        return self._outputs[key]

    def scored(self, part: Part, task: Task) -> Stored:
        """Return the part of a model's output that is scored."""
        outputs = self.outputs(part, task.name)
        return outputs[scored_path(outputs.keys(), task)]

    def features(self, part: Part, *boundaries: Boundary) -> list[Stored]:
        """Return the inputs of blocks of the original models on a part, as float16 where they fit its range."""
        for task in sorted({task for task, _ in boundaries}):
            wanted = [op for of, op in boundaries if of == task and self._store.get(self._key(part, task, f"f{op}")) is None]
            if wanted:
                self._compute_features(part, task, sorted(set(wanted)))
        stored = [self._store.get(self._key(part, task, f"f{op}")) for task, op in boundaries]
        return [rows for rows in stored if rows is not None]

    def loss_weights(self, part: Part, kind: Literal["l1", "mse"] = "l1") -> dict[str, tuple[float, ...]]:
        """Weigh each float tensor of each task's output so that all count alike.

        `w = 1 / (n · E|output|)` for a task with n tensors; with "mse" `1 / (n · E output²)`. For one tensor this is the
        paper's weight.
        """
        key = (part.content, kind)
        if key not in self._weights:
            power = 1 if kind == "l1" else 2
            sizes = {task: [self.mean_size(rows, power) for rows in self.outputs(part, task).values()] for task in self.tasks}
            self._weights[key] = {task: tuple(1 / (len(means) * mean) for mean in means) for task, means in sizes.items()}
        return self._weights[key]

    def known_steps(self, tree: FusedTree) -> dict[str, Boundary]:
        """Find steps of a tree whose output is an original model's feature, and stays so: by name, the boundary after them.

        Such a step and all before it are frozen blocks of one model, in its order, with its weights. Only those are given
        whose output something else takes.
        """
        chains: dict[str, Boundary] = {}
        for step in tree.steps:
            place = _block_place(step.name)
            if place is None or step.task is not None or step.name not in tree.frozen:
                continue
            task, op = place
            before = _block_name(task, op - 1) if op else None
            follows = step.source == before and (before is None or before in chains)
            if follows and _same_tensors(tree.nodes[step.name], self._sequences[task].blocks[op]):
                chains[step.name] = (task, op + 1)
        taken = {step.source for step in tree.steps if step.name not in chains}
        return {name: boundary for name, boundary in chains.items() if name in taken}

    def batch(
        self,
        part: Part,
        index: Tensor,
        *,
        tasks: Sequence[str] | None = None,
        known: Mapping[str, Boundary] | None = None,
        hints: Mapping[str, Boundary] | None = None,
        device: str | torch.device = "cpu",
    ) -> Batch:
        """Gather what a step sees of the samples at `index` `(batch,)`, int64.

        Args:
            part: The samples.
            index: Which of them.
            tasks: Those whose targets are wanted; None: all.
            known: Steps that need not run, and the boundary whose feature takes the place of their output.
            hints: Steps whose output should be like the feature at a boundary, e.g. `adapter_targets(tree)`.
            device: Where the batch is wanted.
        """
        wanted = self.tasks if tasks is None else tasks
        known, hints = known or {}, hints or {}
        features = self.features(part, *known.values(), *hints.values())
        gathered = [rows.gather(index).to(device) for rows in features]
        return Batch(
            inputs=tuple(tensor[index].to(device) for tensor in self.inputs(part)),
            targets={task: [rows.gather(index).to(device) for rows in self.outputs(part, task).values()] for task in wanted},
            known=dict(zip(known, gathered, strict=False)),
            hints={
                step: Hint(task=self.tasks[task], target=feature)
                for (step, (task, _)), feature in zip(hints.items(), gathered[len(known) :], strict=True)
            },
        )

    def _compute_outputs(self, part: Part, task: int) -> dict[str, Stored]:
        writers: dict[str, Writer] = {}
        sequence = self._sequences[task]
        for inputs in self._batches(part, sequence):
            found = float_tensors(sequence.run(inputs), len(inputs[0]))
            if not found:
                raise FusionError(f"model '{sequence.name}': its output has no float tensor with a row per sample to imitate")
            for path, tensor in found.items():
                if path not in writers:
                    writers[path] = Writer(self._store, self._key(part, task, f"o{path}"), len(part), half=False)
                if not tensor.isfinite().all():
                    raise FusionError(
                        f"model '{sequence.name}': output '{path}' is not finite for some samples; "
                        "it cannot be imitated: take these samples out, or have the model return finite values"
                    )
                writers[path].add(tensor)
        return {path: writer.close() for path, writer in writers.items()}

    def _compute_features(self, part: Part, task: int, ops: Sequence[int]) -> None:
        sequence = self._sequences[task]
        writers = {op: Writer(self._store, self._key(part, task, f"f{op}"), len(part), half=True) for op in ops}
        for inputs in self._batches(part, sequence):
            features = sequence.features(inputs)
            for op, writer in writers.items():
                writer.add(features[op])
        for writer in writers.values():
            writer.close()

    def _batches(self, part: Part, sequence: BlockSequence) -> Iterator[list[Tensor]]:
        """Yield the flat inputs in chunks, with the model in eval mode and without gradients."""
        device = next((tensor.device for tensor in tensors_of(sequence).values()), torch.device("cpu"))
        was_training = sequence.training
        sequence.eval()
        try:
            with torch.inference_mode():
                for start in range(0, len(part), self._batch_size):
                    yield [tensor[start : start + self._batch_size].to(device) for tensor in self.inputs(part)]
        finally:
            sequence.train(was_training)

    def mean_size(self, rows: Stored, power: int = 1) -> float:
        """Return the mean of `|x|^power` over all elements; 1 where all are zero: such an output is imitated as it is."""
        total = sum(float(chunk.double().abs().pow(power).sum()) for chunk in rows.chunks(self._batch_size))
        mean = total / max(1, math.prod(rows.shape))
        return mean if mean > 0 else 1.0

    def _key(self, part: Part, task: int, what: str) -> str:
        text = f"{self._contents[task]}|{part.content}|{what}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def adapter_targets(tree: FusedTree) -> dict[str, Boundary]:
    """Find the boundary that each adapter of a tree stands in for: the input that its block had in its own model."""
    found = {step.name: re.fullmatch(r"a(?:r|\d+_\d+)_(\d+)_(\d+)", step.name) for step in tree.steps}
    return {name: (int(match[1]), int(match[2])) for name, match in found.items() if match}


def _block_name(task: int, op: int) -> str:
    return f"b{task}_{op}"


def _block_place(step: str) -> Boundary | None:
    match = re.fullmatch(r"b(\d+)_(\d+)", step)
    return (int(match[1]), int(match[2])) if match else None


def _same_tensors(first: nn.Module, second: nn.Module) -> bool:
    one, other = tensors_of(first), tensors_of(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name].to(one[name].device)) for name in one)
