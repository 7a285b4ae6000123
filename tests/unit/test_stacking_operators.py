"""Every rule of a stack against the loop over its members: whatever is shared, wherever the values lie."""

from __future__ import annotations

import pytest

from tests.unit import operator_cases_layers, operator_cases_pointwise, operator_cases_reduce, operator_cases_shape
from tests.unit.stacked_calls import Case, check, check_traced, sharings

TABLES = (operator_cases_pointwise, operator_cases_shape, operator_cases_reduce, operator_cases_layers)
CASES: dict[str, Case] = {name: given for table in TABLES for name, given in table.CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_gives_every_member_what_it_gives_it_alone(name: str) -> None:
    given = CASES[name]
    for layout in given.layouts:
        for shared in sharings(given):
            check(given, layout, shared)


@pytest.mark.parametrize("name", [name for name, given in CASES.items() if given.is_traced])
def test_its_graph_of_aten_operators_does_so_too(name: str) -> None:
    for layout in CASES[name].layouts:
        check_traced(CASES[name], layout)


def test_no_case_hides_another() -> None:
    assert len(CASES) == sum(len(table.CASES) for table in TABLES)
