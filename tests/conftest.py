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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu skip themselves where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no GPU here"))


@pytest.fixture
def golden() -> Path:
    """Recorded inputs and outputs of fairseq."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip(f"the golden data is not here: {folder}")
    return folder
