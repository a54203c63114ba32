"""Shared fixtures: seeds, tiny sizes, and the folder of reference data where it is present."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make reliability` asks for more than continuous integration has time for."""
    parser.addoption("--thorough", action="store_true", help="many more kills, inputs and cases")


FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes a line with what a test counted, for the end of the output."""
    return request.config.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what was counted."""
    lines = terminalreporter.config.stash.get(FIGURES, [])
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether the long form of a test is asked for."""
    return bool(request.config.getoption("--thorough"))


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
