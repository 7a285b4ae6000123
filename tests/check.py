"""The one command that checks everything: format, lint, types, import layers, then tests and doctests.

    python -m tests.check [PYTEST OPTION ...]

Every check runs, whatever the ones before it said; the exit code is 0 only if all passed.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sysconfig.get_path("scripts"))


def main() -> int:
    """Run all checks and return the exit code."""
    checks = [
        [str(SCRIPTS / "ruff"), "format", "--check", "."],
        [str(SCRIPTS / "ruff"), "check", "."],
        [str(SCRIPTS / "pyrefly"), "check", "--python-interpreter-path", sys.executable],
        [str(SCRIPTS / "lint-imports")],
        [sys.executable, "-m", "pytest", *sys.argv[1:]],
    ]
    failed = []
    for command in checks:
        shown = " ".join(Path(part).name for part in command)
        print(f"== {shown}", flush=True)
        if subprocess.run(command, cwd=ROOT).returncode != 0:
            failed.append(shown)
    for shown in failed:
        print(f"failed: {shown}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
