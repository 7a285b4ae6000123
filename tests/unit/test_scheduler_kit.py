"""The laws can fail: policies that break one each, and are caught by it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

BREAKERS = {
    "Lazy": "test_as_few_slots_are_idle_as_can_be",
    "Doubling": "test_grants_name_ready_units_once_on_slots_that_have_room_for_them",
    "Counting": "test_deciding_twice_gives_the_same_and_changes_nothing",
    "ByPlace": "test_the_order_of_the_units_does_not_matter",
    "Gullible": "test_repeated_and_late_events_are_ignored",
    "Forgetful": "test_memory_survives_a_restart_as_json",
    "Lending": "test_the_memory_handed_out_is_a_copy",
    "Rambling": "test_an_explanation_is_one_line",
    "Ruthless": "test_victims_run_and_are_no_more_than_those_who_wait",
}
SOURCE = """
    from hypothesis import Phase, settings
    from schedulers.keyed import KeyPolicy

    # that they fail is enough here; the search for the smallest case takes most of the time
    settings.register_profile("plain", phases=[Phase.explicit, Phase.generate])
    settings.load_profile("plain")

    class Base(KeyPolicy):
        def __init__(self): self.memory = {"turns": 0}
        def key(self, unit, now): return ()

    class Lazy(Base):
        def select(self, now, ready, slots): return super().select(now, ready, slots)[:1]

    class Doubling(Base):
        def select(self, now, ready, slots): return super().select(now, ready, slots) * 2

    class Counting(Base):
        def select(self, now, ready, slots):
            self.memory["turns"] += 1
            return super().select(now, ready, slots)
        def state_dict(self): return dict(self.memory)
        def load_state_dict(self, state): self.memory = dict(state)

    class ByPlace(Base):
        def select(self, now, ready, slots):
            places = {unit.id: place for place, unit in enumerate(ready)}
            self.key = lambda unit, now: (places[unit.id],)
            return super().select(now, ready, slots)

    class Gullible(Counting):
        select = Base.select
        def on_event(self, event): self.memory["turns"] += 1

    class Forgetful(Gullible):
        def load_state_dict(self, state): pass

    class Lending(Base):
        def state_dict(self): return self.memory
        def load_state_dict(self, state): self.memory = dict(state)

    class Rambling(Base):
        def explain(self, unit, now): return "first\\nsecond"

    class Ruthless(Base):
        def victims(self, now, running, wanted, slots): return [unit.id for unit in running]
"""


def test_each_law_catches_who_breaks_it(tmp_path):
    (tmp_path / "breakers.py").write_text(textwrap.dedent(SOURCE))
    chosen = " or ".join(f"({law} and {name})" for name, law in BREAKERS.items())
    command = [sys.executable, "-m", "pytest", "-p", "breakers", "-p", "schedulers.testing", "-p", "no:cacheprovider", "-q"]
    command += ["--tb=no", "-k", chosen, *(f"--scheduler=breakers:{name}" for name in BREAKERS)]
    paths = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert f"{len(BREAKERS)} failed, " in done.stdout, done.stdout
    assert " passed" not in done.stdout
