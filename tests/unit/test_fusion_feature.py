"""Features: what their dimensions mean, and how the positions of two of them correspond."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.graph.errors import FusionError
from fusion.graph.feature import Feature, Layout, adapter_capacity, adapter_flops, can_rescale, resampling

SIZES = st.integers(1, 40)
FEATURES = st.one_of(
    st.builds(lambda *sizes: Feature(sizes, Layout.CHW), SIZES, SIZES, SIZES),
    st.builds(lambda *sizes: Feature(sizes, Layout.CHW), SIZES, SIZES),
    st.builds(lambda *sizes: Feature(sizes, Layout.HWC), SIZES, SIZES, SIZES),
    st.builds(lambda *sizes: Feature(sizes, Layout.TOK), SIZES, SIZES),
    st.builds(lambda size: Feature((size,), Layout.VEC, "bfloat16"), SIZES),
)


def tokens(length, channels=8):
    return Feature((length, channels), Layout.TOK)


@pytest.mark.parametrize(
    ("feature", "channels"),
    [
        (Feature((3, 5, 7), Layout.CHW), 3),
        (Feature((3, 5), Layout.CHW), 3),
        (Feature((5, 7, 3), Layout.HWC), 3),
        (Feature((50, 3), Layout.TOK), 3),
        (Feature((3,), Layout.VEC), 3),
        (Feature((2, 2, 2, 9), Layout.OTHER), 9),
    ],
)
def test_channels_stand_where_the_layout_says(feature, channels):
    assert feature.channels == channels


@pytest.mark.parametrize(("layout", "shape"), [("vec", (3, 4)), ("tok", (3,)), ("hwc", (3, 4)), ("chw", (3,))])
def test_a_layout_that_does_not_fit_the_shape_is_refused(layout, shape):
    with pytest.raises(FusionError, match=rf"layout '{layout}' has .* got shape .*use layout 'other'"):
        Feature(shape, Layout(layout))


@given(FEATURES)
def test_json_brings_a_feature_back(feature):
    assert Feature.from_json(feature.to_json()) == feature
    assert hash(Feature.from_json(feature.to_json())) == hash(feature)


def test_a_shape_that_is_no_list_is_refused():
    with pytest.raises(FusionError, match="must be a list of sizes, got 'abc'"):
        Feature.from_json({"shape": "abc", "layout": "vec", "dtype": "float32"})


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_a_square_of_tokens_is_a_grid_behind_its_prefix(prefix):
    plan = resampling(tokens(prefix + 49), Feature((4, 14, 14), Layout.CHW))
    assert (plan.source_prefix, plan.source_grid, plan.target_grid) == (prefix, (7, 7), (14, 14))


def test_the_shortest_prefix_that_leaves_a_square_is_taken():
    assert resampling(tokens(9), Feature((4,), Layout.VEC)).source_prefix == 0  # not 5 + 2 * 2
    assert resampling(tokens(6), Feature((4,), Layout.VEC)).source_prefix == 2  # 1 + 5 and 0 + 6 are no squares


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_tokens_take_the_oblong_grid_of_the_map_that_they_fit(prefix):
    plan = resampling(Feature((4, 14, 7), Layout.CHW), tokens(98 + prefix))
    assert plan.is_trivial
    assert (plan.target_prefix, plan.target_grid) == (prefix, (14, 7))


def test_any_other_number_of_tokens_is_a_text_interpolated_over_its_length():
    plan = resampling(tokens(39), tokens(16))
    assert (plan.source_grid, plan.target_grid, plan.is_pooled) == ((39, 1), (16, 1), False)


def test_as_many_tokens_as_before_stay_where_they_are():
    plan = resampling(tokens(50, 8), tokens(50, 16))
    assert plan.is_trivial
    assert plan.made == plan.copied == 0


@pytest.mark.parametrize(
    ("source", "target", "is_pooled"),
    [((8, 8), (4, 4), True), ((8, 8), (8, 4), True), ((8, 8), (16, 4), False), ((4, 4), (8, 8), False)],
)
def test_maps_are_pooled_only_where_no_side_grows(source, target, is_pooled):
    assert resampling(Feature((3, *source), Layout.CHW), Feature((3, *target), Layout.CHW)).is_pooled is is_pooled


@pytest.mark.parametrize(
    "feature",
    [
        Feature((8,), Layout.VEC, "int64"),
        Feature((8,), Layout.VEC, "complex64"),
        Feature((4, 8), Layout.OTHER),
        Feature((4, 8, 8, 8), Layout.CHW),
        Feature((0, 8), Layout.TOK),
    ],
)
def test_some_features_are_shared_only_with_their_equal(feature):
    other = Feature((4,), Layout.VEC)
    assert can_rescale(feature, feature)
    assert not can_rescale(feature, other)
    assert not can_rescale(other, feature)
    with pytest.raises(FusionError, match="no adapter leads from"):
        resampling(other, feature)


@given(FEATURES, FEATURES)
def test_every_pair_of_float_features_has_an_adapter_with_a_price(source, target):
    assert can_rescale(source, target)
    is_free = source.shape == target.shape and source.layout == target.layout
    assert (adapter_capacity(source, target) == 0) == is_free
    assert (adapter_flops(source, target) == 0) == is_free


@given(FEATURES, FEATURES)
def test_the_way_back_has_the_same_grids(source, target):
    there, back = resampling(source, target), resampling(target, source)
    assert (there.source_prefix, there.source_grid) == (back.target_prefix, back.target_grid)
    assert (there.target_prefix, there.target_grid) == (back.source_prefix, back.source_grid)


def test_features_are_counted_without_torch():
    code = "import sys, fusion.graph.feature; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
