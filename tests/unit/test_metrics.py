import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from unified.metrics import HIGHER_IS_BETTER, METRIC_NAMES, build_metrics

BATCHES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def evaluate(name, batches):
    (metric,) = build_metrics([name])
    for output, target in batches:
        metric.update(output, target)
    return metric.compute()


def classes(sizes, num_classes, seed, positions=()):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, num_classes, *positions, generator=generator),
            torch.randint(num_classes, (size, *positions), generator=generator),
        )
        for size in sizes
    ]


def values(sizes, seed, shape=()):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            1e4 + torch.randn(size, *shape, generator=generator),
            1e4 + torch.randn(size, *shape, generator=generator),
        )
        for size in sizes
    ]


def joined(batches):
    outputs, targets = zip(*batches, strict=True)
    return torch.cat(outputs), torch.cat(targets)


def flat(batches):
    """All outputs as (tokens, classes) and all targets as (tokens,), in float64 for scikit-learn."""
    output, target = joined(batches)
    return output.movedim(1, -1).reshape(-1, output.shape[1]).double().numpy(), target.reshape(-1).numpy()


CLASS_REFERENCES = {
    "accuracy": lambda scores, target: sk.accuracy_score(target, scores.argmax(1)),
    "f1_macro": lambda scores, target: sk.f1_score(target, scores.argmax(1), average="macro"),
    "matthews_correlation": lambda scores, target: sk.matthews_corrcoef(target, scores.argmax(1)),
    "top5_accuracy": lambda scores, target: sk.top_k_accuracy_score(target, scores, k=5, labels=range(scores.shape[1])),
    "perplexity": lambda scores, target: math.exp(
        -(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))[range(len(target)), target].mean()
    ),
}
# Perplexity sums logarithms that torch gives in float32; all the others are ratios of exact counts.
TOLERANCE = {"perplexity": 1e-5}


@pytest.mark.filterwarnings("ignore:A single label was found")  # scikit-learn's, for tiny samples
@pytest.mark.parametrize("name", CLASS_REFERENCES)
@pytest.mark.parametrize("positions", [(), (4,), (2, 3)])
@settings(max_examples=15, deadline=None)
@given(sizes=BATCHES, num_classes=st.integers(6, 9), seed=st.integers(0, 99))
def test_class_metrics_equal_scikit_learn_over_any_cut_into_batches(name, positions, sizes, num_classes, seed):
    batches = classes(sizes, num_classes, seed, positions)
    reference = CLASS_REFERENCES[name](*flat(batches))
    assert evaluate(name, batches) == pytest.approx(reference, rel=TOLERANCE.get(name, 1e-12), abs=1e-12)


