"""Costs of all parts, for one target token, as a table and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from mixer_costs import Product

TOTAL = "all"
HEAD = ("", "parameters", "multiply-adds", "with backward", "bytes")


@dataclass(frozen=True)
class Row:
    """One part, for one real target token.

    Attributes:
        part: its name.
        parameters: that belong to it.
        forward: multiply-adds of the forward pass.
        both: those of forward and backward pass.
        moved: bytes read and written, in the precision that was measured.
        limits: least seconds on this machine, by precision.
        measured: seconds.
        precision: that was measured.
    """

    part: str
    parameters: int
    forward: float
    both: float
    moved: float
    limits: dict[str, float]
    measured: float
    precision: str

    @property
    def share(self) -> float:
        """How much of the time the limit asks for."""
        return self.limits[self.precision] / self.measured


def total(rows: Sequence[Row]) -> Row:
    """All parts together: their limits are reached one after the other."""
    return Row(
        part=TOTAL,
        parameters=sum(row.parameters for row in rows),
        forward=sum(row.forward for row in rows),
        both=sum(row.both for row in rows),
        moved=sum(row.moved for row in rows),
        limits={name: sum(row.limits[name] for row in rows) for name in rows[0].limits},
        measured=sum(row.measured for row in rows),
        precision=rows[0].precision,
    )


def as_text(rows: Sequence[Row]) -> str:
    """The table, microseconds a token, and tokens a second below it."""
    names = list(rows[0].limits)
    head = [*HEAD, *(f"limit {name}" for name in names), rows[0].precision, "share", "of all"]
    whole = total(rows)
    cells = [head]
    for row in (*rows, whole):
        cells.append(
            [
                row.part,
                f"{row.parameters:,}",
                f"{row.forward:,.0f}",
                f"{row.both:,.0f}",
                f"{row.moved:,.0f}",
                *(f"{1e6 * row.limits[name]:,.2f}" for name in names),
                f"{1e6 * row.measured:,.2f}",
                f"{row.share:.0%}",
                f"{row.measured / whole.measured:.0%}",
            ]
        )
    rates = [f"{1 / whole.limits[name]:,.0f}" for name in names]
    cells.append(["tokens/s", *[""] * 4, *rates, f"{1 / whole.measured:,.0f}", "", ""])
    return _aligned(cells)


def speeds_as_text(speeds: Mapping[Product, Sequence[float]], names: Sequence[str]) -> str:
    """Speeds of the products with weights, in thousand millions of multiply-adds a second."""
    cells = [["products with weights", *(f"{name}, G/s" for name in names)]]
    for (rows, inner, outer), found in speeds.items():
        name = f"({rows:,} x {inner:,}) ({inner:,} x {outer:,})"
        cells.append([name, *(f"{speed / 1e9:,.1f}" for speed in found)])
    return _aligned(cells)


def _aligned(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        [f"{line[0]:<{widths[0]}}"]
        + [f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True)]
        for line in cells
    ]
    return "".join(f"{'  '.join(line).rstrip()}\n" for line in lines)


def as_json(rows: Sequence[Row], settings: dict[str, object]) -> str:
    """Settings and rows, the last of them all together."""
    found = [{**asdict(row), "share": row.share} for row in (*rows, total(rows))]
    return json.dumps({**settings, "rows": found}, indent=1) + "\n"
