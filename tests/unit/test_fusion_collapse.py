"""Adapters in a row: one where one is exactly the chain, none where it is not; and adapters that do nothing."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from torch.testing import assert_close

from fusion.graph.collapse import collapse, is_identity
from fusion.graph.errors import FusionError
from fusion.graph.feature import Feature, Layout, resampling
from fusion.graph.rescale import Rescale
from tests.unit.test_fusion_rescale import FEATURES, KINDS, generator, make, sample

CHAINS = list(itertools.product(KINDS.values(), repeat=3))


def chw(channels, height, width):
    return Feature((channels, height, width), Layout.CHW)


def tok(length, channels):
    return Feature((length, channels), Layout.TOK)


def collapsed(*features):
    """Both adapters of a chain with weights of their own, and what they collapse to."""
    first, second = make(*features[:2], seed=1), make(*features[1:], seed=2)
    return first, second, collapse(first, second)


@pytest.mark.parametrize(
    "chain",
    [
        (chw(6, 8, 8), chw(4, 8, 8), chw(5, 8, 8)),  # none resamples
        (chw(6, 8, 8), chw(4, 5, 3), chw(5, 5, 3)),  # the first pools
        (chw(6, 8, 8), chw(4, 8, 8), chw(5, 13, 9)),  # the second interpolates
        (chw(6, 7, 7), tok(49, 4), tok(49, 5)),
        (chw(6, 7, 7), tok(50, 4), tok(50, 5)),  # a class token is made, then mapped
        (chw(6, 14, 14), tok(50, 4), tok(50, 5)),
        (chw(6, 7, 7), Feature((7, 7, 4), Layout.HWC), tok(54, 5)),
        (tok(50, 6), tok(50, 4), tok(197, 5)),
        (tok(13, 6), tok(13, 4), tok(29, 5)),
        (tok(50, 6), tok(50, 4), chw(5, 7, 7)),  # a class token is dropped
        (Feature((6,), Layout.VEC), chw(4, 3, 3), chw(5, 8, 8)),  # a constant stays one
        (Feature((6,), Layout.VEC), tok(50, 4), Feature((5,), Layout.VEC)),
        (chw(6, 8, 8), chw(4, 8, 8), Feature((5,), Layout.VEC)),
        (chw(6, 8, 8), Feature((4,), Layout.VEC), Feature((5,), Layout.VEC)),
        (chw(6, 8, 8), chw(4, 4, 2), Feature((5,), Layout.VEC)),  # even pooling keeps the mean
        (chw(6, 8, 8), chw(4, 16, 16), Feature((5,), Layout.VEC)),  # so does doubling
    ],
)
def test_a_chain_that_resamples_at_most_once_is_one_adapter(chain):
    first, second, result = collapsed(*chain)
    assert (result.source, result.target) == (chain[0], chain[2])
    x = sample(chain[0])
    assert_close(result(x), second(first(x)))  # float64: only the order of sums differs


@pytest.mark.parametrize(
    "chain",
    [
        (chw(6, 8, 8), chw(4, 5, 5), chw(5, 8, 8)),  # pooled and interpolated
        (chw(6, 8, 8), Feature((4,), Layout.VEC), chw(5, 8, 8)),  # averaged away
        (chw(6, 8, 8), chw(4, 5, 3), Feature((5,), Layout.VEC)),  # uneven pooling shifts the mean
        (tok(50, 6), chw(4, 7, 7), tok(50, 5)),  # the class token is lost, then made anew
        (tok(29, 6), tok(13, 4), tok(29, 5)),
    ],
)
def test_a_chain_that_loses_something_on_the_way_is_not_collapsed(chain):
    assert collapsed(*chain)[2] is None


def test_over_all_kinds_a_collapsed_chain_is_exact_and_one_resampling_suffices():
    num_collapsed = 0
    for chain in CHAINS:
        first, second, result = collapsed(*chain)
        if result is not None:
            num_collapsed += 1
            x = sample(chain[0], batch=2)
            assert_close(result(x), second(first(x)))
        elif first.resampling is not None and second.resampling is not None:
            keeps_prefix = not _loses_prefix(chain)
            assert not (keeps_prefix and (first.resampling.is_trivial or second.resampling.is_trivial)), chain
    assert num_collapsed > len(CHAINS) / 5


def _loses_prefix(chain):
    """Whether a prefix token that the direct adapter would copy or average is dropped or made on the way."""
    plans = [resampling(*pair) for pair in (chain[:2], chain[1:], chain[::2])]
    return any(plan.source_prefix or plan.target_prefix for plan in plans) or not _agree(*plans)


def _agree(first, second, direct):
    """Whether all three read the features as the same grids (an oblong map may be a line beside a text)."""
    return (
        first.source_grid == direct.source_grid
        and first.target_grid == second.source_grid
        and second.target_grid == direct.target_grid
    )


@settings(max_examples=60, deadline=None)
@given(FEATURES, FEATURES, FEATURES)
def test_whatever_the_sizes_a_collapsed_chain_is_exact(source, between, target):
    first, second, result = collapsed(source, between, target)
    if result is not None:
        x = sample(source, batch=2)
        assert_close(result(x), second(first(x)))


def test_a_chain_back_to_where_it_began_keeps_its_map():
    first, second, result = collapsed(chw(6, 8, 8), chw(9, 8, 8), chw(6, 8, 8))
    x = sample(first.source)
    assert not is_identity(result)
    assert_close(result(x), second(first(x)))


def test_a_chain_back_with_inverse_maps_needs_no_adapter():
    there = Rescale(chw(4, 8, 8), tok(64, 4), generator=generator())
    back = Rescale(tok(64, 4), chw(4, 8, 8), generator=generator())
    with torch.no_grad():
        there.weight.copy_(2 * torch.eye(4))
        back.weight.copy_(torch.eye(4) / 2)
    result = collapse(there, back)
    assert is_identity(result)
    assert not list(result.parameters())


def test_a_collapsed_chain_shares_no_storage():
    first, second, result = collapsed(chw(6, 8, 8), chw(4, 8, 8), chw(5, 8, 8))
    given_storages = {p.untyped_storage().data_ptr() for adapter in (first, second) for p in adapter.parameters()}
    assert not given_storages & {p.untyped_storage().data_ptr() for p in result.parameters()}


def test_adapters_that_do_not_meet_are_refused():
    with pytest.raises(FusionError, match=r"expected an adapter that takes the result of .*4x8x8\), got .*chw 5x8x8"):
        collapse(make(chw(6, 8, 8), chw(4, 8, 8)), make(chw(5, 8, 8), chw(4, 8, 8)))


def test_an_adapter_became_the_identity_only_if_its_map_did():
    adapter = Rescale(chw(4, 8, 8), chw(4, 8, 8), generator=generator(), has_map=True)
    assert not is_identity(adapter)
    assert is_identity(adapter, tolerance=0.2)
    with torch.no_grad():
        adapter.weight.copy_(torch.eye(4))
    assert is_identity(adapter)
    with torch.no_grad():
        adapter.bias[1] = 1e-3
    assert not is_identity(adapter)


def test_another_layout_or_type_is_no_identity():
    one = Feature((8, 8, 8), Layout.CHW)
    assert not is_identity(Rescale(one, Feature((8, 8, 8), Layout.HWC), generator=generator()), tolerance=9)
    assert not is_identity(Rescale(one, Feature((8, 8, 8), Layout.CHW, "float16"), generator=generator()))
    assert is_identity(Rescale(one, one, generator=generator()))
