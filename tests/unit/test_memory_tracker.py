"""The tracker's counts against storages counted by hand, and its rules against what PyTorch's allocator hands out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.allocator import bytes_over_time
from unified.memory_tracker import MemoryTracker
from unified.operator_costs import workspace

KIB = 1024


def test_a_storage_counts_once_however_many_views_it_has():
    with MemoryTracker() as tracker:
        base = torch.zeros(KIB // 4)
        views = [base[10:], base.view(16, 16), base.t(), base.detach()]
        base.add_(1).mul_(2)
    assert tracker.live_bytes == KIB
    del base
    assert tracker.live_bytes == KIB  # the views hold it
    del views
    assert tracker.live_bytes == 0


def test_the_timeline_holds_what_was_alive_at_each_operator():
    with MemoryTracker() as tracker:
        first = torch.zeros(KIB // 4)
        second = first + 1
        del first
        third = second * 2
    assert (tracker.timeline, tracker.num_ops) == ([KIB, 2 * KIB, 2 * KIB], 3)
    assert second.nbytes + third.nbytes == tracker.live_bytes


def test_what_the_graph_saves_is_alive_until_the_backward_pass():
    x = torch.zeros(KIB // 4, requires_grad=True)
    with MemoryTracker() as tracker:
        y = x.exp().sum()
        assert tracker.live_bytes == KIB + 4
        y.backward()
        assert tracker.live_bytes == KIB + 4  # the gradient, in place of the saved result
        x.grad = None
    assert tracker.live_bytes == 4


def test_growing_in_place_and_rounding_are_seen():
    with MemoryTracker(granularity=512) as tracker:
        tensor = torch.zeros(1)
        assert tracker.live_bytes == 512
        tensor.resize_(200)
    assert tracker.live_bytes == 1024


def test_tensors_made_before_count_once_they_are_given():
    weight = torch.zeros(KIB // 4)
    tracker = MemoryTracker()
    tracker.hold({"weight": weight, "again": [weight, None, 3]})
    assert tracker.live_bytes == KIB


def test_a_bias_that_linear_adds_in_place_is_no_second_product():
    x, weight, bias = torch.zeros(4, 8, 3).transpose(0, 1), torch.zeros(16, 3), torch.zeros(16)
    with MemoryTracker() as tracker:
        F.linear(x, weight, bias)
    given_bytes = x.nbytes + weight.nbytes  # of which it takes views
    assert max(tracker.timeline) - given_bytes == max(bytes_over_time(lambda: F.linear(x, weight, bias)))


def test_an_assumed_scalar_stands_for_unknown_values_only():
    with FakeTensorMode(), MemoryTracker() as tracker:
        with pytest.raises(RuntimeError):
            torch.empty(()).item()
        tracker.assumed_scalar = 0.5
        assert torch.empty(()).item() == 0.5
    real = torch.tensor(3.0)
    with tracker:
        assert real.item() == 3.0


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=8), kept=st.sets(st.integers(0, 7)))
def test_live_bytes_are_those_of_the_tensors_that_are_left(sizes, kept):
    with FakeTensorMode(), MemoryTracker() as tracker:
        tensors = [torch.empty(size) for size in sizes]
        remaining = [tensor for index, tensor in enumerate(tensors) if index in kept]
        del tensors
    assert tracker.live_bytes == sum(4 * tensor.numel() for tensor in remaining)


class AllocationOfEachOperator(TorchDispatchMode):
    """Compares the rule for each operator with the allocator's record of that one call."""

    def __init__(self, *packets):
        super().__init__()
        self.packets = packets
        self.seen = []  #: operator, true peak, peak by the rule

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket not in self.packets:
            return func(*args, **(kwargs or {}))
        output = None

        def run():
            nonlocal output
            output = func(*args, **(kwargs or {}))

        live = bytes_over_time(run)
        self.seen.append((func, max(live), live[-1] + max(0, workspace(func, args, output).temporary_bytes)))
        return output


aten = torch.ops.aten


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(32, 64, 3, padding=1), (16, 32, 24, 24)),
        (nn.Conv2d(32, 64, 3, stride=2, padding=1), (16, 32, 24, 24)),
        (nn.Conv2d(6, 16, 5), (32, 6, 14, 14)),
        (nn.Conv2d(64, 64, 3, padding=1, groups=64), (16, 64, 24, 24)),
        (nn.Conv1d(32, 64, 3, padding=1), (16, 32, 256)),
        (nn.ConvTranspose2d(32, 16, 4, 2, 1), (16, 32, 16, 16)),
        (nn.Conv2d(16, 32, 3, padding=1).double(), (16, 16, 24, 24)),
        (nn.BatchNorm2d(32), (16, 32, 24, 24)),
        (nn.Conv2d(24, 32, 3, stride=2, padding=1), (16, 24, 24, 24)),
        (nn.Conv2d(3, 64, 16, stride=16), (8, 3, 64, 64)),
        (nn.Conv2d(32, 32, 7, padding=3, groups=32).to(memory_format=torch.channels_last), (8, 32, 8, 8)),
        (nn.Conv2d(32, 32, 3, padding=1, groups=8).to(memory_format=torch.channels_last), (8, 32, 8, 8)),
    ],
    ids=[
        "plain",
        "stride",
        "few channels",
        "depthwise",
        "1d",
        "transposed",
        "double",
        "batch norm",
        "stride, no full block",
        "patches",
        "depthwise, channels last",
        "grouped, channels last",
    ],
)
def test_copies_around_a_convolution_are_known(layer, shape):
    dtype = next(layer.parameters()).dtype
    inputs = torch.randn(shape, dtype=dtype)
    if layer.weight.dim() == 4 and layer.weight.is_contiguous(memory_format=torch.channels_last):
        inputs = inputs.to(memory_format=torch.channels_last)
    inputs.requires_grad_()
    rules = AllocationOfEachOperator(aten.convolution, aten.convolution_backward, aten.native_batch_norm_backward)
    with rules:
        layer(inputs).square().sum().backward()
    assert rules.seen
    for func, true_peak, peak in rules.seen:
        assert peak == pytest.approx(true_peak, rel=0.15), func


