"""Counts of operations, against closed forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.graph.parse import parse
from fusion.search.flops import block_flops, count_flops

B, T, D = 2, 9, 64  # batch, tokens, width


class Attention(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


ATTENTION = 2 * 2 * B * T * T * D  # queries with keys, weights with values
LAYER = 2 * B * T * (3 * D * D + D * D + 2 * D * 128) + ATTENTION
CASES: dict[str, tuple[Callable[[], nn.Module], list[Tensor], int]] = {
    "linear": (lambda: nn.Linear(4, 5), [torch.zeros(B, 3, 4)], 2 * B * 3 * 4 * 5),
    "conv": (lambda: nn.Conv2d(3, 8, 3), [torch.zeros(B, 3, 8, 8)], 2 * B * 27 * 8 * 36),
    "grouped conv": (lambda: nn.Conv2d(4, 8, 3, groups=2), [torch.zeros(B, 4, 5, 5)], 2 * B * 18 * 8 * 9),
    "attention": (Attention, [torch.zeros(B, 4, T, D // 4)], ATTENTION),
    "masked attention": (Attention, [torch.zeros(B, 4, T, D // 4), torch.ones(T, T, dtype=torch.bool)], ATTENTION),
    "lstm": (lambda: nn.LSTM(16, 32, batch_first=True), [torch.zeros(B, 7, 16)], 2 * B * 7 * (16 + 32) * 4 * 32),
    "two-way lstm": (lambda: nn.LSTM(16, 32, bidirectional=True), [torch.zeros(7, B, 16)], 2 * B * 7 * 48 * 128 * 2),
    "gru": (lambda: nn.GRU(16, 32, batch_first=True), [torch.zeros(B, 7, 16)], 2 * B * 7 * (16 + 32) * 3 * 32),
    "transformer layer": (lambda: nn.TransformerEncoderLayer(D, 4, 128, batch_first=True), [torch.zeros(B, T, D)], LAYER),
    "norm and relu": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()), [torch.zeros(B, 4)], 0),
}


@pytest.mark.parametrize("case", CASES)
def test_operations_are_two_for_each_multiply_add(case: str) -> None:
    build, inputs, expected = CASES[case]
    assert count_flops(build(), inputs) == expected


def test_counting_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    count_flops(model, [torch.ones(3, 4)])
    assert all(part.training for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled()


def test_blocks_add_up_to_the_model_whatever_the_batch() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)
    )
    sequence = parse(model, torch.zeros(2, 1, 8, 8))
    counts = block_flops(sequence, [torch.zeros(7, 1, 8, 8)])
    assert counts == [2 * 9 * 4 * 36, 2 * 36 * 6 * 16, 2 * 24 * 3]
    assert counts == block_flops(sequence, [torch.zeros(2, 1, 8, 8)])
    assert sum(counts) == count_flops(model, [torch.zeros(1, 1, 8, 8)])
    assert sequence.training
