"""What policies declare that they decide by, checked against what there is."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import fields

from schedulers.base import JobView, SchedulerConfigError

_FIELDS = [field.name for field in fields(JobView)]


def check_fields(name: str, needs: frozenset[str]) -> None:
    """Check that a policy needs fields of ``JobView`` only.

    Raises:
        SchedulerConfigError: If it names another; the message gives the nearest field. Or if it is no set of names.
    """
    if not (isinstance(needs, frozenset) and all(isinstance(need, str) for need in needs)):
        raise SchedulerConfigError(f"scheduler {name!r}: expected needs, a frozenset of fields of JobView, got {needs!r}")
    for need in sorted(needs):
        if need not in _FIELDS:
            close = difflib.get_close_matches(need, _FIELDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_FIELDS)}"
            raise SchedulerConfigError(f"scheduler {name!r} needs the field {need!r}, which units do not have; {hint}")


def check_needs(name: str, needs: frozenset[str], supplied: Collection[str], who: str) -> None:
    """Check that a job, or a trace, has what a policy decides by.

    Args:
        name: The policy, as spelled.
        needs: The fields of ``JobView`` that it declares.
        supplied: Those that there are.
        who: Whose they are, such as ``"job 'digits'"`` or ``"trace 'openb.csv'"``.

    Raises:
        SchedulerConfigError: If one is missing, or the policy declares what no unit has.
    """
    check_fields(name, needs)
    missing = sorted(needs - set(supplied))
    if missing:
        raise SchedulerConfigError(
            f"scheduler {name!r} decides by {', '.join(missing)}, which {who} lacks; supply it, or take another scheduler"
        )
