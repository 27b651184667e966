"""What all rooms' tests share: the real data beside the project, and one thread per process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tiny models are slower on several threads, and bits depend on the count.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models beside the checkout; tests that need it fail without."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.fail(f"this test reads real data from {folder}, which is missing")
    return folder
