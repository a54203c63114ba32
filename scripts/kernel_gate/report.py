"""Worst errors and tables on the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Worst:
    """The worst error of one quantity over all cases."""

    tolerance: float
    error: float = 0.0
    case: str = ""
    checked: int = 0
    failed: int = 0

    def add(self, error: float, case: str) -> None:
        """Count an error; one that is not a number counts as infinite."""
        error = error if error == error else float("inf")
        self.checked += 1
        self.failed += error > self.tolerance
        if error > self.error or not self.case:
            self.error, self.case = error, case


@dataclass
class Errors:
    """Worst errors by quantity."""

    found: dict[tuple[str, ...], Worst] = field(default_factory=dict)

    def add(self, *quantity: str, error: float, tolerance: float, case: str) -> None:
        """Count one comparison."""
        self.found.setdefault(quantity, Worst(tolerance)).add(error, case)

    def print(self, headings: Sequence[str]) -> bool:
        """Print one line a quantity; True when something was checked and all of it holds."""
        print_table(
            [*headings, "checked", "failed", "worst", "tolerance", "worst case"],
            [
                [
                    *quantity,
                    worst.checked,
                    worst.failed,
                    f"{worst.error:.1e}",
                    f"{worst.tolerance:.1e}",
                    worst.case,
                ]
                for quantity, worst in sorted(self.found.items())
            ],
        )
        checked = sum(worst.checked for worst in self.found.values())
        failed = sum(worst.failed for worst in self.found.values())
        print(f"{checked} comparisons, {failed} failed" if checked else "nothing was checked")
        return checked > 0 and failed == 0


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their longest entry; numbers to the right."""
    cells = [list(headings), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [
        bool(rows)
        and all(isinstance(row[i], (int, float)) or str(row[i])[:1].isdigit() for row in rows)
        for i in range(len(headings))
    ]
    for row in cells:
        line = "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        print(line.rstrip())
