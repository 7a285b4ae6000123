"""Small real modules with everything that a state dict may hold, for the separator's tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A convolutional net with BatchNorm and dropout, channels-last weights and a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)
        self.register_buffer("scratch", torch.zeros(5), persistent=False)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.conv(x)).relu().mean(dim=(2, 3))))


class TiedLanguageModel(nn.Module):
    """Embedding and output layer share their weight; the order of names is not alphabetical."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(11, 6)
        self.body = nn.LSTM(6, 6, batch_first=True)
        self.again = self.wte
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids):
        hidden, state = self.body(self.wte(ids))
        return {"logits": self.head(hidden), "state": state}


class Oddities(nn.Module):
    """Every kind of tensor that a state dict may hold."""

    def __init__(self):
        super().__init__()
        shared = torch.arange(12.0)
        self.transposed = nn.Parameter(torch.randn(4, 3).t())
        self.left, self.right = nn.Parameter(shared[:5]), nn.Parameter(shared[5:])
        self.strided = nn.Parameter(torch.randn(8)[::2])
        self.low = nn.Parameter(torch.randn(3, dtype=torch.bfloat16))
        self.special = nn.Parameter(torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]))
        self.complex = nn.Parameter(torch.randn(2, dtype=torch.complex64).conj())
        self.square = nn.Parameter(torch.randn(3, 3))
        self.register_buffer("square_transposed", self.square.detach().t())
        self.register_buffer("square_row", self.square.detach()[0])
        self.register_buffer("square_bits", self.square.detach().view(torch.int32))
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("expanded", torch.randn(1).expand(3))
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("other_empty", torch.empty(0, 3))
        self.register_buffer("small", torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn))
        self.register_buffer("also_count", self.count)
        self.register_buffer("view_of_count", self.count.view(()))


def trained(module: nn.Module, batch: Tensor) -> nn.Module:
    optimizer = torch.optim.Adam(module.parameters())
    for _ in range(2):
        output = module(batch)
        loss = (output["logits"] if isinstance(output, dict) else output).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module


def conv_net() -> nn.Module:
    return trained(Net(), torch.randn(4, 3, 6, 6))


def language_model() -> nn.Module:
    return trained(TiedLanguageModel(), torch.randint(11, (3, 5)))


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False)


MODULES = [conv_net, language_model, encoder, Oddities, nn.Identity]


def snapshot(state_dict: dict[str, Tensor]) -> dict[str, tuple]:
    """What a state dict holds, independent of its tensors; bits as integers, so that NaN equals NaN."""
    return {
        name: (
            tensor.dtype,
            tensor.shape,
            bytes(tensor.detach().resolve_conj().contiguous().flatten().view(torch.uint8)),
        )
        for name, tensor in state_dict.items()
    }
