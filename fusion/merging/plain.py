"""A single network pruned as its owner's own module, by torch-pruning: how baseline 1 of PAM, section 6.1, is handed back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from fusion.merging.errors import MergeError
from fusion.merging.layers import MAKERS, OWNING, Constant, Kind, Layer, Network
from fusion.merging.merged import Held, MergedNetwork

TOLERANCE = 1e-5  # of the largest output, or of 1: the same operations on the same numbers, maybe in another order


def pruned_module(model: nn.Module, network: Network, merged: MergedNetwork) -> nn.Module:
    """Return a copy of a module with the neurons, and the weights, of its merged network of one.

    Args:
        model: As its owner wrote it; it is not changed.
        network: Read from it.
        merged: ``alone(network)``, since then resized and maybe trained.

    Returns:
        The owner's module in evaluation mode, its layers narrower. It answers as ``merged`` does.

    Raises:
        MergeError: If it cannot be pruned so: a layer that is used twice or is no module of its own, or a size of features
            that its ``forward`` writes out. ``merged.specialize()`` has none of these limits.
    """
    if len(merged.tasks) != 1 or merged.tasks[0] != network.name:
        raise MergeError(f"expected the merged network of {network.name} alone; got one of {', '.join(merged.tasks)}")
    pruned = copy.deepcopy(model).eval()
    owned = [(layer, _module(pruned, layer, network)) for layer in network.layers if layer.kind in OWNING]
    wants_gradient = {name: parameter.requires_grad for name, parameter in pruned.named_parameters()}
    pruned.requires_grad_(True)  # torch-pruning follows gradients from the output back
    _remove(pruned, owned, network, merged)
    for name, parameter in pruned.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(wants_gradient[name])
    _fill(model, pruned, owned, network, merged)
    _check(pruned, network, merged)
    return pruned


def _module(model: nn.Module, layer: Layer, network: Network) -> nn.Module:
    """Return the module of a layer."""
    kinds = {Kind.LINEAR: nn.Linear, Kind.NORM: nn.modules.batchnorm._BatchNorm}
    try:
        module = model.get_submodule(layer.name)
    except AttributeError:
        module = model
    if not isinstance(module, kinds.get(layer.kind, nn.Conv2d)):
        raise MergeError(
            f"{network.name}: layer {layer.name!r} is used more than once, or no module of its own, and cannot be pruned in "
            "its owner's module; take specialize() in its place"
        )
    return module


def _remove(pruned: nn.Module, owned: list[tuple[Layer, nn.Module]], network: Network, merged: MergedNetwork) -> None:
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(pruned, (network.example,), verbose=False)
    spaces = {step.name: step.space for step in merged.steps}
    done: set[int] = set()
    for layer, module in owned:
        space = spaces[layer.name]
        if layer.kind not in MAKERS or space in done:
            continue
        done.add(space)
        removed = sorted(set(range(layer.width)) - set(merged.neurons[space].index.tolist()))
        if removed:
            is_linear = layer.kind is Kind.LINEAR
            remove = torch_pruning.prune_linear_out_channels if is_linear else torch_pruning.prune_conv_out_channels
            graph.get_pruning_group(module, remove, removed).prune()


def _fill(
    model: nn.Module, pruned: nn.Module, owned: list[tuple[Layer, nn.Module]], network: Network, merged: MergedNetwork
) -> None:
    """Give the module the values of the merged network."""
    places = {step.name: position for position, step in enumerate(merged.steps)}
    with torch.no_grad():
        for layer, module in owned:
            for name, value in merged.part(places[layer.name]).state_dict().items():
                target = getattr(module, name)
                if target.shape != value.shape:
                    raise MergeError(
                        f"{network.name}: torch-pruning leaves {layer.name}.{name} with shape {tuple(target.shape)}; "
                        f"expected {tuple(value.shape)}"
                    )
                target.copy_(value)
        names = {value.data_ptr(): name for name, value in _tensors(model)}
        own = dict(_tensors(pruned))
        for layer in network.layers:
            pairs = zip(_found(layer.args, Constant), _found(merged.steps[places[layer.name]].args, Held), strict=False)
            for constant, held in pairs:
                name = names.get(constant.tensor.data_ptr())
                if name is not None:
                    own[name].copy_(getattr(merged.constants, held.name))


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _found(args: Any, kind: type) -> Iterator[Any]:
    """Return what is of a kind among arguments, in order."""
    if isinstance(args, kind):
        yield args
    elif isinstance(args, list | tuple):
        for value in args:
            yield from _found(value, kind)


def _check(pruned: nn.Module, network: Network, merged: MergedNetwork) -> None:
    was = merged.training
    merged.eval()
    try:
        with torch.no_grad():
            expected = merged(network.example)[network.name]
            got = pruned(network.example)
    except RuntimeError as error:
        raise MergeError(
            f"{network.name}: pruned, the module does not run ({error}); does its forward write out a size of features? "
            "Write x.flatten(1) for x.view(-1, 400), or take specialize() in its place"
        ) from error
    finally:
        merged.train(was)
    bound = TOLERANCE * max(1.0, float(expected.abs().max()))
    if got.shape != expected.shape or float((got - expected).abs().max()) > bound:
        raise MergeError(f"{network.name}: pruned, the module does not answer as its merged network does")
