"""What a search believes of drops that nobody has seen: right before the first one, and learning from each."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.search.absgraph import BlockId, flops, original
from fusion.search.mutation import Pair, mutate
from fusion.search.surrogate import FLOOR, NUM_FEATURES, believe, features_of
from tests.unit.fusion_graphs import equal_space

NOTHING = np.zeros((0, NUM_FEATURES))


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Features of so many made-up graphs; the first is always 1."""
    found = np.random.default_rng(seed).uniform(0, 1, (count, NUM_FEATURES))
    found[:, 0] = 1.0
    return found


def asked(likeness: float, *, gone: float = 0.3) -> np.ndarray:
    """A graph whose blocks are given something so unlike what they got."""
    return np.array([[1.0, likeness, likeness, gone, gone]])


def test_before_the_first_candidate_sharing_what_is_alike_is_cheap_and_what_is_not_is_dear():
    belief = believe(NOTHING, [])
    chances = [float(belief.chance(asked(strange), 0.01)[0]) for strange in (0.0, 0.3, 0.6, 1.0, 2.0)]
    assert chances == sorted(chances, reverse=True)
    bolder = [float(belief.chance(asked(0.3, gone=gone), 0.01)[0]) for gone in (0.0, 0.4, 0.8)]
    assert bolder == sorted(bolder, reverse=True)


@given(st.integers(0, 1000), st.integers(0, 8))
@settings(max_examples=30, deadline=None)
def test_a_larger_drop_is_always_likelier_to_be_kept(seed, count):
    belief = believe(rows(count, seed), np.random.default_rng(seed).uniform(0, 0.3, count))
    table = np.stack([belief.chance(rows(5, seed + 1), threshold) for threshold in (0.0, 0.01, 0.05, 0.3, 1.0)])
    assert ((table >= 0) & (table <= 1)).all()
    assert (np.diff(table, axis=0) >= 0).all()


def test_the_chance_is_the_mean_over_beliefs_drawn():
    belief = believe(rows(4), [0.01, 0.2, 0.05, 0.0])
    normals = np.random.default_rng(1).standard_normal((20_000, NUM_FEATURES))
    wanted = belief.chance(rows(3, seed=2), 0.02)
    drawn = np.mean([belief.chance(rows(3, seed=2), 0.02, belief.draw(normal)) for normal in normals], axis=0)
    assert drawn == pytest.approx(wanted, abs=0.01)  # three standard errors of 20,000 draws


def test_what_is_seen_again_and_again_is_believed():
    truth = np.array([-4.0, 0.5, 2.0, 1.0, -1.0])
    features = rows(4000)
    drops = np.exp(features @ truth) - FLOOR
    seen = (drops >= 0) & (drops <= 1)
    assert believe(features[seen], drops[seen]).mean == pytest.approx(truth, abs=0.1)
    spread = [float(np.square(believe(features[:count], drops[:count]).factor).sum()) for count in (0, 1, 10, 100, 1000)]
    assert spread == sorted(spread, reverse=True)


def test_neither_the_order_of_candidates_nor_gains_nor_absurd_drops_matter():
    features, drops = rows(6), [0.01, -0.2, 0.05, 3.0, 0.0, 0.4]
    belief = believe(features, drops)
    assert believe(features[::-1], drops[::-1]).mean == pytest.approx(belief.mean)
    assert believe(features, [0.01, 0.0, 0.05, 1.0, 0.0, 0.4]).mean == pytest.approx(belief.mean)


def test_one_good_candidate_makes_its_like_likelier_and_a_bad_one_less():
    before = float(believe(NOTHING, []).chance(asked(0.5), 0.02)[0])
    assert float(believe(asked(0.5), [0.0]).chance(asked(0.5), 0.02)[0]) > before
    assert float(believe(asked(0.5), [0.4]).chance(asked(0.5), 0.02)[0]) < before


def test_the_features_of_a_graph_by_hand():
    space = equal_space(2, 4)
    start = original(space)
    unlike = {(BlockId(0, 2), BlockId(1, 2)): 0.25, (BlockId(1, 3), BlockId(0, 3)): 0.5}
    assert features_of(start, 1.0, unlike).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    one = mutate(start, Pair(BlockId(0, 2), BlockId(1, 2)))
    assert features_of(one, 0.75, unlike).tolist() == [1.0, 0.25, 0.125, 0.25, 0.0]  # asked of task 1 alone
    skipping = mutate(start, Pair(BlockId(0, 1), BlockId(0, 3)))  # in one model: nobody said how alike, so not at all
    assert features_of(skipping, flops(skipping) / flops(start), unlike)[[0, 1, 2, 4]].tolist() == [1.0, 1.0, 0.5, 0.5]
    deep = mutate(one, Pair(BlockId(1, 3), BlockId(0, 3)))
    assert deep.facts().served[BlockId(1, 2)] == {0, 1}
    told = features_of(deep, 0.5, unlike)
    assert told[1] == 0.75  # task 0 stands behind both joints
    assert told[2] == 0.5
    assert not math.isnan(told.sum())


def test_taking_the_input_itself_is_compared_with_what_the_first_block_takes():
    space = equal_space(2, 3)
    graph = mutate(original(space), Pair(BlockId(0, 0), BlockId(0, 2)))
    unlike = {(BlockId(0, 0), BlockId(0, 2)): 0.125}
    assert features_of(graph, 1.0, unlike) == pytest.approx([1.0, 0.125, 0.0625, 0.0, 2 / 3])
