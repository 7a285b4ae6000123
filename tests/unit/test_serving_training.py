"""The plain loop of several tasks, and the engine that must train to the same bits."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from serving.data import TaskData
from serving.records import TaskSpec
from serving.tasks import weighted_sum
from serving.training import TrainJob, train_plainly
from tests.unit.serving_models import TwoHeads, labelled, two_tasks
from unified.datasets import TensorData
from unified.job import JobSpec
from unified.stack_key import stack_key
from unified.variants.engine_training import EngineTraining
from unified.variants.last_layer import LastLayerLoss, own_weights, tensors_of

SHOE, SIZE = two_tasks().tasks
HEAVY = TaskSpec(name="size", kind=SIZE.kind, shape=SIZE.shape, variance=SIZE.variance, weight=3.0)


class WithDropout(TwoHeads):
    """Draws random numbers in training."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return super().forward(nn.functional.dropout(image, 0.1, self.training))


class Refusing(TwoHeads):
    """Cannot be trained."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        raise RuntimeError("no such operator")


def job(name: str = "job", network: nn.Module | None = None, **fields: object) -> TrainJob:
    torch.manual_seed(1)
    given = {"tasks": (SHOE, HEAVY), "data": labelled(), "epochs": 2, "batch_size": 16, "lr": 0.01, "seed": 3} | fields
    return TrainJob(name=name, network=network or WithDropout(), **given)


def by_hand(network: nn.Module, data: TaskData, epochs: int) -> float:
    """Train as anyone would: the reference."""
    torch.manual_seed(3)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    dataset = TensorDataset(*data.inputs, data.labels["shoe"], data.labels["size"])
    loader = DataLoader(dataset, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(3))
    network.train()
    mean = math.nan
    for _ in range(epochs):
        total = 0.0
        for image, shoe, size in loader:
            optimizer.zero_grad(set_to_none=True)
            output = network(image)
            loss = (
                nn.functional.cross_entropy(output["shoe"], shoe, reduction="none")
                + 3.0 * (output["size"].reshape(-1) - size) ** 2
            ).mean()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(image)
        mean = total / len(data)
    return mean


def differing(one: nn.Module, other: nn.Module) -> list[str]:
    """Return the names of the tensors that are not equal bit for bit."""
    theirs = other.state_dict()
    return [name for name, value in one.state_dict().items() if not torch.equal(value, theirs[name])]


def test_the_plain_loop_is_the_one_anyone_would_write():
    given = job()
    expected = copy.deepcopy(given.network)
    loss = by_hand(expected, given.data, epochs=2)
    (done,) = train_plainly([given])
    assert done.name == "job"
    assert done.problem is None
    # the mean is summed up of means of batches in another order of operations
    assert done.loss == pytest.approx(loss, rel=1e-6)
    for name, value in given.network.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_a_job_trains_the_tasks_that_it_is_for_and_leaves_the_callers_random_numbers_alone():
    given = job(tasks=(SHOE,), network=TwoHeads())
    before = copy.deepcopy(given.network)
    state = torch.get_rng_state()
    assert [done.problem for done in train_plainly([given])] == [None]
    assert torch.equal(torch.get_rng_state(), state)
    assert not {"heads.size.weight", "heads.size.bias"} & set(differing(given.network, before))
    assert "heads.shoe.weight" in differing(given.network, before)


def test_without_epochs_a_network_stays_as_it_is():
    given = job(epochs=0)
    before = copy.deepcopy(given.network)
    for train in (train_plainly, EngineTraining()):
        (done,) = train([given])
        assert (done.problem, math.isnan(done.loss)) == (None, True)
    assert differing(given.network, before) == []


@pytest.mark.parametrize(
    ("samples", "batch_size", "left_out"), [(33, 16, True), (32, 16, False), (1, 16, False), (3, 1, False)]
)
def test_a_last_batch_of_one_sample_is_left_out(samples, batch_size, left_out):
    assert job(data=labelled(samples), batch_size=batch_size).drop_last is left_out


def test_a_network_that_diverges_or_fails_is_told_and_the_others_train():
    bad, broken, good = job("bad", lr=1e30), job("broken", Refusing()), job("good")
    done = {trained.name: trained for trained in train_plainly([bad, broken, good])}
    assert "its loss is" in str(done["bad"].problem)
    assert "no such operator" in str(done["broken"].problem)
    assert done["good"].problem is None


@pytest.mark.parametrize("certain", [False, True], ids=["as it is", "no loss at all"])
def test_the_last_layer_and_its_loss_have_the_gradients_of_the_combined_loss(certain):
    """Where a loss is 0 exactly, |x| has no slope; what is used has one."""
    data, tasks = labelled(16), (SHOE, HEAVY)
    network = TwoHeads().eval()
    if certain:
        with torch.no_grad():
            for head in network.heads.values():
                head.weight.zero_()
            network.heads["shoe"].bias.copy_(torch.tensor([50.0, 0.0, 0.0]))
            network.heads["size"].bias.zero_()
        data = TaskData(inputs=data.inputs, labels={"shoe": torch.zeros(16).long(), "size": torch.zeros(16)})
    other = copy.deepcopy(network)
    expected = weighted_sum(tasks, network(*data.inputs), data.labels).mean()
    given = nn.HingeEmbeddingLoss()(LastLayerLoss(other, tasks, data)(**tensors_of(data)), torch.ones(16))
    assert torch.equal(expected, given)
    assert (expected.item() == 0) is certain
    expected.backward()
    given.backward()
    for (name, one), two in zip(network.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad), name


def test_networks_step_as_one_only_if_their_losses_are_the_same():
    data = labelled(16)

    def key(tasks: tuple[TaskSpec, ...]) -> str | None:
        spec = JobSpec(
            name="a",
            model="a.umodel",
            data={"train": "a.pt"},
            loss="HingeEmbeddingLoss",
            optimizer="Adam",
            epochs=1,
            batch_size=8,
        )
        return stack_key(
            spec, LastLayerLoss(TwoHeads(), tasks, data), TensorData(inputs=tensors_of(data), targets=torch.ones(16))
        )

    assert key((SHOE, SIZE)) == key((SHOE, SIZE)) is not None
    assert len({key((SHOE, SIZE)), key((SHOE, HEAVY)), key((SHOE,))}) == 3


def test_own_weights_have_the_networks_names():
    network = TwoHeads()
    assert list(own_weights(LastLayerLoss(network, (SHOE,), labelled(4)).state_dict())) == list(network.state_dict())


def test_the_engine_trains_to_the_bits_of_the_plain_loop_and_a_bad_job_sinks_nobody():
    """One batch: networks of several shapes and tasks, one that diverges, one that cannot be read."""
    data = labelled(49)  # a last batch of one sample
    shapes = {"wide": WithDropout(width=6), "narrow": TwoHeads(width=3), "same": TwoHeads(width=3)}
    good = [job(name, network, data=data) for name, network in shapes.items()]
    alone = job("alone", TwoHeads(("size",)), tasks=(SIZE,), data=data)
    given = [*good, alone, job("bad", lr=1e30, data=data), job("broken", Refusing(), data=data)]
    expected = [replace(each, network=copy.deepcopy(each.network)) for each in given]
    plainly = {done.name: done for done in train_plainly(expected)}
    train = EngineTraining(slots=2, threads=1, device="cpu", stacking=False)
    done = {trained.name: trained for trained in train(given)}
    assert set(done) == set(plainly)
    assert {name for name, trained in done.items() if trained.problem} == {"bad", "broken"}
    assert "no such operator" in str(done["broken"].problem)
    for one, other in zip(expected[:4], given[:4], strict=True):
        assert differing(one.network, other.network) == [], one.name
        assert done[one.name].loss == pytest.approx(plainly[one.name].loss, rel=1e-12)
