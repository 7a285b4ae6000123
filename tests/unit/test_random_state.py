"""Random states taken, kept and put back, against ``torch.manual_seed``."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unified.random_state import RandomState, preserved_random_state


@pytest.fixture(autouse=True)
def _same_state_afterwards():
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@given(seed=st.integers(0, 2**63 - 1), num_drawn=st.integers(0, 5))
def test_what_was_captured_is_drawn_again(seed, num_drawn):
    torch.manual_seed(seed)
    torch.rand(num_drawn)
    state = RandomState.capture()
    first = torch.randn(7)
    state.restore()
    assert torch.equal(torch.randn(7), first)


@given(seed=st.integers(0, 2**63 - 1))
def test_a_seeded_state_is_that_of_manual_seed_and_seeds_nothing(seed):
    before = torch.get_rng_state()
    state = RandomState.seeded(seed)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(seed)
    expected = torch.randn(5), torch.nn.functional.dropout(torch.ones(20))
    state.restore()
    drawn = torch.randn(5), torch.nn.functional.dropout(torch.ones(20))
    assert all(torch.equal(*pair) for pair in zip(drawn, expected, strict=True))


def test_state_survives_the_strictest_way_to_disk(tmp_path):
    state = RandomState.capture("cpu")
    torch.save(state.state_dict(), tmp_path / "state.pt")
    expected = torch.rand(3)
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in loaded.values())
    RandomState.from_state_dict(loaded).restore()
    assert torch.equal(torch.rand(3), expected)


def test_what_is_drawn_later_does_not_change_a_captured_state():
    state = RandomState.capture()
    copy = state.cpu.clone()
    torch.rand(1000)
    assert torch.equal(state.cpu, copy)


def draw_and_fail():
    with preserved_random_state(torch.device("cpu")):
        torch.rand(3)
        torch.manual_seed(1)
        raise ValueError("on purpose")


def test_a_block_leaves_the_generator_where_it_was_even_if_it_raises():
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="on purpose"):
        draw_and_fail()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_a_gpu_has_a_state_of_its_own():
    device = torch.device("cuda", 0)
    state = RandomState.seeded(5, device)
    torch.cuda.manual_seed(5)
    expected = torch.rand(4, device=device)
    state.restore()
    assert torch.equal(torch.rand(4, device=device), expected)
    with preserved_random_state(device):
        torch.rand(4, device=device)
    again = RandomState.from_state_dict(RandomState.capture(device).state_dict())
    first = torch.rand(4, device=device)
    again.restore()
    assert torch.equal(torch.rand(4, device=device), first)
