"""The loss of our own presets: what a classifier says is compared as probabilities, everything else as numbers.

Reference: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2. The l1 distance of GMorph
(section 5.2) asks for the very logits, also where they tell nothing about the answer; with it a fused model of small networks
forgets one task over the other's scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fusion.search.losses import distillation_loss
from fusion.search.outputs import float_tensors, scored_path
from fusion.search.tallies import is_dense
from fusion.search.tasks import Task

if TYPE_CHECKING:
    from fusion.search.data import Part
    from fusion.search.teachers import TeacherCache
    from fusion.search.training import Batch

TEMPERATURE = 2.0


def class_outputs(tasks: Sequence[Task], teachers: TeacherCache, part: Part) -> dict[str, int]:
    """Return, by task, which of its output's float tensors are the scores of classes ``(samples, classes >= 2)``.

    A task that compares values, or whose labels are numbers, is left out.
    """
    found: dict[str, int] = {}
    for task in tasks:
        paths = list(teachers.outputs(part, task.name))
        path = scored_path(paths, task)
        shape = teachers.outputs(part, task.name)[path].shape
        if len(shape) == 2 and shape[1] >= 2 and not is_dense(task, shape, part.labels.get(task.name)):
            found[task.name] = paths.index(path)
    return found


def soft_loss(
    weights: Mapping[str, tuple[float, ...]], classes: Mapping[str, int], outputs: Mapping[str, Any], batch: Batch
) -> Tensor:
    """Return the loss of each task, ``(tasks,)``, in the order of ``batch.targets``.

    ``T^2 KL(teacher || student)`` at temperature T for the scores of classes, plus the weighted l1 distance of every other
    float tensor of the output.

    Args:
        weights: Of the l1 distances: :meth:`TeacherCache.loss_weights`.
        classes: As :func:`class_outputs` gives them.
        outputs: By task what the fused model answered.
        batch: The teachers' answers.
    """
    num_samples = len(batch.inputs[0])
    muted = {task: tuple(0.0 if classes.get(task) == at else w for at, w in enumerate(row)) for task, row in weights.items()}
    others = distillation_loss(muted, outputs, batch)
    losses: list[Tensor] = []
    for place, (task, targets) in enumerate(batch.targets.items()):
        if task not in classes:
            losses.append(others[place])
            continue
        found = list(float_tensors(outputs[task], num_samples).values())[classes[task]]
        mine, theirs = (F.log_softmax(tensor / TEMPERATURE, 1) for tensor in (found, targets[classes[task]]))
        divergence = F.kl_div(mine, theirs, log_target=True, reduction="batchmean") * TEMPERATURE**2
        losses.append(divergence if len(targets) == 1 else divergence + others[place])
    return torch.stack(losses)
