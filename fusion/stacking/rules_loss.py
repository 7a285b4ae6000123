"""Losses: each member's own, from its own samples; and reading values, which the members must agree on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.nn import functional as F

from fusion.stacking.arguments import argument
from fusion.stacking.dispatch import APART, Rule, StackMode
from fusion.stacking.errors import ValueDependentError
from fusion.stacking.stacked_tensor import StackedTensor

_REDUCTIONS = ("none", "mean", "sum")


def _elementwise_loss(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """A loss of each element, averaged or summed over a member's."""
    output, target = args[0], argument(args, kwargs, 1, "target")
    options = dict(kwargs)
    options.pop("target", None)
    reduction, how = _reduction(func, args[2:], options)
    weights = [options.get("weight"), options.get("pos_weight")]
    if how is None or any(type(each) is StackedTensor for each in weights) or output.shape != target.shape:
        return mode.each(func, args, kwargs)
    both = (_for_all(output, mode.num_members), _for_all(target, mode.num_members))
    losses = func(*both, **options | {"reduction": how("none")})
    if reduction == "none":
        return StackedTensor.of(losses)
    flat = losses.reshape(mode.num_members, -1)
    return StackedTensor.of(flat.mean(1) if reduction == "mean" else flat.sum(1))


def _reduction(func: Callable[..., Any], rest: tuple, options: dict[str, Any]) -> tuple[str, Callable[[str], str | int] | None]:
    """Return how a loss is reduced, and how ``func`` wants that said; None if it is said in a way of the past."""
    if options.get("size_average") is not None or options.get("reduce") is not None or any(each is not None for each in rest):
        return "", None
    options.pop("size_average", None), options.pop("reduce", None)
    given = options.pop("reduction", 1 if isinstance(func, OpOverload) else "mean")
    if isinstance(given, int):
        return _REDUCTIONS[given], _REDUCTIONS.index
    return (given, lambda name: name) if given in _REDUCTIONS else ("", None)


def _cross_entropy(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Cross-entropy of class numbers or probabilities, over a member's samples."""
    names = ("weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
    if isinstance(func, OpOverload) or getattr(func, "__module__", None) != F.__name__:
        names = ("weight", "reduction", "ignore_index", "label_smoothing")
    options = dict(zip(names, args[2:], strict=False)) | {key: value for key, value in kwargs.items() if key in names}
    reduction = options.get("reduction", "mean")
    reduction = _REDUCTIONS[reduction] if isinstance(reduction, int) else reduction
    output, target = args[0], argument(args, kwargs, 1, "target")
    is_old = options.get("size_average") is not None or options.get("reduce") is not None
    weight, ignored = options.get("weight"), options.get("ignore_index", -100)
    if is_old or type(weight) is StackedTensor or output.dim() < 2:
        return mode.each(func, args, kwargs)
    smoothing = {"label_smoothing": options.get("label_smoothing", 0.0)} if "label_smoothing" in names else {}
    function = F.cross_entropy if smoothing else F.nll_loss
    target = _for_all(target, mode.num_members)
    logits = _for_all(output, mode.num_members)
    losses = function(
        logits.flatten(0, 1), target.flatten(0, 1), weight=weight, ignore_index=ignored, reduction="none", **smoothing
    )
    losses = losses.reshape(mode.num_members, logits.shape[1], *losses.shape[1:])
    return StackedTensor.of(_reduced(losses, target, reduction, weight, ignored))


def _reduced(losses: Tensor, target: Tensor, reduction: str, weight: Tensor | None, ignored: int) -> Tensor:
    """Reduce losses ``(members, batch, ...)`` as PyTorch does: the mean over what is not ignored, by the classes' weights."""
    if reduction == "none":
        return losses
    sums = losses.flatten(1).sum(1)
    if reduction == "sum":
        return sums
    if target.is_floating_point():
        return sums / losses[0].numel()
    counted = target != ignored
    if weight is None:
        return sums / counted.flatten(1).sum(1)
    return sums / (weight[target.clamp(min=0)] * counted).flatten(1).sum(1)


def _for_all(value: Tensor, num_members: int) -> Tensor:
    return value.merged() if type(value) is StackedTensor else value.unsqueeze(0).expand(num_members, *value.shape)


def _value(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """``.item()``, ``bool(tensor)``: what all members agree on."""
    mode.asked_values = True
    return mode.each(func, args, kwargs, way=APART)


def _never(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    name = getattr(func, "__name__", str(func))
    if name == "__set__":
        name = f"another {func.__self__.__name__} of a tensor"  # type: ignore[attr-defined]  # a getset descriptor's
    raise ValueDependentError(f"the model asks for {name}, which no stack can give")


def _about(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """A question about a member's tensor whose answer is no tensor: its strides, whether it is complex."""
    return func(*(each.any_part() if type(each) is StackedTensor else each for each in args), **kwargs)


def _numel(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> int:
    return args[0].shape.numel()


def _length(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> int:
    return args[0].shape[0]


def _sized(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    return args[0].size(*args[1:], **kwargs)


def _true(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> bool:
    return True


_QUESTIONS = (
    "stride", "is_floating_point", "is_complex", "is_signed", "element_size", "get_device", "get is_cuda", "get layout",
    "get is_sparse", "get is_quantized", "get is_nested", "get itemsize", "get is_meta", "get is_cpu", "get is_mps",
    "get is_xpu",
    "get names", "is_conj", "is_neg", "is_inference", "get nbytes", "is_pinned", "get is_mkldnn", "storage_offset",
    "result_type", "get is_leaf", "get retains_grad", "is_same_size", "get is_xla", "get is_ipu", "get is_vulkan",
    "get is_maia",
    "get is_mtia", "get name", "get _version", "get output_nr", "dim_order",
)  # fmt: skip
_VALUES = (
    "item", "__bool__", "__int__", "__float__", "__index__", "__complex__", "tolist", "equal", "allclose", "is_nonzero",
    "__contains__", "_local_scalar_dense", "__format__",
)  # fmt: skip

_ELEMENTWISE = (
    "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits",
    "soft_margin_loss",
)  # fmt: skip
_CROSS_ENTROPIES = ("cross_entropy", "cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss2d")
_LEAVING = ("numpy", "__array__", "data_ptr", "storage", "untyped_storage", "register_hook", "backward", "grad", "__set__")

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise_loss),
    **dict.fromkeys(_CROSS_ENTROPIES, _cross_entropy),
    **dict.fromkeys(_VALUES, _value),
    **dict.fromkeys(_QUESTIONS, _about),
    **dict.fromkeys(_LEAVING, _never),
    "numel": _numel,
    "nelement": _numel,
    "__len__": _length,
    "is_contiguous": _true,
    "sym_size": _sized,
    "size": _sized,
}
