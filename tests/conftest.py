"""Shared fixtures: seeds, tiny sizes, and the folder of reference data where it is present."""

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random numbers, on one thread."""
    torch.manual_seed(1)
    torch.set_num_threads(1)


@pytest.fixture
def golden() -> Path:
    """Recorded inputs and outputs of fairseq."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip(f"the golden data is not here: {folder}")
    return folder
