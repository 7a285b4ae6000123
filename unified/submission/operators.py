"""Which operators a ``.umodel`` may name, decided by exact overload: what was reviewed, and still keeps to the principle.

The reviewed list is ``operators.txt`` beside this file, family by family; an operator that a later PyTorch adds is not on it
until somebody has looked at it. An operator on it must also pass the principle in the PyTorch that runs.

By the principle, allowed is an ATen operator that computes tensors from tensors and plain values and does nothing else: it
writes to none of its arguments, draws only from the default random state, does no I/O, and returns no memory that it did not
fill. What its schema cannot tell is in :data:`REFUSED_FAMILIES`, family by family. Views are allowed: nothing writes through
them. The two exceptions, which do write, are batch statistics and counters, and only to buffers: :data:`STATISTICS`,
:data:`COUNTER`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from unified.submission.operator_guards import GUARDED

Kind = Literal["tensor", "tensors", "number"]

#: Families by the operator's name, each with the reason why it is refused although its schema looks harmless.
REFUSED_FAMILIES: tuple[tuple[str, str], ...] = (
    (r".*empty.*", "returns uninitialised memory, in which other models' data may lie"),
    (r"as_strided.*|set|resize.*|_reshape_alias|(set_)?data|is_set_to", "plays with storage"),
    (r"from_file|save|load|print|warn", "does input or output"),
    (r"record_stream|_?pin_memory|is_pinned|manual_seed|seed|initial_seed", "changes the state of the process"),
    (r".*_backward.*|.*_jvp", "is a part of automatic differentiation and checks its arguments less"),
    (r".*(cudnn|miopen|mkldnn|mkl_|fbgemm|xnnpack|vulkan|mps_|thnn).*", "belongs to one backend: name the general operator"),
    (r".*batch_norm_.*|native_batch_norm|native_norm", "writes batch statistics without saying so in its schema"),
    (r".*(sparse|coo_|csr|csc|bsr|bsc|ccol|crow|coalesce|to_dense).*|hspmm|sspaddmm|smm", "makes sparse tensors"),
    (r"((col|row)_)?indices(_copy)?|values(_copy)?", "takes sparse tensors"),
    (r".*(quantize|qparams|int_repr).*|q_.*", "makes quantized tensors"),
    (r".*(nested|jagged|padded_tensor).*", "makes nested tensors"),
    (r"binomial|(special_.*_polynomial_.*)", "may not return for a long time, whatever the size of its arguments"),
    (r"multilabel_margin_loss.*", "returns memory that it did not fill for some targets"),
    (r"(linalg_)?(lu|ldl)_(solve|unpack)", "trusts the pivots that it is given: name solve"),
    (r"grid_sampler_[23]d", "checks its modes less: name grid_sampler"),
    (r"nonzero_numpy", "gives as many values as the data have"),
    (r"range", "ends the process on some steps: name arange"),
    (r"random", "may not return on a range without end"),
    (r"(linalg_)?eig(vals)?", "ends the process on values that are not finite"),
    (r"__.*__", "is a Python spelling of an operator: name the operator itself"),
    (r"segment_reduce|convolution_overrideable", "checks its arguments less than others do"),
    (r"sym_.*", "computes sizes: only sym_size.int, sym_stride.int and sym_numel.default are allowed"),
)  # fmt: skip

#: Overloads that are refused although their namesakes are allowed.
REFUSED_OVERLOADS = {
    "aten.cov.default": "writes to the weights that it is given, without saying so in its schema",
    "aten.view.dtype": "reads the bytes of one type as another, such as truth values that are neither 0 nor 1",
    **dict.fromkeys(
        (f"aten.{name}.data" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")),
        "takes packed sequences, which no stored graph can make, and trusts their lengths",
    ),
}

#: Internal operators (leading underscore) that ordinary models lead to; the others check their arguments less and are refused.
INTERNAL = frozenset(
    {
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool3d",
        "_conj",
        "_native_multi_head_attention",
        "_neg_view",
        "_safe_softmax",
        "_shape_as_tensor",
        "_stack",
        "_to_copy",
        "_transformer_encoder_layer_fwd",
        "_unsafe_view",
        "_upsample_bicubic2d_aa",
        "_upsample_bilinear2d_aa",
        "_upsample_nearest_exact1d",
        "_upsample_nearest_exact2d",
        "_upsample_nearest_exact3d",
        "_weight_norm",
    }
)

#: Operators marked as having an output whose size depends on data, though it does not in the use that models make of them.
SIZED_BY_USE = frozenset({"aten.index.Tensor", "aten.one_hot.default", "aten.repeat_interleave.Tensor"})

#: Operators that update running statistics: the positions of the arguments that must be buffers.
STATISTICS = {"aten.batch_norm.default": (3, 4), "aten.instance_norm.default": (3, 4)}

#: The one operator that writes in place: it adds an integer to a buffer of integers.
COUNTER = "aten.add_.Tensor"

_ATEN = re.compile(r"aten\.([A-Za-z_][A-Za-z0-9_]{0,80})\.([A-Za-z_][A-Za-z0-9_]{0,80})")
_PLAIN = r"Tensor|int|SymInt|float|bool|number|str|ScalarType|Layout|Device|MemoryFormat|Generator"
_ARGUMENT = re.compile(rf"(Optional\[)?(List\[)?(Optional\[)?({_PLAIN})\]*")
_REFUSED = tuple((re.compile(pattern), reason) for pattern, reason in REFUSED_FAMILIES)
_HUGE = 1 << 63


class RefusedOperatorError(ValueError):
    """An operator may not stand in a ``.umodel``; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """What an operator takes: ``base`` is a schema type such as ``"Tensor"`` or ``"int"``."""

    name: str
    base: str
    is_list: bool
    optional: bool
    required: bool
    keyword_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """An allowed operator.

    Attributes:
        name: ``"aten.NAME.OVERLOAD"`` or ``"py.NAME"``.
        function: What to call.
        arguments: What it takes.
        result: Whether it gives one tensor, several, or a number.
        draws: Whether it may draw random numbers.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Argument, ...]
    result: Kind
    draws: bool


@lru_cache(maxsize=4096)
def resolve(name: str) -> Operator:
    """Return the operator called ``name``.

    Raises:
        RefusedOperatorError: If there is none, or it is not allowed.
    """
    reason = refusal(name)
    if reason is None and name not in reviewed():
        reason = "is not on the list of reviewed operators"
    if reason is not None:
        raise RefusedOperatorError(f"operator {name!r}, which {reason}")
    if name in _NUMBER_FUNCTIONS:
        return _number_operator(name)
    overload = _overload(name)
    if name in _SIZES:
        return Operator(name=name, function=_SIZES[name], arguments=_arguments(overload), result="number", draws=False)
    returns = overload._schema.returns
    single = len(returns) == 1 and str(returns[0].real_type) == "Tensor"
    return Operator(
        name=name,
        function=GUARDED.get(name, overload),
        arguments=_arguments(overload),
        result="tensor" if single else "tensors",
        draws=torch.Tag.nondeterministic_seeded in overload.tags,
    )


@lru_cache(maxsize=1)
def reviewed() -> dict[str, str]:
    """Return the list of reviewed operators: name to family."""
    found = {}
    family = ""
    for line in Path(__file__).with_name("operators.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            family = line.strip("[]")
        elif line and not line.startswith("#"):
            found[line] = family
    return found


def refusal(name: str) -> str | None:
    """Say why the principle refuses an operator, or None.

    Raises:
        RefusedOperatorError: If there is no such operator.
    """
    if name == COUNTER or name in _SIZES or name in _NUMBER_FUNCTIONS:
        return None
    return _refusal(name, _overload(name))


def _overload(name: str) -> torch._ops.OpOverload:
    match = _ATEN.fullmatch(name)
    if match is None:
        raise RefusedOperatorError(f"operator {name[:100]!r}, which is not of the form 'aten.NAME.OVERLOAD'")
    packet = getattr(torch.ops.aten, match[1], None)
    found = getattr(packet, match[2], None) if isinstance(packet, torch._ops.OpOverloadPacket) else None
    if not isinstance(found, torch._ops.OpOverload) or f"{found.namespace}.{match[1]}.{match[2]}" != name:
        raise RefusedOperatorError(f"operator {name!r}, which does not exist in PyTorch {torch.__version__}")
    return found


def _refusal(name: str, overload: torch._ops.OpOverload) -> str | None:
    schema = overload._schema
    base = schema.name.removeprefix("aten::")
    if name in REFUSED_OVERLOADS:
        return REFUSED_OVERLOADS[name]
    for pattern, reason in _REFUSED:
        if pattern.fullmatch(base):
            return reason
    if base.startswith("_") and base not in INTERNAL:
        return "is internal to PyTorch"
    if any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments):
        return "writes to its argument"
    if not schema.returns or any(str(r.real_type) not in {"Tensor", "List[Tensor]"} for r in schema.returns):
        return "does not return tensors (a value read from a tensor cannot steer a stored graph)"
    dynamic = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(overload.tags)
    if dynamic and name not in SIZED_BY_USE:
        return "gives a result whose size depends on the data"
    for argument in schema.arguments:
        if not _ARGUMENT.fullmatch(str(argument.real_type)):
            return f"takes a {argument.real_type}"
    return None


def _arguments(overload: torch._ops.OpOverload) -> tuple[Argument, ...]:
    found = []
    for argument in overload._schema.arguments:
        match = _ARGUMENT.fullmatch(str(argument.real_type))
        assert match is not None, "types are checked before"
        found.append(
            Argument(
                name=argument.name,
                base="int" if match[4] == "SymInt" else match[4],
                is_list=match[2] is not None,
                optional=match[1] is not None or (match[2] is not None and match[3] is not None),
                required=not argument.has_default_value(),
                keyword_only=argument.kwarg_only,
            )
        )
    return tuple(found)


_SIZES: dict[str, Callable[..., Any]] = {
    "aten.sym_size.int": lambda tensor, dim: tensor.shape[dim],
    "aten.sym_stride.int": lambda tensor, dim: tensor.stride(dim),
    "aten.sym_numel.default": lambda tensor: tensor.numel(),
}


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse whole numbers beyond 64 bits, which no size is: a chain of products could else grow without end."""

    def checked(*args: Any) -> Any:
        result = function(*args)
        if isinstance(result, int) and not -_HUGE <= result < _HUGE:
            raise OverflowError(f"a size of {result.bit_length()} bits")
        return result

    return checked


