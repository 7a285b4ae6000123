"""The option ``--scheduler`` of pytest."""

from __future__ import annotations

from pathlib import Path

import pytest

LAWS = Path(__file__).with_name("laws.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption(
        "--scheduler",
        action="append",
        default=[],
        metavar="SPELLING",
        help="put this scheduler, such as module:Class, under the laws; may be given several times",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect the laws, and nothing else, where only the option is given."""
    if config.getoption("scheduler") and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args[:] = [str(LAWS)]
