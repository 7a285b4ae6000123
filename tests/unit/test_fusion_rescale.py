"""Adapters: what they compute, against plain torch; their price; their least-squares start."""

import copy
import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from fusion.graph.errors import FusionError
from fusion.graph.feature import Feature, Layout, adapter_capacity, adapter_flops
from fusion.graph.rescale import Rescale, can_start_least_squares, start_least_squares

KINDS = {
    "map": Feature((6, 8, 8), Layout.CHW),
    "small oblong map": Feature((4, 2, 3), Layout.CHW),
    "channels first sequence": Feature((5, 12), Layout.CHW),
    "channels last map": Feature((5, 4, 7), Layout.HWC),
    "grid": Feature((16, 5), Layout.TOK),
    "grid with class token": Feature((50, 4), Layout.TOK),
    "grid with two prefix tokens": Feature((18, 6), Layout.TOK),
    "grid with five prefix tokens": Feature((14, 7), Layout.TOK),
    "text": Feature((13, 5), Layout.TOK),
    "longer text": Feature((29, 3), Layout.TOK),
    "vector": Feature((7,), Layout.VEC),
}
PAIRS = list(itertools.product(KINDS.values(), repeat=2))
SIZES = st.integers(1, 9)
FEATURES = st.one_of(
    st.builds(lambda *sizes: Feature(sizes, Layout.CHW), SIZES, SIZES, SIZES),
    st.builds(lambda *sizes: Feature(sizes, Layout.CHW), SIZES, SIZES),
    st.builds(lambda *sizes: Feature(sizes, Layout.HWC), SIZES, SIZES, SIZES),
    st.builds(lambda *sizes: Feature(sizes, Layout.TOK), st.integers(1, 60), SIZES),
    st.builds(lambda size: Feature((size,), Layout.VEC), SIZES),
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(source, target, *, seed=0):
    """An adapter with weights as if it had been trained."""
    adapter = Rescale(source, target, generator=generator(seed)).double()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(seed + 1), dtype=torch.float64))
    return adapter


