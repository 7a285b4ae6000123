"""Blocks: pieces of a model that run one after the other, over its own parameters under their own names (paper, 4.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, fx, nn

from fusion.graph.errors import FusionError
from fusion.graph.feature import Feature
from fusion.graph.program import Program

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What the inputs of a model are; models to be fused must have it in common.

    Attributes:
        names: Keyword names of the inputs; None if they are positional.
        features: Shape, layout and dtype of each raw input, in order.
        primary: Position of the input at which the path of features begins.
    """

    names: tuple[str, ...] | None
    features: tuple[Feature, ...]
    primary: int

    def flatten(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return the inputs in order.

        Raises:
            FusionError: If some are missing or unknown.
        """
        if isinstance(inputs, Tensor):
            values: tuple[Tensor, ...] = (inputs,)
        elif isinstance(inputs, Mapping):
            if self.names is None or set(inputs) != set(self.names):
                raise FusionError(f"expected {self._expected()}, got the inputs {', '.join(map(str, inputs)) or 'nothing'}")
            values = tuple(inputs[name] for name in self.names)
        else:
            values = tuple(inputs)
        if len(values) != len(self.features):
            raise FusionError(f"expected {self._expected()}, got {len(values)}")
        return values

    def _expected(self) -> str:
        return f"{len(self.features)} positional inputs" if self.names is None else f"the inputs {', '.join(self.names)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockInfo:
    """What is known of a block beside its graph; the fields are those of :class:`Block`."""

    index: int
    name: str
    op_type: str
    needs: tuple[int, ...]
    input: Feature
    output: Feature | None


class Block(nn.Module):
    """A piece of a model: takes a feature and some raw inputs, gives the next feature, or the model's output if it is the last.

    Parameters and buffers are the model's own objects under the model's own names, so that the keys of a block's state dict
    are keys of the model's.

    Attributes:
        index: Position in its sequence.
        name: Path of the module that it covers, e.g. ``layer1.0``.
        op_type: Heaviest kind of operator: conv, linear, attention, recurrent, embedding, norm or other.
        needs: Positions of the raw inputs that it takes beside its feature.
        input: What it takes.
        output: What it gives; None if it is the last.
        capacity: Number of parameter elements, each counted once.

    Args:
        info: What is known of it.
        programs: What it does in evaluation and in training.
        tensors: Parameters and buffers by their names.
        persistent: Names of the buffers that belong in the state dict.
    """

    def __init__(
        self, info: BlockInfo, programs: tuple[Program, Program], tensors: Mapping[str, Tensor], persistent: Iterable[str]
    ) -> None:
        super().__init__()
        self.index = info.index
        self.name = info.name
        self.op_type = info.op_type
        self.needs = info.needs
        self.input = info.input
        self.output = info.output
        self.programs = programs
        kept = frozenset(persistent)
        for name in dict.fromkeys(name for program in programs for name in program.names):
            register(self, name, tensors[name], is_persistent=name in kept)
        self.capacity = sum(parameter.numel() for parameter in self.parameters())

    @property
    def graph(self) -> fx.Graph:
        """What the block does in its present mode. Not to be changed: copies of the block share it."""
        return self.programs[self.training].graph

    def forward(self, x: Tensor, *side: Tensor) -> Any:
        """Return the next feature, of shape (batch, *output.shape), or the model's output as plain Python."""
        return self.programs[self.training](self, (x, *side))

    def extra_repr(self) -> str:
        """Name what it covers."""
        return (
            f"{self.index}: {self.name or 'root'} ({self.op_type}), {self.input.shape} -> {self.output and self.output.shape}"
        )


class BlockSequence(nn.Module):
    """A model as a chain of blocks; it gives what the model gives, and its state dict is the model's.

    Attributes:
        name: Name of the model in messages.
        blocks: The blocks in order.
        signature: The model's inputs.
        notes: What the user should know: warnings of the capture.
        num_cuts: Number of values at which the model could be cut, before neighbours were joined; 0 if that is not known.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        signature: Signature,
        *,
        name: str,
        notes: Sequence[str],
        spare: nn.Module,
        keys: Mapping[str, str],
        num_cuts: int = 0,
    ) -> None:
        super().__init__()
        self.name = name
        self.signature = signature
        self.notes = tuple(notes)
        self.num_cuts = num_cuts
        self.blocks = nn.ModuleList(blocks)
        self.spare = spare  # what the model has but does not use
        self._keys = dict(keys)  # key of the model's state dict -> key of the default one
        self.register_load_state_dict_pre_hook(_under_own_keys)
        self.train(blocks[0].training)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Return what the model returns, as plain Python; the inputs are given as to the model."""
        return self.run(self.signature.flatten(kwargs or args))

    def run(self, inputs: Sequence[Tensor]) -> Any:
        """Return the model's output for raw inputs in the order of the signature."""
        value: Any = inputs[self.signature.primary]
        for block in self._chain():
            value = block(value, *(inputs[index] for index in block.needs))
        return value

    def features(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the input of each block, shapes (batch, *block.input.shape)."""
        found = [inputs[self.signature.primary]]
        for block in self._chain()[:-1]:
            found.append(block(found[-1], *(inputs[index] for index in block.needs)))
        return found

    def _chain(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))  # a ModuleList does not know what it holds

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Return the weights under the model's own keys, tied ones under each of theirs."""
        assert not args, "torch has given up positional arguments here"
        state = {} if destination is None else destination
        own = super().state_dict(keep_vars=keep_vars)
        for key, inner in self._keys.items():
            state[prefix + key] = own[inner]
        return state


def _under_own_keys(sequence: BlockSequence, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Put weights under the keys that torch looks for, in place of the model's own."""
    given = {key: state_dict.pop(prefix + key) for key in sequence._keys if prefix + key in state_dict}
    for inner in nn.Module.state_dict(sequence):
        key = inner.removeprefix("spare.") if inner.startswith("spare.") else inner.split(".", 2)[2]
        if key in given:
            state_dict[prefix + inner] = given[key]


def register(root: nn.Module, name: str, tensor: Tensor, *, is_persistent: bool) -> None:
    """Place a parameter or buffer under a dotted name, with plain modules on the way.

    The dictionaries are used themselves: a user's module may be called ``name`` or ``input``, which ``setattr`` would refuse.
    """
    *path, last = name.split(".")
    module = root
    for part in path:
        child = module._modules.get(part)
        if child is None:
            child = nn.Module()
            module._modules[part] = child
        module = child
    if isinstance(tensor, nn.Parameter):
        module._parameters[last] = tensor
    else:
        module._buffers[last] = tensor
        if not is_persistent:
            module._non_persistent_buffers_set.add(last)
