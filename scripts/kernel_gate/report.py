"""Worst errors and tables on the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernel_gate.tolerances import LEAST_SUM, TOLERANCES

HEADINGS = ("function", "type", "quantity", "against")


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


def type_name(dtype: torch.dtype) -> str:
    """Without torch's name before it."""
    return str(dtype).removeprefix("torch.")


@dataclass
class Errors:
    """Worst errors by quantity."""

    found: dict[tuple[str, ...], Worst] = field(default_factory=dict)  # by what HEADINGS name

    def compare(
        self,
        function: str,
        quantity: str,
        against: str,
        *,
        found: Tensor,
        expected: Tensor,
        sums: Tensor,
        case: object,
    ) -> None:
        """Count the largest error of `found`, relative to the sums of an element's terms."""
        apart = (found.double().cpu() - expected).abs() / sums.clamp_min(LEAST_SUM)
        key = function, type_name(found.dtype), quantity, against
        self._add(key, apart.max().item(), TOLERANCES[found.dtype], case)

    def require(
        self,
        function: str,
        quantity: str,
        against: str,
        *,
        dtype: torch.dtype,
        holds: bool,
        case: object,
    ) -> None:
        """Count what holds exactly or not at all."""
        self._add((function, type_name(dtype), quantity, against), float(not holds), 0.0, case)

    def _add(self, key: tuple[str, ...], error: float, tolerance: float, case: object) -> None:
        self.found.setdefault(key, Worst(tolerance)).add(error, str(case))

    def print(self) -> bool:
        """Print one line a quantity; True when something was checked and all of it holds."""
        print_table(
            [*HEADINGS, "checked", "failed", "worst", "tolerance", "worst case"],
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
