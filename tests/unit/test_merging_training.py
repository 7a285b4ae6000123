"""Training of merged networks: what is shared follows the mean of the tasks' gradients, and what explodes is no result."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.merging.errors import MergeError
from fusion.merging.pipeline import run
from fusion.merging.pruning import PruneConfig, prune_alternating
from fusion.merging.samples import MergeData, Samples, check_samples, score, scores
from fusion.merging.settings import MergeSettings
from fusion.merging.training import TrainConfig, Trainer, average_shared, recalibrate
from tests.unit.merging_networks import KINDS, LeNet, Mlp, ResNet, inputs_of, random_merged
from tests.unit.merging_regroupings import config, data_for, networks_of


def gradients(merged, trainer: Trainer, batch: Samples, tasks=None) -> dict[str, torch.Tensor]:
    merged.zero_grad()
    trainer.loss(batch, tasks).backward()
    return {name: p.grad.clone() for name, p in merged.named_parameters() if p.grad is not None}


@settings(deadline=None, max_examples=10)
@given(kind=st.sampled_from(KINDS), num_tasks=st.sampled_from([2, 3]), seed=st.integers(0, 10**6))
def test_shared_rows_have_the_mean_of_gradients_taken_apart(kind, num_tasks, seed):
    merged = random_merged(kind, num_tasks, seed)
    batch = data_for(kind, num_tasks, rows=16).train
    trainer = Trainer(merged, batch, TrainConfig())
    apart = {task: gradients(merged, trainer, batch, [task]) for task in merged.tasks}
    gradients(merged, trainer, batch)
    average_shared(merged)
    for position, step in enumerate(merged.steps):
        if str(position) not in merged.parts:
            continue
        counts = torch.tensor([group.bit_count() for group in merged.groups(step).tolist()])
        for name, parameter in merged.part(position).named_parameters():
            full = f"parts.{position}.{name}"
            total = torch.stack([own[full] for own in apart.values() if full in own]).sum(0)
            # sums of float32 in another order
            expected = total / counts.view(-1, *[1] * (total.ndim - 1))
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-5)


def test_an_exclusive_row_has_its_own_tasks_gradient_alone():
    merged = random_merged(LeNet, 2, 3)
    batch = data_for(LeNet, rows=16).train
    trainer = Trainer(merged, batch, TrainConfig())
    of_b = gradients(merged, trainer, batch, ["B"])
    for position, step in enumerate(merged.steps):
        if str(position) in merged.parts:
            exclusive = merged.groups(step) == 1
            for name, _ in merged.part(position).named_parameters():
                assert not of_b.get(f"parts.{position}.{name}", torch.zeros(len(exclusive)))[exclusive].any()


def test_statistics_become_the_mean_over_the_batches():
    merged = random_merged(ResNet, 2, 1)
    batches = [inputs_of(ResNet, 8, seed) for seed in range(3)]
    merged.train()
    recalibrate(merged, batches)
    assert merged.training
    assert merged.momentum is None
    position = next(place for place, step in enumerate(merged.steps) if step.name == "norm")
    made = merged.steps[position].inputs[0]
    merged.eval()
    with torch.no_grad():
        means = [merged.features(batch, 3)[made].mean((0, 2, 3)) for batch in batches]
    torch.testing.assert_close(merged.part(position).running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)


def test_a_batch_of_one_sample_has_no_variance_to_normalize_by():
    merged = random_merged(Mlp, 2, 0)
    with pytest.raises(MergeError, match="expected batch_size of 2 or more"):
        Trainer(merged, data_for(Mlp).train, TrainConfig(batch_size=1))
    without = random_merged(LeNet, 2, 0)
    Trainer(without, data_for(LeNet).train, TrainConfig(batch_size=1)).train(2)


def test_fewer_samples_than_a_batch_make_one():
    merged = random_merged(LeNet, 2, 0)
    trainer = Trainer(merged, data_for(LeNet, rows=5).train, TrainConfig(batch_size=64))
    assert len(trainer.next_batch()) == 5
    trainer.train(2)


def test_what_is_not_a_number_is_wrong():
    nothing = torch.full((4, 2), math.nan)
    assert score(nothing, torch.zeros(4, dtype=torch.int64)) == 0
    assert score(nothing, torch.zeros(4, 2, dtype=torch.int64)) == 0
    assert score(nothing, torch.randn(4, 2)) == -math.inf


@pytest.mark.parametrize("method", ["taylor", "vib"])
def test_training_that_explodes_while_pruning_leaves_the_last_good_network(method):
    merged = random_merged(LeNet, 2, 0)
    data = real_valued(data_for(LeNet))
    before = scores(merged, data.validation, merged.tasks)
    options = PruneConfig(method=method, steps=3, mend_steps=3, final_steps=3, score_batches=1, train=TrainConfig(lr=1e10))
    done = prune_alternating(merged, data, {task: value - 0.01 for task, value in before.items()}, options)
    assert done.is_feasible == (method == "taylor")  # the bottleneck must be trained before anything is known of it
    if done.is_feasible:
        assert all(done.scores[task] >= value - 0.01 for task, value in before.items())
        assert all(bool(torch.isfinite(value).all()) for value in merged.state_dict().values())
    assert not any(math.isnan(value) for value in done.scores.values())


def real_valued(data: MergeData) -> MergeData:
    """Return the samples with real values in place of the classes of the second task."""
    parts = [
        Samples(
            inputs=part.inputs, labels=part.labels | {"B": torch.stack([part.inputs.flatten(1)[:, n] for n in range(3)], 1)}
        )
        for part in (data.train, data.validation)
    ]
    return MergeData(train=parts[0], validation=parts[1])


def quick(**options) -> MergeSettings:
    return MergeSettings(**({"steps": 2, "alpha": 0.2, "latency_batch": 0, "regroup": config()} | options))


def test_a_merge_that_explodes_is_refused():
    with pytest.raises(MergeError, match=r"training diverged.*below 1e\+20"):
        run(networks_of(LeNet), data_for(LeNet), quick(lr=1e20))


def test_labels_beyond_what_a_network_answers_are_refused():
    data = data_for(LeNet)
    data.validation.labels["B"][3] = 2
    with pytest.raises(MergeError, match=r"B: answers \(2,\) for a sample; expected validation labels one class below"):
        run(networks_of(LeNet), data, quick())


def test_samples_that_say_nothing_are_refused():
    data = data_for(LeNet)
    nothing = data.train.take(torch.arange(0))
    with pytest.raises(MergeError, match="test samples: there are none"):
        run(networks_of(LeNet), MergeData(train=data.train, validation=data.validation, test=nothing), quick())
    constant = Samples(inputs=data.train.inputs, labels={"A": torch.ones(len(data.train))})
    with pytest.raises(MergeError, match="'A' that are all the same"):
        check_samples(constant, ["A"], "training samples")


def test_values_whose_squares_overflow_are_refused():
    data = data_for(LeNet)
    parts = [Samples(inputs=part.inputs * 1e30, labels=part.labels) for part in (data.train, data.validation)]
    with pytest.raises(MergeError, match="too much or too little"):
        run(networks_of(LeNet), MergeData(train=parts[0], validation=parts[1]), quick())


def test_half_precision_is_pruned_as_it_is():
    models = {task: model.bfloat16() for task, model in networks_of(LeNet).items()}
    data = data_for(LeNet)
    parts = [Samples(inputs=part.inputs.bfloat16(), labels=part.labels) for part in (data.train, data.validation)]
    for method in ("taylor", "vib"):
        outcome = run(models, MergeData(train=parts[0], validation=parts[1]), quick(prune=method, max_drop=0.9))
        assert {value.dtype for value in outcome.network.parameters()} == {torch.bfloat16}
