"""What a search stands on: the models in blocks, the space of graphs, the teachers' answers, costs and likeness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fusion.graph.block import BlockSequence
from fusion.graph.errors import FusionError
from fusion.graph.parse import parse
from fusion.search.absgraph import BlockId, Graph, Space, capacities, flops, original
from fusion.search.batch_order import BatchOrder
from fusion.search.build import space_of
from fusion.search.config import Config, Metric
from fusion.search.data import FusionData, Part
from fusion.search.flops import block_flops
from fusion.search.history import History
from fusion.search.measuring import measure_table
from fusion.search.similarity import boundary_similarity
from fusion.search.table import CostTable
from fusion.search.tallies import tally_of
from fusion.search.tasks import Task, check_tasks, learning_rate
from fusion.search.teachers import TeacherCache

GLANCE_SAMPLES = 512
MAX_SAMPLES = 384  #: to fit adapters to, and to compare features on


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setting:
    """All that candidates are made from and judged by; nothing here changes during a search.

    Attributes:
        tasks: What is to be answered.
        config: How the search goes.
        sequences: The models in blocks, in the order of the tasks.
        space: What may be shared.
        data: Its parts.
        teachers: The models' answers.
        table: What blocks and adapters cost.
        dissimilarity: Of (host, guest): 1 minus the likeness of the inputs of two blocks; empty where nobody asks.
        order: Which samples a step sees.
        glance: A part of the validation part, looked at first; None if that is small.
        sample: Raw inputs of a few hundred samples of the training part, in the order of the signature.
        lr: Learning rate of blocks.
        device: Where candidates are trained and measured.
    """

    tasks: tuple[Task, ...]
    config: Config
    sequences: tuple[BlockSequence, ...]
    space: Space
    data: FusionData
    teachers: TeacherCache
    table: CostTable
    dissimilarity: Mapping[tuple[BlockId, BlockId], float]
    order: BatchOrder
    glance: Part | None
    sample: tuple[torch.Tensor, ...]
    lr: float
    device: torch.device

    @property
    def original(self) -> Graph:
        """The graph in which nothing is shared but the input."""
        return original(self.space)

    def cost(self, graph: Graph) -> float:
        """Return the cost of a graph in the search's metric: seconds, FLOPs per sample, parameters or bytes."""
        match self.config.metric:
            case Metric.LATENCY:
                return self.table.predict(graph)
            case Metric.FLOPS:
                return float(flops(graph))
            case Metric.PARAMETERS:
                return float(capacities(graph).total)
            case Metric.MEMORY:
                return float(self.table.memory(graph))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the parser wants known."""
        return tuple(note for sequence in self.sequences for note in sequence.notes)


def parsed(tasks: Sequence[Task], part: Part, device: torch.device) -> tuple[BlockSequence, ...]:
    """Return the models in blocks, on ``device``, in eval mode; the models handed in stay where they are.

    Raises:
        CaptureError: If a model cannot be parsed.
        FusionError: If there are too few tasks.
    """
    check_tasks(tasks)
    example = part.select(torch.arange(min(2, len(part)))).inputs
    sequences = [parse(task.model, example, name=task.name) for task in tasks]
    return tuple(sequence.to(device).eval() for sequence in sequences)


def teacher_scores(setting: Setting, part: Part) -> dict[str, float]:
    """Return how the models handed in score, by task."""
    config, names = setting.config, [task.name for task in setting.tasks]
    tallies = {task.name: tally_of(task, part, setting.teachers, label_free=config.label_free) for task in setting.tasks}
    for task in setting.tasks:
        stored = setting.teachers.scored(part, task)
        for index in torch.arange(len(part)).split(1024):
            tallies[task.name].add(index, stored.gather(index))
    return {name: tallies[name].close().teacher_score for name in names}


def prepare(
    tasks: Sequence[Task], data: FusionData, config: Config, sequences: tuple[BlockSequence, ...], history: History
) -> Setting:
    """Measure costs and likeness, or read them from the history, so that a search that goes on decides as it did before."""
    device = next((parameter.device for parameter in sequences[0].parameters()), torch.device("cpu"))
    inputs = sequences[0].signature.flatten(data.train.select(torch.arange(min(64, len(data.train)))).inputs)
    inputs = tuple(tensor.to(device) for tensor in inputs)
    space = space_of(sequences, [block_flops(sequence, inputs) for sequence in sequences], stitches=config.stitches)
    teachers = TeacherCache(sequences, folder=history.folder / "features")
    table = _table(space, sequences, inputs, config, history)
    sample = _sample(sequences, data.train, config, device)
    likeness = _dissimilarity(sequences, sample) if config.policy == "guided" else {}
    order = BatchOrder(num_samples=len(data.train), batch_size=min(config.batch_size, len(data.train)), seed=config.seed)
    return Setting(
        tasks=tuple(tasks),
        config=config,
        sequences=sequences,
        space=space,
        data=data,
        teachers=teachers,
        table=table,
        dissimilarity=likeness,
        order=order,
        glance=_glance(data.validation),
        sample=sample,
        lr=config.lr or learning_rate(tasks),
        device=device,
    )


def _table(
    space: Space, sequences: Sequence[BlockSequence], inputs: tuple[torch.Tensor, ...], config: Config, history: History
) -> CostTable:
    stored = history.table()
    generator = torch.Generator().manual_seed(config.seed)
    table = measure_table(
        space,
        sequences,
        inputs,
        batch_size=config.latency_batch,
        max_seconds=config.measure_seconds,
        generator=generator,
        stored=stored,
    )
    new = table.to_json()
    if stored is not None and history.num_records and stored["conditions"] != new["conditions"]:
        raise FusionError(
            f"history at {history.folder} has costs that were measured with {stored['conditions']}; here it is "
            f"{new['conditions']}, and costs cannot be compared; go on as it began, or use a new path"
        )
    history.save_table(new)
    return table


def _glance(part: Part) -> Part | None:
    return part.select(torch.arange(GLANCE_SAMPLES)) if len(part) >= 2 * GLANCE_SAMPLES else None


def _sample(sequences: Sequence[BlockSequence], part: Part, config: Config, device: torch.device) -> tuple[torch.Tensor, ...]:
    count = min(MAX_SAMPLES, len(part))
    index = torch.randperm(len(part), generator=torch.Generator().manual_seed(config.seed))[:count]
    return tuple(tensor.to(device) for tensor in sequences[0].signature.flatten(part.select(index).inputs))


def _dissimilarity(
    sequences: Sequence[BlockSequence], sample: tuple[torch.Tensor, ...]
) -> dict[tuple[BlockId, BlockId], float]:
    alike = boundary_similarity(sequences, sample, max_samples=MAX_SAMPLES)
    return {pair: 1.0 - value for pair, value in alike.items()}
