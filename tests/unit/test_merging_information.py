"""The estimator of information against the truth, its laws, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusion.merging.config import EstimatorConfig, Threshold
from fusion.merging.errors import MergeError
from fusion.merging.information import inactive, information
from fusion.merging.labels import attributes, side_by_side
from tests.unit.merging_layers import two_nets

SEEDS = st.integers(0, 10**6)


def _mixture_information(centres: Tensor, *, drawn: float, density: float) -> float:
    """Mean log ratio of a class's Gaussian density to the mixture's, in nats, from 200,000 samples of variance ``drawn``.

    It is the mixture's information about the class where the samples' variance is the densities'.
    """
    generator = torch.Generator().manual_seed(7)
    classes = torch.randint(0, len(centres), (200_000,), generator=generator)
    samples = centres[classes] + drawn**0.5 * torch.randn(len(classes), centres.shape[1], generator=generator)
    logits = -(samples[:, None] - centres).square().sum(dim=2) / (2 * density)
    return float((logits.gather(1, classes[:, None])[:, 0] - logits.logsumexp(dim=1)).mean() + math.log(len(centres)))


@pytest.mark.parametrize(
    "centres",
    [
        [[0.0], [0.0]],
        [[-1.0], [1.0]],
        [[-3.0], [3.0]],
        [[0.0, 0.0], [0.0, 0.0]],
        [[1.5, 0.0], [-1.5, 0.0], [0.0, 1.5], [0.0, -1.5]],
        [[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0]],
    ],
)
def test_estimate_is_near_the_truth_in_one_and_two_dimensions(centres: list[list[float]]):
    means = torch.tensor(centres)
    s2 = 0.2
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(4000) % len(means)
    values = means[labels] + torch.randn(4000, means.shape[1], generator=generator)
    told = information(values, labels, EstimatorConfig(num_samples=1000, num_draws=4, s2=s2, normalise="none"))
    # with endless samples the estimate is the densities of noisy values at values without noise; a thousand add to it
    assert told.information == pytest.approx(_mixture_information(means, drawn=1, density=1 + s2), abs=0.05)
    # which is above the information of noisy values by the noise's share: for a fifth of the variance, a tenth of a nat
    assert told.information == pytest.approx(_mixture_information(means, drawn=1 + s2, density=1 + s2), abs=0.13)
    assert told.entropy == pytest.approx(math.log(len(means)), abs=0.01)  # classes of a draw are not of equal size


@given(seed=SEEDS)
@settings(deadline=None, max_examples=20)
def test_order_of_samples_does_not_matter(seed: int):
    values, _, labels = two_nets(seed)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    config = EstimatorConfig(num_null=0)
    told, permuted = information(values, labels, config), information(values[order], labels[order], config)
    assert permuted.information == pytest.approx(told.information, abs=1e-6)  # sums in another order
    assert permuted.entropy == pytest.approx(told.entropy, abs=1e-6)


@given(seed=SEEDS, factor=st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=20)
def test_scale_of_one_net_does_not_matter_per_neuron_or_network(seed: int, factor: float):
    values, _, labels = two_nets(seed)
    scaled = torch.cat([values[:, :6], values[:, 6:] * factor], dim=1)
    origins = [0] * 6 + [1] * 6
    for normalise in ("neuron", "network"):
        config = EstimatorConfig(normalise=normalise)
        told, other = (information(one, labels, config, origins=origins) for one in (values, scaled))
        assert other.information == pytest.approx(told.information, abs=1e-5)  # of single precision
        assert other.null == pytest.approx(told.null, abs=1e-5)
    plain = EstimatorConfig(normalise="none", s2=1.0)
    assert information(values * 100, labels, plain).information > information(values / 100, labels, plain).information


def test_null_is_what_independent_labels_give():
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(1024, 10, generator=generator)
    labels = torch.randint(0, 2, (1024, 8), generator=generator)
    told = information(values, labels, EstimatorConfig(num_draws=4, num_null=8))
    assert told.null > 0.05  # chance looks like information in ten dimensions
    assert told.information == pytest.approx(told.null, rel=0.1)  # a mean of 32 against one of 256 estimates


def test_null_keeps_informative_labels_apart():
    values, labels, others = two_nets(0, samples=512)
    config = EstimatorConfig()
    own, foreign = (information(values, target, config, neurons=range(6)) for target in (labels, others))
    assert own.excess > 10 * foreign.excess


@pytest.mark.parametrize("positions", [(), (1,), (3, 4)])
def test_positions_of_a_channel_are_one_neuron(positions: tuple[int, ...]):
    values = torch.randn(64, 3, *positions, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64) % 2
    kernel = torch.exp(-(torch.cdist(values[:, :2].flatten(1).double(), values[:, :2].flatten(1).double()) ** 2) / 2)
    same = (labels[:, None] == labels).double()
    expected = (((kernel * same).sum(1) / same.sum(1)).log() - kernel.mean(1).log()).mean()
    told = information(values, labels, EstimatorConfig(normalise="none", s2=1.0), neurons=[0, 1])
    assert told.information == pytest.approx(float(expected), abs=1e-5)  # single against double precision


def test_label_modes_agree_where_there_is_one_attribute():
    values, labels, _ = two_nets(1)
    told = [
        information(values, labels[:, 0], EstimatorConfig(label_mode=mode))
        for mode in ("mean_marginal", "max_marginal", "joint")
    ]
    for other in told[1:]:
        assert other.information == pytest.approx(told[0].information, abs=1e-6)
        assert other.entropy == pytest.approx(told[0].entropy, abs=1e-6)


def test_mean_and_largest_share_of_attributes():
    values, labels, _ = two_nets(2)
    each = [information(values, labels[:, bit], EstimatorConfig()) for bit in range(3)]
    mean, largest = (
        information(values, labels, EstimatorConfig(label_mode=mode)) for mode in ("mean_marginal", "max_marginal")
    )
    assert mean.information == pytest.approx(sum(one.information for one in each) / 3, abs=1e-6)
    share = max(one.information / one.entropy for one in each)
    assert largest.information / largest.entropy == pytest.approx(share, abs=1e-6)


def test_joint_mode_takes_rows_as_classes_and_refuses_small_ones():
    values, labels, _ = two_nets(0, samples=512)
    config = EstimatorConfig(label_mode="joint", num_samples=512)
    rows = labels @ torch.tensor([4, 2, 1])
    joint = information(values, labels, config)
    assert joint.information == pytest.approx(information(values, rows, config).information, abs=1e-6)
    many = torch.randint(0, 2, (512, 8), generator=torch.Generator().manual_seed(0))
    with pytest.raises(MergeError, match=r"joint labels have \d+ classes .*at least 8.*mean_marginal"):
        information(values, many, config)


def test_labels_of_every_kind_become_class_numbers():
    bits = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]])
    assert attributes(bits.float(), bins=4).equal(bits)
    assert attributes(bits.bool(), bins=4).equal(bits)
    assert attributes(torch.tensor([3, 1, 2, 0]), bins=4).equal(torch.tensor([[3], [1], [2], [0]]))
    real = torch.tensor([0.1, 5.0, 0.2, 9.0])
    assert attributes(real, bins=2).flatten().tolist() == [0, 1, 0, 1]
    assert side_by_side([bits, real], bins=2).shape == (4, 3)
    with pytest.raises(MergeError, match=r"\[3, 4\]"):
        side_by_side([bits, real[:3]], bins=2)


def test_real_targets_are_told_by_their_neuron():
    target = torch.randn(256, generator=torch.Generator().manual_seed(0))
    told = information(target[:, None], target, EstimatorConfig(gamma=200.0))
    # a sharp kernel tells the bin but for samples near its edges
    assert told.entropy == pytest.approx(math.log(4), abs=1e-3)
    assert told.information > 0.9 * told.entropy


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.ones(64, dtype=torch.long), "constant"),
        (torch.arange(64), "64 classes in a draw of 64 .*floats"),
        (torch.zeros(64, 2, 2), "shape"),
        (torch.full((64,), math.nan), "64 values that are not finite"),
        (torch.arange(63) % 2, "64 samples, but labels of 63"),
    ],
)
def test_labels_that_tell_nothing_are_refused(labels: Tensor, message: str):
    values = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(MergeError, match=message):
        information(values, labels, EstimatorConfig())


def test_constant_attributes_beside_others_are_left_out():
    values, labels, _ = two_nets(0)
    told = information(values, labels, EstimatorConfig())
    widened = torch.cat([labels, torch.ones(len(labels), 1, dtype=torch.long)], dim=1)
    assert information(values, widened, EstimatorConfig()) == told


def test_values_that_cannot_be_measured_are_refused():
    labels = torch.arange(64) % 2
    values = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    broken = values.clone()
    broken[5, 1] = math.inf
    still = values.clone()
    still[:, 2] = 4
    for given_values, message in [
        (broken, r"neurons \[1\].*finite"),
        (still, r"neurons \[2\] do not vary"),
        (values[:, 0], "got"),
    ]:
        with pytest.raises(MergeError, match=message):
            information(given_values, labels, EstimatorConfig())
    with pytest.raises(MergeError, match="at least 16 samples, got 8"):
        information(values[:8], labels[:8], EstimatorConfig())
    with pytest.raises(MergeError, match="network of each of the 3 neurons, got none"):
        information(values, labels, EstimatorConfig(normalise="network"))


def test_dead_and_constant_neurons_are_found():
    values = torch.rand(32, 4, 5, generator=torch.Generator().manual_seed(0))
    values[:, 1] = 0
    values[:, 2] = torch.arange(5.0)  # another constant at each position
    values[:, 3] = 0
    values[7, 3, 0] = 1e-9  # once alive
    dead, constant = inactive(values)
    assert dead.tolist() == [False, True, False, False]
    assert constant.tolist() == [False, False, True, False]


def test_all_wrong_options_are_named_at_once():
    with pytest.raises(MergeError) as raised:
        EstimatorConfig(num_samples=4, num_draws=0, gamma=-1.0, s2=math.nan, normalise="layer", bins=1)  # pyrefly: ignore
    for name in ("num_samples", "num_draws", "gamma", "s2", "normalise", "bins"):
        assert name in str(raised.value)


@pytest.mark.parametrize("wrong", [{"alpha": -0.1}, {"alpha": 1.5}, {"alpha": math.nan}, {"alpha": 0.1, "unit": "bits"}])
def test_thresholds_out_of_range_are_refused(wrong: dict):
    with pytest.raises(MergeError, match="threshold"):
        Threshold(**wrong)


def test_threshold_is_relative_to_its_unit():
    assert Threshold(alpha=0.1).nats(total=2.0, entropy=5.0) == pytest.approx(0.2)
    assert Threshold(alpha=0.1, unit="entropy").nats(total=2.0, entropy=5.0) == pytest.approx(0.5)
    assert Threshold(alpha=3.0, unit="nats").nats(total=2.0, entropy=5.0) == 3.0
    assert Threshold(alpha=math.inf).nats(total=0.0, entropy=5.0) == math.inf
