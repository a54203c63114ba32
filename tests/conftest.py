"""Shared fixtures: seeds, tiny sizes, and the folder of reference data where it is present."""

import platform
import signal
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import torch
from toy_language import configure, data, device

__all__ = ["configure", "data", "device"]  # fixtures

FIGURES = "<!-- figures -->", "<!-- end of figures -->"
# Cases of these tests are counted one by one.
COUNTED = {
    "tests/nasty/": "nasty inputs, each with an answer of its own",
    "test_configs.py::test_every_mistake": "bad configurations, each with a line of its own",
}
SHARED = Path(__file__).resolve().parents[2] / "shared"

# What is started in the background ignores Ctrl-C, and so would everything that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make reliability` asks for more than continuous integration has time for."""
    parser.addoption("--thorough", action="store_true", help="many more kills, inputs and cases")
    parser.addoption("--figures", help="file that keeps what was counted, between two marks")


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Takes a promise and what a test counted of it, for the end of the output."""
    return lambda promise, found: request.node.user_properties.append((promise, found))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what was counted; `--figures FILE` keeps it as a table, between two marks in FILE."""
    passed = [
        report for report in terminalreporter.stats.get("passed", []) if report.when == "call"
    ]
    rows = sorted({(*row,) for report in passed for row in report.user_properties})
    for part, what in COUNTED.items():
        count = sum(part in report.nodeid for report in passed)
        rows += [(what, f"{count}, 0 wrong")] if count else []
    if not rows:
        return
    terminalreporter.section("figures")
    for promise, found in rows:
        terminalreporter.write_line(f"{promise}: {found}")
    path = terminalreporter.config.getoption("--figures")
    if path is not None:
        head, rest = Path(path).read_text().split(FIGURES[0])
        table = "".join(f"| {promise} | {found} |\n" for promise, found in rows)
        note = f"{date.today()}, {platform.machine()}, Python {platform.python_version()}, torch"
        text = f"\n{note} {torch.__version__}\n\n| promise | counted |\n|---|---|\n{table}"
        Path(path).write_text(head + FIGURES[0] + text + FIGURES[1] + rest.split(FIGURES[1])[1])


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