def sample(feature, batch=3, seed=5):
    return torch.randn(batch, *feature.shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_pair_of_layouts_is_adapted_at_the_price_that_was_named(source, target):
    adapter = Rescale(source, target, generator=generator())
    x = sample(source).float()
    with FlopCounterMode(display=False) as counter:
        y = adapter(x)
    assert y.shape == (3, *target.shape)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == adapter_capacity(source, target)
    assert counter.get_total_flops() == 3 * adapter_flops(source, target)


@settings(max_examples=60, deadline=None)
@given(FEATURES, FEATURES, st.integers(1, 3))
def test_whatever_the_sizes_shape_and_price_are_as_named(source, target, batch):
    adapter = Rescale(source, target, generator=generator())
    with FlopCounterMode(display=False) as counter:
        y = adapter(sample(source, batch).float())
    assert y.shape == (batch, *target.shape)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == adapter_capacity(source, target)
    assert counter.get_total_flops() == batch * adapter_flops(source, target)


@pytest.mark.parametrize(
    ("source", "target"), [((8, 8), (5, 3)), ((8, 8), (4, 8)), ((4, 4), (7, 9)), ((4, 9), (8, 3)), ((5, 5), (5, 5))]
)
def test_maps_are_resampled_then_mapped_as_by_a_pointwise_convolution(source, target):
    adapter = make(Feature((6, *source), Layout.CHW), Feature((4, *target), Layout.CHW))
    x = sample(adapter.source)
    shrinks = target[0] <= source[0] and target[1] <= source[1]
    resampled = F.adaptive_avg_pool2d(x, target) if shrinks else F.interpolate(x, target, mode="bilinear")
    expected = F.conv2d(resampled, adapter.weight[:, :, None, None], adapter.bias)
    assert_close(adapter(x), expected)  # float64: the order of map and resampling is all that differs


@pytest.mark.parametrize("goal", [4, 14])
@pytest.mark.parametrize(("before", "after"), list(itertools.product([0, 1, 2, 5], repeat=2)))
def test_prefix_tokens_are_copied_or_made_from_the_mean(before, after, goal):
    adapter = make(Feature((before + 49, 6), Layout.TOK), Feature((after + goal * goal, 4), Layout.TOK))
    x = sample(adapter.source)
    grid = x[:, before:].transpose(1, 2).reshape(3, 6, 7, 7)
    grid = F.adaptive_avg_pool2d(grid, 4) if goal == 4 else F.interpolate(grid, (14, 14), mode="bilinear")
    body = grid.flatten(2).transpose(1, 2) @ adapter.weight.T + adapter.bias
    copied = x[:, : min(before, after)] @ adapter.weight.T + adapter.bias
    made = [body.mean(1) + vector for vector in adapter.prefix] if after > before else []
    expected = torch.cat([copied, *(token[:, None] for token in made), body], 1)
    assert_close(adapter(x), expected)


def test_a_map_becomes_tokens_row_by_row():
    adapter = make(Feature((6, 4, 7), Layout.CHW), Feature((28, 6), Layout.TOK))
    x = sample(adapter.source)
    assert_close(adapter(x)[:, 9], x[:, :, 1, 2] @ adapter.weight.T + adapter.bias)


def test_a_channels_last_map_is_read_as_one():
    first, last = Feature((6, 4, 7), Layout.CHW), Feature((2, 9, 5), Layout.HWC)
    adapter, twin = make(first, last), make(first, Feature((5, 2, 9), Layout.CHW))
    x = sample(first)
    assert_close(adapter(x), twin(x).permute(0, 2, 3, 1))


@pytest.mark.parametrize("length", [7, 13, 29])
def test_texts_are_interpolated_over_their_length(length):
    adapter = make(Feature((13, 6), Layout.TOK), Feature((length, 4), Layout.TOK))
    x = sample(adapter.source)
    expected = F.interpolate(x.transpose(1, 2), length, mode="linear").transpose(1, 2) @ adapter.weight.T + adapter.bias
    assert_close(adapter(x), expected)


@pytest.mark.parametrize(
    "source", [KINDS["map"], KINDS["channels last map"], KINDS["grid with class token"], KINDS["longer text"]]
)
def test_to_a_vector_the_grid_is_averaged(source):
    adapter = make(source, Feature((9,), Layout.VEC))
    x = sample(source)
    dims = {"chw": (2, 3), "hwc": (1, 2), "tok": (1,)}[source.layout]
    body = x[:, 1:] if source.shape[0] == 50 else x
    assert_close(adapter(x), body.mean(dims) @ adapter.weight.T + adapter.bias)


@pytest.mark.parametrize("target", [KINDS["map"], KINDS["channels last map"], KINDS["grid"], KINDS["text"]])
def test_from_a_vector_every_position_is_filled_alike(target):
    adapter = make(Feature((9,), Layout.VEC), target)
    x = sample(adapter.source)
    mapped = x @ adapter.weight.T + adapter.bias
    y = adapter(x).movedim(1, -1) if target.layout is Layout.CHW else adapter(x)
    assert_close(y, mapped.view(3, *(1 for _ in target.shape[1:]), -1).expand_as(y))


def test_a_new_adapter_hands_the_leading_channels_on():
    adapter = Rescale(Feature((64, 7, 7), Layout.CHW), Feature((32, 7, 7), Layout.CHW), generator=generator())
    x = torch.randn(16, 64, 7, 7, generator=generator())
    difference = adapter(x) - x[:, :32]
    assert 0 < difference.std() < 0.06  # START_NOISE, drawn anew


def test_a_seed_fixes_the_start_and_the_global_generator_is_left_alone():
    state = torch.random.get_rng_state()
    one, two, other = (Rescale(KINDS["map"], KINDS["grid"], generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.weight, two.weight)
    assert not torch.equal(one.weight, other.weight)
    assert torch.equal(state, torch.random.get_rng_state())


def test_equal_shapes_need_no_weights_only_a_cast_where_types_differ():
    feature = Feature((4, 8), Layout.TOK)
    x = sample(feature).float()
    assert Rescale(feature, feature, generator=generator())(x) is x
    assert Rescale(feature, Feature((4, 8), Layout.TOK, "float16"), generator=generator())(x).dtype == torch.float16


def test_weights_have_the_type_of_the_target_and_follow_a_cast_of_the_module():
    adapter = Rescale(Feature((8,), Layout.VEC, "float32"), Feature((4,), Layout.VEC, "bfloat16"), generator=generator())
    assert adapter(torch.randn(2, 8, generator=generator())).dtype == torch.bfloat16
    assert adapter.double()(torch.randn(2, 8, generator=generator())).dtype == torch.float64


def test_impossible_adapters_are_refused():
    with pytest.raises(FusionError, match="no adapter leads from"):
        Rescale(Feature((8,), Layout.VEC, "int64"), Feature((4,), Layout.VEC), generator=generator())
    with pytest.raises(FusionError, match="cannot do without a channel map"):
        Rescale(Feature((8,), Layout.VEC), Feature((4,), Layout.VEC), generator=generator(), has_map=False)


@pytest.mark.parametrize("mode", [True, False])
def test_training_mode_changes_nothing(mode):
    adapter = make(KINDS["map"], KINDS["grid with class token"]).train(mode)
    x = sample(adapter.source)
    assert torch.equal(adapter(x), copy.deepcopy(adapter).eval()(x))
    assert not list(adapter.buffers())


@pytest.mark.parametrize(("source", "target"), PAIRS[:: len(PAIRS) // 12])
def test_an_exported_adapter_runs_at_another_batch_size(source, target):
    adapter = Rescale(source, target, generator=generator()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # export warns of its own internals
        program = torch.export.export(
            adapter, (sample(source, 2).float(),), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
        )
    x = sample(source, 5).float()
    assert torch.equal(program.module()(x), adapter(x))


@pytest.mark.parametrize(("source", "target"), [(a, b) for a, b in PAIRS if a != b])
def test_least_squares_recover_a_known_linear_map(source, target):
    truth, adapter = make(source, target, seed=7), make(source, target, seed=8)
    batches = [sample(source, 24, seed=seed) for seed in range(3)]
    start_least_squares(adapter, [(x, truth(x).detach()) for x in batches], ridge=1e-12)
    x = sample(source, seed=99)
    assert_close(adapter(x), truth(x), rtol=1e-6, atol=1e-6)  # the ridge, times how unevenly pooled features spread


def test_least_squares_match_the_closed_form_and_shrink_by_the_ridge():
    source, target = Feature((5,), Layout.VEC), Feature((3,), Layout.VEC)
    adapter = Rescale(source, target, generator=generator()).double()
    x, y = sample(source, 40) + 3, sample(target, 40, seed=6)
    start_least_squares(adapter, [(x[:7], y[:7]), (x[7:], y[7:])], ridge=0.1)
    centred = x - x.mean(0)
    strength = 0.1 * centred.square().sum(0).mean()
    expected = torch.linalg.solve(centred.T @ centred + strength * torch.eye(5), centred.T @ (y - y.mean(0))).T
    assert_close(adapter.weight.detach(), expected)
    assert_close(adapter(x).mean(0).detach(), y.mean(0))  # the bias is not shrunk


def test_how_pairs_are_batched_does_not_matter(monkeypatch):
    source, target = KINDS["map"], KINDS["grid with class token"]
    x, y = sample(source, 20), sample(target, 20)
    whole, parts = make(source, target), make(source, target)
    start_least_squares(whole, [(x, y)])
    monkeypatch.setattr("fusion.graph.rescale.CHUNK_NUMBERS", 3 * math.prod(source.shape))
    start_least_squares(parts, ((x[i : i + 5], y[i : i + 5]) for i in range(0, 20, 5)))
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert_close(one, other)


def test_constant_channels_do_not_make_least_squares_singular():
    source, target = Feature((4,), Layout.VEC), Feature((2,), Layout.VEC)
    adapter = make(source, target)
    start_least_squares(adapter, [(torch.ones(6, 4), torch.full((6, 2), 3.0))])
    assert_close(adapter(torch.ones(1, 4, dtype=torch.float64)), torch.full((1, 2), 3.0, dtype=torch.float64))


def test_a_least_squares_start_that_cannot_be_is_refused_and_changes_nothing():
    source, target = Feature((4,), Layout.VEC), Feature((2,), Layout.VEC)
    adapter = make(source, target)
    before = adapter.weight.detach().clone()
    with pytest.raises(FusionError, match="at least one pair"):
        start_least_squares(adapter, [])
    with pytest.raises(FusionError, match=r"got \(3, 4\) and \(2, 2\)"):
        start_least_squares(adapter, [(torch.zeros(3, 4), torch.zeros(2, 2))])
    with pytest.raises(FusionError, match="not all finite"):
        start_least_squares(adapter, [(torch.zeros(3, 4), torch.full((3, 2), math.nan))])
    assert torch.equal(adapter.weight, before)


def test_large_adapters_are_left_at_their_random_start():
    source, target = Feature((25088,), Layout.VEC), Feature((10,), Layout.VEC)
    assert not can_start_least_squares(source, target)
    assert can_start_least_squares(Feature((2048, 7, 7), Layout.CHW), Feature((50, 1024), Layout.TOK))
    with pytest.raises(FusionError, match="vec 25088 to vec 10 is too large for a least-squares start"):
        start_least_squares(Rescale(source, target, generator=generator()), [])
