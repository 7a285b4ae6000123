"""The one command that checks everything: format, lint, types, import layers, then tests and doctests.

    python -m tests.check [PYTEST OPTION ...]

Every check runs, whatever the ones before it said; the exit code is 0 only if all passed. Without options the folders of tests
that start processes of their own, and often wait for them, run beside the others: together they take half as long.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sysconfig.get_path("scripts"))
PYTEST = [sys.executable, "-m", "pytest"]
BESIDE = ("tests/faults", "tests/integration")


def main() -> int:
    """Run all checks and return the exit code."""
    options = sys.argv[1:]
    checks = [
        [str(SCRIPTS / "ruff"), "format", "--check", "."],
        [str(SCRIPTS / "ruff"), "check", "."],
        [str(SCRIPTS / "pyrefly"), "check", "--python-interpreter-path", sys.executable],
        [str(SCRIPTS / "lint-imports")],
    ]
    failed = [shown(command) for command in checks if run(command) != 0]
    if options:
        failed += [shown([*PYTEST, *options])] if run([*PYTEST, *options]) != 0 else []
    else:
        beside = [*PYTEST, *BESIDE, "-p", "no:cacheprovider"]
        others = [*PYTEST, *(f"--ignore={folder}" for folder in BESIDE)]
        with running_beside(beside) as codes:
            codes.append(run(others))
        failed += [shown(command) for command, code in zip((others, beside), codes, strict=True) if code != 0]
    for command in failed:
        print(f"failed: {command}", flush=True)
    return 1 if failed else 0


def run(command: list[str]) -> int:
    """Run a check in the foreground and return its exit code."""
    print(f"== {shown(command)}", flush=True)
    return subprocess.run(command, cwd=ROOT).returncode


@contextmanager
def running_beside(command: list[str]) -> Iterator[list[int]]:
    """Run a check in the background; its exit code comes last, and what it printed after what is run meanwhile."""
    codes: list[int] = []
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield codes
        finally:
            codes.append(process.wait())
            output.seek(0)
            print(f"== {shown(command)}\n{output.read().decode(errors='replace')}", flush=True)


def shown(command: list[str]) -> str:
    """Return a command without the folders of its programs."""
    return " ".join(Path(part).name if part.startswith("/") else part for part in command)


if __name__ == "__main__":
    sys.exit(main())
