"""Structured pruning: the same network with narrower layers (MTLsys, section 4.2; the work is done by torch-pruning).

The paper prunes by an "amount" in steps of 10 % and says neither by what channels are chosen nor what the amount is a share of.
Here it is a share of the channels of each layer, unless asked for otherwise, and what has gone of parameters and FLOPs is
always told beside it. Only whole channels are removed: single weights set to zero would save no time.

References:
    DepGraph: Towards Any Structural Pruning (Fang et al.), which torch-pruning implements.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import torch
import torch_pruning
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from fusion.graph.operators import HEAVY, packet
from serving.counting import count
from serving.errors import ServingError
from serving.networks.layers import Attention

_BY_INDEX = frozenset({"index", "index_select", "gather", "take_along_dim", "scatter", "scatter_add", "index_put"})
_STEPS = 100  # of the channels' share, while parameters or FLOPs are brought to theirs


class Criterion(StrEnum):
    """By what channels are chosen; the least go. A channel's score is the mean over all layers that it takes part in."""

    MAGNITUDE = "magnitude"  #: norm of its weights
    TAYLOR = "taylor"  #: weights times their gradients: what the loss would change by
    BATCH_NORM = "batchnorm"  #: scale of its batch norm; magnitude in layers that have none


class RatioOf(StrEnum):
    """What a pruning ratio is a share of."""

    CHANNELS = "channels"  #: of each layer
    PARAMETERS = "parameters"  #: of the network
    FLOPS = "flops"  #: of the network


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """A pruned network.

    Attributes:
        network: Shares no storage with the one that was pruned.
        achieved: Share that has gone of ``"channels"`` (of all convolutions and linear layers), ``"parameters"`` and
            ``"flops"``.
        kept: Layers that keep all their channels although they are no output: attention reads them, or the network would not
            run without them.
    """

    network: fx.GraphModule
    achieved: Mapping[str, float]
    kept: tuple[str, ...] = ()


def prune_network(
    network: fx.GraphModule,
    examples: tuple[Tensor, ...],
    ratio: float,
    *,
    criterion: str = Criterion.MAGNITUDE,
    ratio_of: str = RatioOf.CHANNELS,
    round_to: int = 1,
    loss: Callable[[nn.Module], Tensor] | None = None,
) -> Pruned:
    """Return a narrower copy of a network.

    Outputs and inputs keep their shapes, and each layer at least one channel (in each of its groups, if it has such).

    Args:
        network: Of :func:`serving.networks.reading.read_network`. It is not changed.
        examples: Inputs, each ``(batch, ...)``.
        ratio: In [0, 1); 0 gives a plain copy.
        criterion: See :class:`Criterion`.
        ratio_of: See :class:`RatioOf`. Of parameters and FLOPs at least the ratio goes, by the same share of every layer.
        round_to: Numbers of channels are multiples of it, as far as a layer has as many.
        loss: Gives the loss of a network on labelled samples; for ``taylor`` alone.

    Raises:
        ServingError: If an argument is out of range, or nothing can be pruned, or not so much.
    """
    _check(ratio, criterion, ratio_of, round_to, loss)
    if ratio == 0:
        return Pruned(network=copy.deepcopy(network), achieved=dict.fromkeys(map(str, RatioOf), 0.0), kept=())
    pruner = _Pruner(network, examples, Criterion(criterion), round_to, loss)
    if ratio_of == RatioOf.CHANNELS:
        return pruner.at(ratio)
    low, high, found = 0, _STEPS, None  # share of channels in steps: too little, enough
    while high - low > 1:
        middle = (low + high) // 2
        tried = pruner.at(middle / _STEPS)
        if tried.achieved[ratio_of] >= ratio:
            high, found = middle, tried
        else:
            low = middle
    if found is None:
        most = pruner.at((_STEPS - 1) / _STEPS).achieved[ratio_of]
        raise ServingError(f"expected a ratio of {ratio_of} that pruning can reach, at most {most:.2f} here; got {ratio}")
    return found


def amounts(network: nn.Module, examples: tuple[Tensor, ...]) -> dict[str, int]:
    """Return how many channels (of all convolutions and linear layers), parameters and FLOPs a network has."""
    counts = count(network, examples)
    layers = [module for module in network.modules() if isinstance(module, _ConvNd | nn.Linear)]
    channels = sum(layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features for layer in layers)
    return {"channels": channels, "parameters": counts.num_parameters, "flops": counts.flops}


def gone(whole: Mapping[str, int], left: Mapping[str, int]) -> dict[str, float]:
    """Return what share of each amount has gone, from 0 to 1."""
    return {name: 1 - left[name] / amount if amount else 0.0 for name, amount in whole.items()}


class _Unfit(Exception):  # noqa: N818  it is no error of the caller's
    """Without some of its channels the network does not run."""

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.layer = layer


