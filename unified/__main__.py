"""Lets ``python -m unified`` be the command line."""

from __future__ import annotations

import sys

from unified.cli import main

if __name__ == "__main__":
    sys.exit(main())
