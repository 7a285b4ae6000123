"""All rules, by the operator's name."""

from __future__ import annotations

from fusion.stacking import (
    rules_attention,
    rules_conv,
    rules_loss,
    rules_matmul,
    rules_norm,
    rules_pointwise,
    rules_random,
    rules_recurrent,
    rules_reduce,
    rules_shape,
)
from fusion.stacking.dispatch import Rule

RULES: dict[str, Rule] = {
    **rules_pointwise.RULES,
    **rules_shape.RULES,
    **rules_reduce.RULES,
    **rules_matmul.RULES,
    **rules_conv.RULES,
    **rules_norm.RULES,
    **rules_attention.RULES,
    **rules_random.RULES,
    **rules_recurrent.RULES,
    **rules_loss.RULES,
}
