"""One tensor that holds a parameter of all members of a stack."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(slots=True, kw_only=True)
class StackedParameter:
    """The values of one parameter in all members of a stack.

    Args:
        name: The parameter's name in a member, for instance ``"fc1.weight"``.
        tensor: `(members, ...)`, all members' values; replaced by a new one when members join or leave.
        is_transposed: Whether the last two dimensions are stored swapped, for instance a linear weight kept as
            `(members, in, out)`.
    """

    name: str
    tensor: nn.Parameter
    is_transposed: bool = False

    def row(self, tensor: Tensor, index: int) -> Tensor:
        """Give a member's part of a tensor that is laid out like `self.tensor`.

        Args:
            tensor: `(members, ...)`: the values themselves, their gradient, or an optimizer's state.
            index: The member's.

        Returns:
            A view in the member's own shape.

        Example:
            >>> weight = StackedParameter(name="weight", tensor=nn.Parameter(Tensor(3, 5, 2)), is_transposed=True)
            >>> weight.row(weight.tensor, 1).shape
            torch.Size([2, 5])
        """
        part = tensor[index]
        return part.transpose(-1, -2) if self.is_transposed else part
