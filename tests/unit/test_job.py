import copy
import json
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.jobs import JOBS, LENET, ONE_PROBLEM, changed
from unified.errors import InvalidSubmission
from unified.job import JobSpec


def problems(mapping, job=None):
    with pytest.raises(InvalidSubmission) as caught:
        JobSpec.parse(mapping, job)
    return caught.value.problems


def test_the_published_example_is_a_job():
    job = JobSpec.parse(LENET)
    assert job.optimizer.name == "SGD"
    assert job.optimizer.kwargs == {"lr": 0.01, "momentum": 0.9}
    assert (job.lr_scheduler.every, job.lr_scheduler.kwargs) == ("epoch", {"step_size": 1, "gamma": 0.7})
    assert (job.loss.name, job.loss.kwargs, job.metrics) == ("CrossEntropyLoss", {}, ("accuracy",))
    assert job.on_nan == "fail"


def test_a_job_cannot_be_changed():
    job = JobSpec.parse(LENET)
    with pytest.raises(ValueError, match="frozen"):
        job.seed = 3
    job.optimizer.kwargs["lr"] = 7
    assert job.optimizer.kwargs["lr"] == 0.01


@pytest.mark.parametrize(("change", "code", "field"), ONE_PROBLEM, ids=lambda part: str(part)[:40])
def test_one_mistake_is_one_problem(change, code, field):
    (problem,) = problems(changed(**change), job="folder")
    assert (problem.code, problem.field) == (code, field), str(problem)
    called = change.get("name", "lenet-fashion")
    assert problem.job == (called[:100] if isinstance(called, str) and called else "folder")
    assert all((problem.expected, problem.given, problem.remedy)), "every part of the message is there"


def test_all_mistakes_of_every_kind_are_told_at_once():
    """Fields, rules between fields, and what PyTorch refuses: not one of them hides another."""
    distinct, seen = {}, set()
    for change, _, field in ONE_PROBLEM:
        top = {field.partition(".")[0].partition("[")[0], *change}
        if not top & seen and not top & {"name", "epochs", "early_stopping"}:
            seen |= top
            distinct |= change
    found = problems(changed(**distinct))
    assert len(distinct) >= 15
    assert {field.partition(".")[0].partition("[")[0] for field in (problem.field for problem in found)} >= set(distinct)


@settings(max_examples=40, deadline=None)
@given(rows=st.sets(st.sampled_from(range(len(ONE_PROBLEM))), min_size=2, max_size=8))
def test_mistakes_in_different_fields_never_hide_each_other(rows):
    change, expected = {}, set()
    # Where a rule reads several fields, a mistake in one of them does keep the rule from being checked.
    between = {"early_stopping", "metrics", "data", "epochs", "max_steps", "lr_scheduler"}
    for row in sorted(rows):
        fields, code, field = ONE_PROBLEM[row]
        if not fields.keys() & change.keys() and not fields.keys() & between:
            change |= fields
            expected.add((code, field))
    if change:
        assert {(problem.code, problem.field) for problem in problems(changed(**change))} == expected


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optimiser", "optimizer"),
        ("batchsize", "batch_size"),
        ("Epochs", "epochs"),
        ("clip_grad", "clip_grad_norm"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_known_one(key, meant):
    (problem,) = problems(changed(**{key: 3}))
    assert problem.remedy == f"did you mean '{meant}'?"


def test_a_key_like_no_other_is_told_with_all_known_ones():
    (problem,) = problems(changed(data={"train": "a", "test": "b", "zzzzzz": 1}))
    assert problem.remedy == "remove it; known are train, test, columns, tokenizer, max_length"


def test_a_message_says_whose_what_was_expected_what_came_and_what_to_do():
    (problem,) = problems(changed(batch_size="64"))
    assert str(problem) == (
        "[E-TYPE] job 'lenet-fashion': batch_size: expected an integer, got \"64\"; write it without quotes"
    )


@pytest.mark.parametrize("value", [None, 3, "text", [LENET]])
def test_a_job_that_is_no_object_is_refused(value):
    (problem,) = problems(value, job="folder")
    assert (problem.code, problem.job, problem.field) == ("E-TYPE", "folder", "job.json")


def test_a_million_unknown_keys_are_not_a_million_problems():
    found = problems(changed(**{f"k{number}": 1 for number in range(20_000)}))
    assert len(found) == 101


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mapping=JOBS)
def test_a_job_survives_json_and_pickle(mapping):
    given_before = copy.deepcopy(mapping)
    job = JobSpec.parse(mapping)
    assert mapping == given_before, "what was given is left alone"
    text = json.dumps(job.to_json(), allow_nan=False)
    again = JobSpec.parse(json.loads(text))
    assert again == job
    assert json.dumps(again.to_json()) == text
    assert again.fingerprint("model") == job.fingerprint("model")
    assert pickle.loads(pickle.dumps(job)) == job
    assert JobSpec(**mapping) == job


def test_fields_of_a_job_make_the_same_job_again():
    job = JobSpec.parse(LENET)
    assert JobSpec(**dict(job)) == job
