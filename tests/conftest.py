"""What holds for every test: one intra-op thread (two crawl on a busy machine), and no network."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from unified.nursery import Nursery

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Where inspectors come from."""
    nursery = Nursery()
    nursery.hides_gpus = True
    yield nursery
    nursery.close()
