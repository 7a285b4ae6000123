"""Lets ``pytest --scheduler=module:Class`` put a scheduler under the laws, from the checkout's root."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Load the kit; not as ``pytest_plugins``, which pytest takes from nowhere but its root folder."""
    pluginmanager.import_plugin("schedulers.testing")