class _Pruner:
    """Prunes copies of one network."""

    def __init__(
        self,
        network: fx.GraphModule,
        examples: tuple[Tensor, ...],
        criterion: Criterion,
        round_to: int,
        loss: Callable[[nn.Module], Tensor] | None,
    ) -> None:
        self.network, self.examples = network, examples
        self.criterion, self.round_to, self.loss = criterion, round_to, loss
        outputs, read_by_attention = _fixed(network)
        self.outputs = outputs
        self.kept = read_by_attention - outputs
        self.shapes = _shapes(network, examples)

    @cached_property
    def whole(self) -> dict[str, int]:
        """What the unpruned network has."""
        return amounts(self.network, self.examples)

    def at(self, ratio: float) -> Pruned:
        """Return a copy without that share of each layer's channels."""
        while True:
            try:
                pruned = self._pruned(ratio)
            except _Unfit as unfit:
                self.kept = self.kept | {unfit.layer}
            else:
                break
        achieved = gone(self.whole, amounts(pruned, self.examples))
        return Pruned(network=pruned, achieved=achieved, kept=tuple(sorted(self.kept)))

    def _pruned(self, ratio: float) -> fx.GraphModule:
        result = copy.deepcopy(self.network).eval()
        wanting = {name: parameter.requires_grad for name, parameter in result.named_parameters()}
        result.requires_grad_(True)  # torch-pruning follows gradients from the outputs back
        if self.loss is not None:
            self.loss(result).backward()
        with torch.enable_grad():
            graph = torch_pruning.DependencyGraph().build_dependency(result, self.examples, verbose=False)
        names = {module: name for name, module in result.named_modules()}
        # scored whole, before any is cut
        chosen = [(group[0].dep, self._chosen(group, ratio)) for group in self._groups(result, graph)]
        if not chosen:
            raise ServingError(f"nothing in this network can be pruned; all its layers are outputs or kept: {self._listed()}")
        for root, indices in chosen:
            if indices:
                self._cut(result, names[root.target.module], graph, root, indices)
        for name, parameter in result.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(wanting[name])
        return result.train(self.network.training)

    def _groups(self, network: fx.GraphModule, graph: Any) -> list[Any]:
        held = [network.get_submodule(name) for name in self.outputs | self.kept]
        return list(graph.get_all_groups(ignored_layers=held, root_module_types=[_ConvNd, nn.Linear]))

    def _chosen(self, group: Any, ratio: float) -> list[int]:
        """Return the channels of the group's first layer that are to go."""
        scores = _IMPORTANCES[self.criterion]()(group)
        if scores is None:
            scores = _IMPORTANCES[Criterion.MAGNITUDE]()(group)
        parts = _num_parts(group)
        scores = scores.reshape(parts, -1).mean(0)  # all parts lose the same places
        width = len(scores)
        going = scores.argsort(stable=True)[: width - _width(width, parts, ratio, self.round_to)].tolist()
        return sorted(part * width + place for part in range(parts) for place in going)

    def _cut(self, network: fx.GraphModule, layer: str, graph: Any, root: Any, indices: list[int]) -> None:
        try:
            graph.get_pruning_group(root.target.module, root.handler, indices).prune()
            shapes = _shapes(network, self.examples)
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
            raise _Unfit(layer) from error  # a width written out in forward, say, or an operator unknown to torch-pruning
        if shapes != self.shapes:
            raise _Unfit(layer)

    def _listed(self) -> str:
        return ", ".join(sorted(self.outputs | self.kept)) or "it has no convolution or linear layer"


_IMPORTANCES: Mapping[Criterion, Callable[[], Any]] = {
    Criterion.MAGNITUDE: torch_pruning.importance.GroupMagnitudeImportance,
    Criterion.TAYLOR: torch_pruning.importance.GroupTaylorImportance,
    Criterion.BATCH_NORM: torch_pruning.importance.BNScaleImportance,
}


def _check(ratio: float, criterion: str, ratio_of: str, round_to: int, loss: object) -> None:
    problems = []
    if not 0 <= ratio < 1:
        problems.append(f"expected a pruning ratio in [0, 1), got {ratio}")
    if criterion not in list(Criterion):
        problems.append(f"expected a criterion {' or '.join(Criterion)}, got {criterion!r}")
    if ratio_of not in list(RatioOf):
        problems.append(f"expected a ratio of {' or '.join(RatioOf)}, got {ratio_of!r}")
    if round_to < 1:
        problems.append(f"expected round_to >= 1, got {round_to}")
    if (criterion == Criterion.TAYLOR) != (loss is not None):
        problems.append(f"expected a loss for the criterion 'taylor', and for no other; got criterion {criterion!r}")
    if problems:
        raise ServingError("; ".join(problems))


def _width(width: int, parts: int, ratio: float, round_to: int) -> int:
    """Return how many channels stay in each part of a layer."""
    left = max(1, math.floor(width * (1 - ratio) + 0.5))
    while left < width and left * parts % round_to:
        left += 1
    return left


def _num_parts(group: Any) -> int:
    """Return in how many parts of equal size a group's layers have to stay: groups of convolutions and of norms."""
    sizes = [1]
    for dependency, _ in group:
        module = dependency.target.module
        if isinstance(module, nn.GroupNorm):
            sizes.append(module.num_groups)
        elif isinstance(module, _ConvNd) and module.groups != module.out_channels:
            sizes.append(module.groups)
    return math.lcm(*sizes)


def _fixed(network: fx.GraphModule) -> tuple[frozenset[str], frozenset[str]]:
    """Return the layers whose channels are outputs, and those that are read by what torch-pruning does not look into."""
    outputs, read = set(), set()
    for node in network.graph.nodes:
        if node.op == "call_module" and isinstance(network.get_submodule(node.target), _ConvNd | nn.Linear):
            for end in _ends(network, node):
                (outputs if end.op == "output" else read).add(str(node.target))
    return frozenset(outputs), frozenset(read)


def _ends(network: fx.GraphModule, start: fx.Node) -> Iterator[fx.Node]:
    """Yield what a layer's channels arrive at unmixed: outputs, and operators that are no layers and mix them."""
    stack, seen = list(start.users), set()
    while stack:
        node = stack.pop()
        if node in seen or packet(node) == "sym_size":
            continue
        seen.add(node)
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if node.op == "output" or packet(node) in HEAVY | _BY_INDEX or isinstance(module, Attention):
            yield node
        elif not isinstance(module, _ConvNd | nn.Linear):
            stack.extend(node.users)


def _shapes(network: nn.Module, examples: tuple[Tensor, ...]) -> dict[str, torch.Size]:
    with torch.no_grad():
        return {task: output.shape for task, output in network(*examples).items()}
