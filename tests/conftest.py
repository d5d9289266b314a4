"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the parity numbers and real videos: STMAE_SHARED, or `shared` next to the repository."""
    folder = Path(os.environ.get("STMAE_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip("the shared folder is not here (set STMAE_SHARED)")
    return folder