@pytest.mark.parametrize(("features", "hidden"), [(8, 16), (64, 32), (64, 100), (10, 20), (256, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_workspace_hidden_in_a_recurrent_layer_has_its_true_size(features, hidden, dtype):
    layer, inputs = nn.LSTM(features, hidden), torch.randn(20, 8, features)
    with (
        AllocationOfOutputs() as outputs,
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16),
    ):
        layer(inputs)
    (true_bytes, bytes_by_rule), *_ = outputs.seen
    assert bytes_by_rule == pytest.approx(true_bytes, rel=0.05)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(("features", "hidden"), [(16, 24), (64, 64), (64, 100), (64, 32)])
def test_what_a_recurrent_layer_needs_while_it_runs_is_known(features, hidden, is_training):
    layer, rules = nn.LSTM(features, hidden).train(is_training), AllocationOfEachOperator(aten.mkldnn_rnn_layer)
    with torch.set_grad_enabled(is_training), rules:
        layer(torch.randn(20, 40, features))
    assert rules.seen
    for func, true_peak, peak in rules.seen:
        assert peak == pytest.approx(true_peak, rel=0.05), func


@pytest.mark.parametrize("length", [16, 64])
@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"dim_feedforward": 512}], ids=str)
@pytest.mark.parametrize("has_mask", [False, True])
def test_layers_that_evaluation_runs_as_one_operator_have_their_memory_and_work(length, options, has_mask):
    layer = nn.TransformerEncoderLayer(32, 4, **{"dim_feedforward": 64, "batch_first": True} | options).eval()
    x, mask = torch.randn(8, length, 32), nn.Transformer.generate_square_subsequent_mask(length) if has_mask else None
    rules = AllocationOfEachOperator(aten._transformer_encoder_layer_fwd, aten._native_multi_head_attention)
    with torch.no_grad(), rules:
        layer(x, src_mask=mask)
        inner = layer.self_attn
        weights = (inner.in_proj_weight, inner.in_proj_bias, inner.out_proj.weight, inner.out_proj.bias)
        for need_weights in (False, True):
            torch._native_multi_head_attention(x, x, x, 32, 4, *weights, None, need_weights)
    assert len(rules.seen) == 3
    for func, true_peak, peak in rules.seen:
        assert peak == pytest.approx(true_peak, rel=0.1), func
    with torch.no_grad(), MemoryTracker() as fused:
        layer(x)
    with MemoryTracker() as plain:  # with gradients, operator by operator
        layer(x)
    assert fused.flops == plain.flops > 0


class AllocationOfOutputs(TorchDispatchMode):
    """Compares the size of a recurrent layer's hidden output with the rule for it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket is aten.mkldnn_rnn_layer:
            rule = workspace(func, args, output)
            self.seen.append((output[rule.hidden_output].nbytes, rule.hidden_bytes))
        return output


def test_fake_attention_takes_the_kernel_that_real_attention_takes():
    def operators(mode):
        seen = []

        class Names(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                seen.append(func)
                return func(*args, **(kwargs or {}))

        with mode, Names():
            query = torch.zeros(2, 4, 64, 16)
            F.scaled_dot_product_attention(query, query, query, is_causal=True)
        return [func for func in seen if "attention" in str(func)]

    with torch.no_grad():
        real, fake = operators(torch.no_grad()), operators(FakeTensorMode())
    assert real == fake == [aten._scaled_dot_product_flash_attention_for_cpu.default]


LOSSES = (
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "soft_margin_loss",
    "poisson_nll_loss",
)


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_loss_takes_and_keeps_is_known(name):
    output, target = torch.rand(2, 8, 100)
    with MemoryTracker() as tracker:
        _value = getattr(F, name)(output, target)
    kept = [None]
    live = bytes_over_time(lambda: kept.__setitem__(0, getattr(F, name)(output, target)))
    assert max(tracker.timeline) == pytest.approx(max(live), abs=64)
    assert tracker.live_bytes == pytest.approx(live[-1], abs=64)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "nearest-exact", "bicubic"])
@pytest.mark.parametrize("is_channels_last", [False, True])
def test_copies_of_a_resized_image_are_known(mode, is_channels_last):
    images = torch.randn(4, 8, 16, 16)
    images = images.contiguous(memory_format=torch.channels_last) if is_channels_last else images
    with MemoryTracker() as tracker:
        F.interpolate(images, size=(32, 32), mode=mode)
    live = bytes_over_time(lambda: F.interpolate(images, size=(32, 32), mode=mode))
    assert max(tracker.timeline) == pytest.approx(max(live), rel=0.1)
