"""A thousand mutants of an archive, in child processes; ``python -m tests.hostile.fuzz`` is the long form."""

from __future__ import annotations

import pytest

from tests.hostile.fuzz import fuzz
from tests.hostile.operators import allowed, findings


@pytest.mark.slow
def test_a_mutant_is_refused_or_is_another_model_that_fails_by_itself_at_worst():
    counts, bad = fuzz(1000, seed=1)
    assert not bad
    assert sum(counts[code] for code in counts if code.startswith("E-")) > 500
    assert counts["accepted, trains"] > 20
    reached = {"E-ZIP", "E-JSON", "E-SCHEMA", "E-HASH", "E-TENSORS", "E-NAMES", "E-GRAPH", "E-OP"}
    assert reached <= counts.keys()


@pytest.mark.slow
def test_no_operator_that_is_allowed_ends_its_process_or_leaks_memory():
    assert not list(findings(allowed(), calls=2, seed=0))
