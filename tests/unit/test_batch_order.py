import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from unified.batch_order import BatchOrder, batch_problems
from unified.errors import CheckpointError, InvalidSubmission


@st.composite
def shapes(draw):
    """(num_samples, batch_size, drop_last) with at least one batch in an epoch."""
    num_samples, batch_size = draw(st.integers(1, 60)), draw(st.integers(1, 70))
    return num_samples, batch_size, draw(st.booleans()) and batch_size <= num_samples


def generator(seed):
    return torch.Generator().manual_seed(seed)


def order_of(shape, seed):
    num_samples, batch_size, drop_last = shape
    return BatchOrder(num_samples, batch_size, drop_last=drop_last, generator=generator(seed))


def loader_batches(shape, seed, epochs):
    num_samples, batch_size, drop_last = shape
    dataset = TensorDataset(torch.arange(num_samples))
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=drop_last, generator=generator(seed))
    return [batch.tolist() for _ in range(epochs) for (batch,) in loader]


def drawn(order, count):
    return [next(order).tolist() for _ in range(count)]


@settings(deadline=None, max_examples=200)
@given(shape=shapes(), seed=st.integers(0, 2**63), epochs=st.integers(1, 5))
def test_batches_equal_those_of_the_shuffling_data_loader(shape, seed, epochs):
    expected = loader_batches(shape, seed, epochs)
    order = order_of(shape, seed)
    assert order.steps_per_epoch * epochs == len(expected)
    assert drawn(order, len(expected)) == expected
    assert order.epoch == epochs
    assert order.step == len(expected)


def test_batches_equal_those_of_the_data_loader_over_many_samples():
    shape = (70_003, 30_000, False)
    assert drawn(order_of(shape, 5), 6) == loader_batches(shape, 5, 2)


def test_indices_are_int64_vectors():
    batch = next(BatchOrder(5, 2, generator=generator(0)))
    assert (batch.dtype, batch.shape) == (torch.int64, (2,))


@settings(deadline=None, max_examples=100)
@given(shape=shapes(), seed=st.integers(0, 2**40), data=st.data())
def test_an_order_resumes_exactly_after_any_batch(shape, seed, data):
    order = order_of(shape, seed)
    rest = 2 * order.steps_per_epoch + 1
    drawn(order, data.draw(st.integers(0, 3 * order.steps_per_epoch)))
    file = io.BytesIO()
    torch.save(order.state_dict(), file)
    file.seek(0)
    resumed = order_of(shape, seed + 1)
    drawn(resumed, data.draw(st.integers(0, 2)))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert (resumed.step, resumed.epoch) == (order.step, order.epoch)
    twice = pickle.loads(pickle.dumps(resumed))
    expected = drawn(order, rest)
    assert drawn(resumed, rest) == expected
    assert drawn(twice, rest) == expected


def test_a_state_is_tensors_that_later_batches_do_not_change():
    order = order_of((7, 2, False), 3)
    drawn(order, 3)
    state = order.state_dict()
    before = copy.deepcopy(state)
    drawn(order, 9)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    torch.testing.assert_close(state, before, rtol=0, atol=0)


def test_a_state_loaded_into_an_order_is_not_changed_by_it():
    state = order_of((7, 2, False), 3).state_dict()
    before = copy.deepcopy(state)
    order = order_of((7, 2, False), 4)
    order.load_state_dict(state)
    drawn(order, 9)
    torch.testing.assert_close(state, before, rtol=0, atol=0)


@pytest.mark.parametrize("other", [(8, 2, False), (7, 3, False), (7, 2, True)])
def test_a_state_of_other_data_is_refused(other):
    with pytest.raises(CheckpointError, match="changed since the checkpoint"):
        order_of(other, 0).load_state_dict(order_of((7, 2, False), 0).state_dict())


def test_orders_draw_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    drawn(order_of((7, 2, False), 0), 9)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "drop_last", "field"),
    [(0, 4, False, "data.train"), (3, 4, True, "batch_size"), (3, 0, False, "batch_size")],
)
def test_an_epoch_without_a_batch_is_refused(num_samples, batch_size, drop_last, field):
    problems = batch_problems(num_samples, batch_size, drop_last=drop_last, job="digits")
    assert [(p.job, p.field) for p in problems] == [("digits", field)]
    with pytest.raises(InvalidSubmission):
        BatchOrder(num_samples, batch_size, drop_last=drop_last, generator=generator(0))


@pytest.mark.parametrize(("num_samples", "drop_last"), [(4, True), (3, False), (5, True)])
def test_an_epoch_with_a_batch_has_no_problem(num_samples, drop_last):
    assert batch_problems(num_samples, 4, drop_last=drop_last, job="digits") == []
