"""Models of many families, small and with random weights, on which capturing is measured (design 3.5).

``zoo()`` lists them without building any. Libraries that are not installed leave their rows unbuildable, not absent.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks import fusion_zoo_further as more
from benchmarks import fusion_zoo_user as user

Values = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
EXAMPLE_BATCH = 2


class MakeInputs(Protocol):
    """Makes inputs; the same for the same batch and seed."""

    def __call__(self, batch: int = EXAMPLE_BATCH, *, seed: int = 0) -> Values:
        """Return inputs of ``batch`` samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooModel:
    """A model that can be built.

    Attributes:
        name: Unique in the zoo.
        family: ``torchvision``, ``timm``, ``transformers`` or ``user``.
        build: Returns a new model, always with the same weights, in evaluation mode. No zero-initialised layer is left at
            zero, since a layer that does nothing hides what is done to it.
        inputs: Makes its inputs.
        is_core: Whether it is one of the 52 that the targets are stated for.
        primary: Name of the primary input, where there are several.
        refusal: Pattern that is found in the refusal; None if the model must be captured.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: MakeInputs
    is_core: bool = True
    primary: str | int | None = None
    refusal: str | None = None

    @property
    def is_available(self) -> bool:
        """Whether the library that it comes from is installed."""
        return self.family == "user" or importlib.util.find_spec(self.family) is not None


def zoo() -> list[ZooModel]:
    """Return all models; names are unique."""
    from benchmarks.fusion_zoo_libraries import library_models  # it takes the helpers below from here

    return [*library_models(), *user_models()]


def user_models() -> list[ZooModel]:
    """Return the models that need torch alone."""
    pictures, sequence, ids = images(32), floats(6, 6), tokens(6, vocabulary=more.VOCABULARY)
    core = {
        "functional_cnn": (user.FunctionalCnn, pictures),
        "top_skip": (user.TopSkip, pictures),
        "reused_relu": (user.ReusedRelu, pictures),
        "loop_cnn": (user.LoopCnn, pictures),
        "inplace_slices": (user.InPlaceSlices, pictures),
        "lstm": (user.LstmClassifier, sequence),
        "unet": (user.UNet, pictures),
        "mlp": (user.Mlp, floats(20)),
        "encoder_layers": (user.EncoderLayers, pictures),
    }
    further = {
        "gru": (more.GruTagger, ids),
        "dict_output": (more.DictOutput, pictures),
        "tied_weights": (more.TiedWeights, ids),
        "masked_mean": (more.MaskedMean, tokens(6, vocabulary=more.VOCABULARY, with_mask=True)),
        "einsum_attention": (more.EinsumAttention, sequence),
        "conv_autoencoder": (more.ConvAutoencoder, pictures),
        "unrolled_cell": (more.UnrolledCell, sequence),
        "normed_residual": (more.NormedResidual, pictures),
        "fourier_mixer": (more.FourierMixer, sequence),
        "sound_net": (more.SoundNet, floats(1, 256)),
        "soft_experts": (more.SoftExperts, floats(20)),
        "video": (more.Video, floats(4, 3, 16, 16)),
    }
    two = {
        "several_inputs": (more.SeveralInputs, named(image=(3, 32, 32), facts=(5,)), "image"),
        "siamese": (more.Siamese, pair(3, 32, 32), 0),
    }
    branching = {"branch_on_value": user.BranchOnValue, "branch_on_item": user.BranchOnItem}
    return [
        *(_user(name, *made) for name, made in core.items()),
        *(_user(name, kind, floats(20), refusal=_BRANCHES) for name, kind in branching.items()),
        *(_user(name, *made, is_core=False) for name, made in further.items()),
        *(_user(name, kind, inputs, is_core=False, primary=primary) for name, (kind, inputs, primary) in two.items()),
    ]


_BRANCHES = r"forward branches on a tensor value at \S*fusion_zoo_user\.py:\d+"


def _user(name: str, kind: Callable[[], nn.Module], inputs: MakeInputs, **fields: Any) -> ZooModel:
    return ZooModel(name=name, family="user", build=seeded(kind, inputs), inputs=inputs, **fields)


def seeded(make: Callable[[], nn.Module], inputs: MakeInputs) -> Callable[[], nn.Module]:
    """Return a builder of one and the same model; the global random state stays as it was."""

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make()
            _stir(model.eval())
            _settle(model, inputs)
        return model.eval()

    return build


def call(model: nn.Module, values: Values) -> Any:
    """Return what ``model`` gives for inputs as a ``ZooModel`` makes them."""
    if isinstance(values, Tensor):
        return model(values)
    return model(**values) if isinstance(values, Mapping) else model(*values)


@torch.no_grad()
def _stir(model: nn.Module) -> None:
    """Move constant parameters off their start, where norms, biases, layer scales and heads do nothing."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
            fan_in = parameter.numel() // max(parameter.shape[:1] or (1,))
            parameter += (0.1 if fan_in == 1 else fan_in**-0.5) * torch.randn(parameter.shape)


@torch.no_grad()
def _settle(model: nn.Module, inputs: MakeInputs) -> None:
    """Give batch norms the statistics of inputs; else deep models answer the same to everything and hide all errors."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    if norms:
        for norm in norms:
            norm.momentum = None  # the plain mean
            norm.reset_running_stats()
            norm.train()
        call(model, inputs(8, seed=99))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def images(size: int, *, channels: int = 3) -> MakeInputs:
    """Make pictures ``(batch, channels, size, size)``."""
    return floats(channels, size, size)


def floats(*shape: int) -> MakeInputs:
    """Make tensors ``(batch, *shape)``, normally distributed."""

    def make(batch: int = EXAMPLE_BATCH, *, seed: int = 0) -> Tensor:
        return torch.randn(batch, *shape, generator=_generator(seed))

    return make


def named(**shapes: tuple[int, ...]) -> MakeInputs:
    """Make several float tensors, passed by name."""

    def make(batch: int = EXAMPLE_BATCH, *, seed: int = 0) -> dict[str, Tensor]:
        generator = _generator(seed)
        return {name: torch.randn(batch, *shape, generator=generator) for name, shape in shapes.items()}

    return make


def pair(*shape: int) -> MakeInputs:
    """Make two float tensors of one shape, passed by position."""

    def make(batch: int = EXAMPLE_BATCH, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = _generator(seed)
        return torch.randn(batch, *shape, generator=generator), torch.randn(batch, *shape, generator=generator)

    return make


def tokens(
    length: int, *, vocabulary: int = 100, with_mask: bool = False, name: str = "input_ids", **further: int
) -> MakeInputs:
    """Make ids ``(batch, length)`` from 1 up.

    Args:
        length: Of each row.
        vocabulary: Ids are below it.
        with_mask: Pass them by name with an ``attention_mask`` that hides the end of each row, of another length per row.
        name: Of the ids.
        further: Names of further ids with their lengths; with these everything is passed by name.
    """

    def make(batch: int = EXAMPLE_BATCH, *, seed: int = 0) -> Values:
        generator = _generator(seed)
        ids = torch.randint(1, vocabulary, (batch, length), generator=generator)
        made = {name: ids}
        if with_mask:
            kept = torch.randint(length // 2, length + 1, (batch, 1), generator=generator)
            made["attention_mask"] = (torch.arange(length) < kept).long()
        made |= {other: torch.randint(1, vocabulary, (batch, number), generator=generator) for other, number in further.items()}
        return made if len(made) > 1 else ids

    return make


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
