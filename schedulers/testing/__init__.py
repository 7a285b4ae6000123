"""The conformance kit: ``pytest -p schedulers.testing --scheduler=module:Class`` puts a scheduler under the laws.

It needs pytest and hypothesis, and nothing else imports it.
"""

from schedulers.testing.plugin import pytest_addoption, pytest_configure

__all__ = ["pytest_addoption", "pytest_configure"]
