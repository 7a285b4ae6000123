"""Scores of fused models against sums done by hand, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fusion.graph.errors import FusionError
from fusion.graph.tree import FusedTree, Step
from fusion.search.data import Part
from fusion.search.scores import clip_drop, evaluate
from fusion.search.tallies import ScoreKind, TaskScore, paired_error
from fusion.search.tasks import Task
from fusion.search.teachers import TeacherCache
from tests.unit.fused_trees import Takes
from tests.unit.fusion_models import Chain, chains, samples, shared


class Answers(nn.Module):
    """Answers each input, the number of a sample, with a row of a table."""

    def __init__(self, table: object) -> None:
        super().__init__()
        self.table = table

    def forward(self, x: Tensor) -> object:
        return _rows(self.table, x[:, 0].long())


def _rows(table: object, index: Tensor) -> object:
    if isinstance(table, Tensor):
        return table[index]
    return {name: _rows(value, index) for name, value in table.items()}


def score(student: object, teacher: object, labels: Tensor | None = None, **settings: object) -> TaskScore:
    """Score a table of answers against a teacher's."""
    label_free = settings.pop("label_free", False)
    count = len(next(iter(teacher.values())) if isinstance(teacher, dict) else teacher)
    part = Part(inputs=torch.arange(float(count))[:, None], labels={} if labels is None else {"age": labels})
    step = Step(name="b0_0", source=None, needs=(), task="age")
    tree = FusedTree([step], {"b0_0": Answers(student)}, tasks=["age"], signature=Takes())
    cache = TeacherCache([Chain("age", Answers(teacher))], batch_size=3)
    task = Task(name="age", model=nn.Identity(), **settings)
    [found] = evaluate(tree, part, cache, [task], batch_size=4, label_free=label_free).per_task
    assert found.task == "age"
    return found


def one_hot(classes: list[int], num: int = 3) -> Tensor:
    return nn.functional.one_hot(torch.tensor(classes), num).float()


def test_accuracy_counts_labelled_samples_only():
    labels = torch.tensor([0, 1, 2, 0, -100, -100, 1])
    student = one_hot([0, 1, 0, 0, 2, 2, 0])  # right: 3 of 5
    teacher = one_hot([0, 1, 2, 0, 0, 2, 2])  # right: 4 of 5
    found = score(student, teacher, labels)
    assert found.kind == ScoreKind.ACCURACY
    assert (found.score, found.teacher_score, found.num_samples, found.resolution) == (0.6, 0.8, 5, 0.2)
    assert found.drop == pytest.approx(0.2)
    assert found.agreement == 0.6
    differences = torch.tensor([0.0, 0, 1, 0, 0])
    assert found.standard_error == pytest.approx(float(differences.std() / math.sqrt(5)))


@pytest.mark.parametrize(
    ("output", "labels"),
    [
        ((6, 3, 2, 2), (6, 2, 2)),  # segmentation: classes first
        ((6, 2, 3), (6, 2)),  # tokens: classes last
        ((6, 3, 2), (6, 2)),  # a sequence with classes first
        ((6, 3), (6,)),
        ((6, 3), (6, 1)),
        ((6, 3, 2, 2), (6, 1, 2, 2)),
    ],
)
def test_classes_are_found_by_the_shape_of_labels(output, labels):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(output, generator=generator) for _ in range(2))
    wanted = torch.randint(0, 3, labels, generator=generator)
    wanted.view(-1)[3] = -100
    axis = 1 if output[1] == 3 else 2
    counts = wanted != -100
    found = score(student, teacher, wanted)
    assert found.score == pytest.approx(float((student.argmax(axis).reshape(labels) == wanted)[counts].float().mean()))
    assert found.teacher_score == pytest.approx(float((teacher.argmax(axis).reshape(labels) == wanted)[counts].float().mean()))


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_logit_answers_yes_or_no(shape):
    student, teacher = torch.tensor([2.0, -1, 3, -4]).reshape(shape), torch.tensor([2.0, 1, 3, -4]).reshape(shape)
    found = score(student, teacher, torch.tensor([1, 1, 0, 0]))
    assert (found.score, found.teacher_score, found.agreement) == (0.5, 0.75, 0.75)


def test_labels_that_fit_no_axis_are_refused():
    with pytest.raises(FusionError, match=r"task 'age': labels \(4, 5\) fit no axis of classes in the output \(4, 3\)"):
        score(torch.randn(4, 3), torch.randn(4, 3), torch.zeros(4, 5, dtype=torch.int64))


def test_without_labels_agreement_with_the_teacher_counts():
    student, teacher = one_hot([0, 1, 2, 0]), one_hot([0, 1, 2, 1])
    for found in (score(student, teacher), score(student, teacher, torch.full((4,), -100))):
        assert found.kind == ScoreKind.AGREEMENT
        assert (found.score, found.teacher_score, found.drop, found.agreement) == (0.75, 1.0, 0.25, 0.75)


