"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Results that differ from run to run are a mistake: an operation without a deterministic way fails its test.
torch.use_deterministic_algorithms(True)


# These take longest. Processes that share the files out (make test) begin with them, so as to end together.
LONGEST = (
    "test_distributed", "test_every_option", "test_pretrain", "test_pair", "test_readme", "test_faults_kill",
    "test_hub", "test_task", "test_demo", "test_blocks", "test_shards", "test_export", "test_packing", "test_survey",
    "test_workers", "test_lost_workers", "test_exactness", "test_addresses", "test_video",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


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