@pytest.mark.parametrize("name", ["accuracy", "f1_macro", "matthews_correlation"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_single_logit_decides_by_its_sign(name, shape):
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(31, *shape, generator=generator)
    target = torch.randint(2, (31,), generator=generator)
    scores = np.stack([-output.reshape(-1).numpy(), output.reshape(-1).numpy()], axis=1)
    reference = CLASS_REFERENCES[name](scores, target.numpy())
    for target_as_given in (target, target.float(), target.float().unsqueeze(1), target.bool()):
        assert evaluate(name, [(output, target_as_given)]) == pytest.approx(reference, rel=1e-12)


@pytest.mark.parametrize("name", CLASS_REFERENCES)
def test_targets_of_minus_100_do_not_count(name):
    ((output, target),) = classes([8], 7, seed=1, positions=(5,))
    ignored = torch.arange(40).reshape(8, 5) % 3 == 0
    scores, right = flat([(output, target)])
    kept = ~ignored.reshape(-1).numpy()
    reference = CLASS_REFERENCES[name](scores[kept], right[kept])
    output = output.masked_fill(ignored.unsqueeze(1), math.nan)  # not even a NaN there may count
    masked = target.masked_fill(ignored, -100)
    assert evaluate(name, [(output, masked)]) == pytest.approx(reference, rel=TOLERANCE.get(name, 1e-12))


@pytest.mark.parametrize("name", CLASS_REFERENCES)
def test_nothing_counted_is_nan(name):
    (metric,) = build_metrics([name])
    assert math.isnan(metric.compute())
    metric.update(torch.randn(3, 6), torch.full((3,), -100))
    assert math.isnan(metric.compute())


VALUE_REFERENCES = {
    "mae": lambda output, target: sk.mean_absolute_error(target, output),
    "mse": lambda output, target: sk.mean_squared_error(target, output),
    "r2": lambda output, target: sk.r2_score(target, output),
}


@pytest.mark.parametrize("name", VALUE_REFERENCES)
@pytest.mark.parametrize("shape", [(), (1,), (3,)])
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(2, 9), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_value_metrics_equal_scikit_learn_even_far_from_zero(name, shape, sizes, seed):
    batches = values(sizes, seed, shape)
    reference = VALUE_REFERENCES[name](*(part.double().numpy() for part in joined(batches)))
    # float64 throughout; both sides round, and r2 divides two sums that may be close to each other.
    assert evaluate(name, batches) == pytest.approx(reference, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize(("output", "expected"), [([2.0, 2.0], 1.0), ([2.0, 3.0], 0.0)])
def test_r2_of_a_constant_target_follows_scikit_learn(output, expected):
    target = [2.0, 2.0]
    assert sk.r2_score(target, output) == expected
    assert evaluate("r2", [(torch.tensor(output), torch.tensor(target))]) == expected


def test_r2_needs_two_samples():
    assert math.isnan(evaluate("r2", [(torch.tensor([1.0]), torch.tensor([2.0]))]))
    halves = [(torch.tensor([1.0]), torch.tensor([2.0])), (torch.tensor([2.0]), torch.tensor([1.0]))]
    assert evaluate("r2", halves) == sk.r2_score([2.0, 1.0], [1.0, 2.0])


def test_matthews_correlation_is_zero_when_every_decision_is_the_same():
    assert evaluate("matthews_correlation", [(torch.tensor([[1.0, 0.0]] * 4), torch.tensor([0, 1, 0, 1]))]) == 0.0


def test_an_output_of_nan_is_never_among_the_five_largest():
    assert evaluate("top5_accuracy", [(torch.full((3, 6), math.nan), torch.tensor([0, 1, 5]))]) == 0.0


def test_perplexity_of_a_hopeless_model_is_infinite_not_an_error():
    assert evaluate("perplexity", [(torch.tensor([[0.0, 1e30]]), torch.tensor([0]))]) == math.inf


def test_perplexity_of_half_precision_is_that_of_its_values_in_float32():
    ((output, target),) = classes([16], 50, seed=2)
    half = output.bfloat16()
    assert evaluate("perplexity", [(half, target)]) == evaluate("perplexity", [(half.float(), target)])


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_reset_forgets_everything(name):
    is_value = name in VALUE_REFERENCES
    first, second = values([4, 5], 0) if is_value else classes([4, 5], 6, 0)
    (metric,) = build_metrics([name])
    metric.update(*first)
    metric.reset()
    metric.update(*second)
    assert metric.compute() == evaluate(name, [second])


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_metrics_leave_the_random_state_and_their_arguments_alone(name):
    ((output, target),) = values([4], 0) if name in VALUE_REFERENCES else classes([4], 6, 0)
    copies, state = (output.clone(), target.clone()), torch.get_rng_state()
    evaluate(name, [(output, target)])
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close((output, target), copies, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "output", "target"),
    [
        ("accuracy", torch.zeros(4, 3), torch.zeros(5, dtype=torch.long)),
        ("accuracy", torch.zeros(4, 3), torch.zeros(4, 3)),
        ("f1_macro", torch.zeros(4, 3), torch.zeros(4)),
        ("perplexity", torch.zeros(4), torch.zeros(4, dtype=torch.long)),
        ("top5_accuracy", torch.zeros(4), torch.zeros(4, dtype=torch.long)),
        ("mse", torch.zeros(4, 1), torch.zeros(1, 4)),
        ("r2", torch.zeros(4, 3), torch.zeros(4)),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused_never_broadcast(name, output, target):
    with pytest.raises(ValueError, match=rf"metric '{name}': expected .* got float32"):
        evaluate(name, [(output, target)])


def test_names_and_directions_are_complete():
    assert [metric.name for metric in build_metrics(METRIC_NAMES)] == list(METRIC_NAMES)
    lower = {name for name, higher in HIGHER_IS_BETTER.items() if not higher}
    assert lower == {"mae", "mse", "perplexity", "train_loss", "test_loss"}
    assert set(HIGHER_IS_BETTER) == {*METRIC_NAMES, "train_loss", "test_loss"}


@pytest.mark.gpu
@pytest.mark.parametrize("name", METRIC_NAMES)
def test_a_gpu_gives_the_same_value(name):
    batches = values([4, 3], 0) if name in VALUE_REFERENCES else classes([4, 3], 6, 0)
    on_gpu = [(output.cuda(), target.cuda()) for output, target in batches]
    # Logarithms and sums may round differently there.
    assert evaluate(name, on_gpu) == pytest.approx(evaluate(name, batches), rel=1e-5)