def test_values_count_by_their_distance_in_units_of_the_teacher_s_mean_size():
    teacher = torch.tensor([[1.0], [-3.0], [2.0], [2.0]])
    student = torch.tensor([[1.0], [-3.0], [3.0], [2.0]])
    for labels, settings_ in ((None, {}), (torch.ones(4, 1), {}), (torch.tensor([0, 1, 0, 1]), {"dense": True})):
        found = score(student, teacher, labels, **settings_)
        assert found.kind == ScoreKind.CLOSENESS
        assert found.score == pytest.approx(1 - (1 / 4) / 2)
        assert found.drop == pytest.approx(0.125)
        assert found.standard_error == pytest.approx(float(torch.tensor([0, 0, 0.5, 0]).std()) / 2)
    maps = torch.rand(3, 2, 4, 4) + 1
    assert score(maps, maps).kind == ScoreKind.CLOSENESS  # maps are values unless said otherwise
    assert score(maps, maps, dense=False).kind == ScoreKind.AGREEMENT


def test_a_vector_of_values_is_compared_too():
    assert score(torch.tensor([1.0, 2, 4]), torch.tensor([1.0, 2, 3])).score == pytest.approx(1 - (1 / 3) / 2)


class Unlabelled(Mapping[str, Tensor]):
    """Labels that must not be looked at."""

    def __getitem__(self, key: str) -> Tensor:
        raise AssertionError("a label was looked at")

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def test_label_free_looks_at_no_label():
    models = chains()
    part = Part(inputs=samples(20), labels=Unlabelled())
    tasks = [Task(name=model.name, model=model, score=lambda output, labels: 0.0) for model in models]
    found = evaluate(shared(models), part, TeacherCache(models), tasks, label_free=True)
    assert [entry.kind for entry in found.per_task] == [ScoreKind.AGREEMENT, ScoreKind.AGREEMENT]


def squared(output: Tensor, labels: Tensor) -> float:
    return -float((output[:, 0] - labels).square().mean())


def squared_each(output: Tensor, labels: Tensor) -> Tensor:
    return -(output[:, 0] - labels).square()


def test_a_user_s_score_sees_labelled_samples_and_both_forms_agree():
    generator = torch.Generator().manual_seed(0)
    teacher, labels = torch.randn(500, 2, generator=generator), torch.randn(500, generator=generator)
    student = teacher + 0.3 * torch.randn(500, 2, generator=generator)
    labels[::7] = float("nan")
    there = ~labels.isnan()
    number, each = (score(student, teacher, labels, score=function) for function in (squared, squared_each))
    for found in (number, each):
        assert found.kind == ScoreKind.CALLABLE
        assert found.num_samples == int(there.sum())
        assert found.score == pytest.approx(squared(student[there], labels[there]), rel=1e-5)
        assert found.drop == pytest.approx(found.teacher_score - found.score)
    differences = squared_each(teacher[there], labels[there]) - squared_each(student[there], labels[there])
    exact = float(differences.std() / math.sqrt(len(differences)))
    assert each.standard_error == pytest.approx(exact, rel=1e-5)
    assert number.standard_error == pytest.approx(exact, rel=0.7)  # ten groups: its own relative error is about 1/sqrt(18)


def share_of_yes(output: Tensor, labels: Tensor) -> float:
    if len(labels) < 10:
        raise ValueError("too few")
    return float(((output[:, 0] > 0) == labels.bool()).float().mean())


def test_a_score_that_cannot_do_with_fewer_samples_has_a_binomial_error():
    teacher = torch.tensor([1.0, -1] * 5)[:, None]
    student = teacher * torch.tensor([1.0] * 8 + [-1.0] * 2)[:, None]
    found = score(student, teacher, torch.tensor([1, 0] * 5), score=share_of_yes)
    assert (found.score, found.drop) == (pytest.approx(0.8), pytest.approx(0.2))
    assert found.standard_error == pytest.approx(math.sqrt(0.8 * 0.2 / 10))


def test_a_score_that_is_no_number_is_a_drop_of_one():
    teacher, student = torch.ones(6, 1), torch.full((6, 1), float("nan"))
    found = score(student, teacher, torch.ones(6), score=squared)
    assert (found.drop, found.teacher_score) == (1.0, 0.0)
    assert math.isfinite(found.standard_error)
    with pytest.raises(FusionError, match=r"task 'age': its score of the original model is nan"):
        score(teacher, teacher, torch.ones(6), score=lambda output, labels: float("nan"))