#: Functions on sizes: name to (function, number of arguments).
_NUMBER_FUNCTIONS: dict[str, tuple[Callable[..., Any], int]] = {
    "py.add": (_bounded(operator.add), 2),
    "py.sub": (_bounded(operator.sub), 2),
    "py.mul": (_bounded(operator.mul), 2),
    "py.floordiv": (operator.floordiv, 2),
    "py.truediv": (operator.truediv, 2),
    "py.mod": (operator.mod, 2),
    "py.neg": (operator.neg, 1),
    "py.sqrt": (lambda value: value**0.5, 1),
    "py.floor": (lambda value: int(value // 1), 1),
    "py.ceil": (lambda value: -int(-value // 1), 1),
    "py.int": (int, 1),
    "py.float": (float, 1),
    "py.max": (max, 2),
    "py.min": (min, 2),
    "py.eq": (operator.eq, 2),
    "py.ne": (operator.ne, 2),
    "py.lt": (operator.lt, 2),
    "py.le": (operator.le, 2),
    "py.gt": (operator.gt, 2),
    "py.ge": (operator.ge, 2),
    "py.not": (operator.not_, 1),
    "py.getitem": (operator.getitem, 2),
}


def _number_operator(name: str) -> Operator:
    function, count = _NUMBER_FUNCTIONS[name]
    take = name == "py.getitem"
    bases = ["tensors", "int"] if take else ["number"] * count
    arguments = tuple(
        Argument(name=f"arg{index}", base=base, is_list=False, optional=False, required=True, keyword_only=False)
        for index, base in enumerate(bases)
    )
    return Operator(
        name=name,
        function=function,
        arguments=arguments,
        result="tensor" if take else "number",
        draws=False,
    )
