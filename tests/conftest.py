"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Results that differ from run to run are a mistake: an operation without a deterministic way fails its test.
torch.use_deterministic_algorithms(True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the parity numbers and real videos: STMAE_SHARED, or `shared` next to the repository."""
    folder = Path(os.environ.get("STMAE_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip("the shared folder is not here (set STMAE_SHARED)")
    return folder


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six small synthetic videos; not to be changed."""
    from stmae.data.synthetic import write_videos

    folder = tmp_path_factory.mktemp("videos")
    write_videos(folder, count=6, seconds=(1.5, 2.0))
    return folder