def test_answers_that_are_no_numbers_are_wrong():
    teacher = one_hot([0, 1, 2, 0])
    student = teacher.clone()
    student[0, 1] = float("nan")
    student[3, 2] = float("inf")
    assert score(student, teacher).score == 0.5
    assert score(student, teacher, torch.tensor([0, 1, 2, 0])).score == 0.5
    found = score(student, teacher, dense=True)
    assert math.isfinite(found.score)
    assert found.score == pytest.approx(0.5)


def test_dict_outputs_are_scored_by_the_part_that_the_task_names():
    teacher = {"logits": one_hot([0, 1]), "hidden": torch.randn(2, 5)}
    student = {"logits": one_hot([0, 2]), "hidden": torch.randn(2, 5)}
    assert score(student, teacher, output="logits").score == 0.5
    with pytest.raises(FusionError, match="name one in Task"):
        score(student, teacher)
    with pytest.raises(FusionError, match="'nothing'"):
        score(student, teacher, output="nothing")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 30), noise=st.floats(0, 4), missing=st.booleans())
def test_accuracy_drop_is_at_most_one_minus_agreement(seed, count, noise, missing):
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(count, 3, generator=generator)
    student = teacher + noise * torch.randn(count, 3, generator=generator)
    labels = torch.randint(0, 3, (count,), generator=generator)
    if missing:
        labels[1:] = torch.where(torch.rand(count - 1, generator=generator) < 0.4, -100, labels[1:])
    found = score(student, teacher, labels)
    assert found.drop <= 1 - found.agreement + 1e-12


def test_paired_error_is_the_spread_of_the_drop_over_data_sets():
    generator = torch.Generator().manual_seed(0)
    drops, errors = [], []
    for _ in range(400):
        weights = torch.randint(0, 4, (80,), generator=generator).double()  # elements per sample; some have none
        lost = (torch.rand(80, generator=generator) < 0.2) * weights
        drops.append(float(lost.sum() / weights.sum()))
        errors.append(paired_error(lost, weights))
    spread = float(torch.tensor(drops).std())
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.1)  # 400 data sets know their spread to 3.5 %
    assert paired_error(torch.zeros(5), torch.ones(5)) == 0.0
    assert paired_error(torch.ones(1), torch.ones(1)) == 1.0


def test_the_worst_task_decides():
    models = chains()
    part = Part(inputs=samples(200))
    tasks = [Task(name=model.name, model=model, dense=True) for model in models]
    tree = shared(models)
    tree.train()
    found = evaluate(tree, part, TeacherCache(models), tasks)
    assert tree.training
    assert found.per_task[0].drop == pytest.approx(0, abs=1e-6)  # its path is untouched; other batches, other rounding
    assert found.worst is found.per_task[1]
    assert found.drop == found.drops["mood"] > 0
    assert found.errors == {entry.task: entry.standard_error for entry in found.per_task}
    assert found.resolution == 1 / 200


def test_scores_from_cached_features_are_those_of_a_full_run():
    models = chains()
    cache, part = TeacherCache(models), Part(inputs=samples(100))
    tasks = [Task(name=model.name, model=model, dense=True) for model in models]
    tree = shared(models, adapter_seed=2)
    tree.freeze(["b0_0"])
    full, cached = (evaluate(tree, part, cache, tasks, known=known) for known in (None, cache.known_steps(tree)))
    assert cached.drops == pytest.approx(full.drops, abs=1e-2)  # features are rounded to float16


def test_scores_do_not_depend_on_the_size_of_batches():
    models = chains()
    cache, part = TeacherCache(models), Part(inputs=samples(50), labels={"age": torch.randint(0, 3, (50,))})
    tasks = [Task(name=model.name, model=model) for model in models]
    found = [evaluate(shared(models), part, cache, tasks, batch_size=size) for size in (1, 7, 64)]
    assert found[0].drops == found[1].drops == found[2].drops


@pytest.mark.parametrize(("drop", "clipped"), [(-0.2, 0.0), (0.3, 0.3), (1.7, 1.0)])
def test_delta_is_clipped(drop, clipped):
    assert clip_drop(drop) == clipped


def accuracy(output: Tensor, labels: Tensor) -> float:
    return float((output.argmax(1) == labels).float().mean())


@pytest.mark.parametrize("function", [None, accuracy])
def test_a_user_s_accuracy_is_the_built_in_one(function: Callable[[Tensor, Tensor], float] | None):
    generator = torch.Generator().manual_seed(1)
    teacher = torch.randn(40, 3, generator=generator)
    student, labels = teacher + torch.randn(40, 3, generator=generator), teacher.argmax(1)
    found = score(student, teacher, labels, score=function)
    assert found.score == pytest.approx(accuracy(student, labels))
    assert found.agreement == pytest.approx(found.score)
