"""The house rules that no linter knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("unified", "schedulers", "separator", "fusion", "serving")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_has_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_what_the_command_line_imports_is_free_of_torch() -> None:
    modules = "unified.run_command, unified.inspect_command, unified.cli, schedulers.registry, unified.queue_parsers"
    modules += ", unified.service.serve_command, unified.service.http_process, unified.service.queue_command"
    modules += ", unified.service.client, unified.simulate_command"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_only_these_files_may_unpickle() -> None:
    risky = ("weights_only=False", "cloudpickle.loads", "torch.jit.load", "torch.export.load", "pickle.load")
    users = {str(path.relative_to(ROOT)) for path in SOURCES if any(call in path.read_text() for call in risky)}
    # the second reads back archives that it wrote, and tells its callers to trust what they name; the third only what it wrote
    assert users == {"unified/submission/trusted.py", "fusion/graph/saving.py", "unified/answering/writing.py"}
