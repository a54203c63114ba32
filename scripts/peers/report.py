"""What was measured, as text: loss curves, whether they agree, the table, and the targets."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from peers.process import Window
from peers.sides import Side

# Losses of two sides of one architecture may be so far apart: label-smoothed, in nats a target
# token, means of the second half of the updates that both have made. It is updates that they share:
# the learning rate follows them, and while it rises they count for more than tokens, of which
# fairseq's batches hold a tenth fewer (it rounds sentences down to eights). Before anything is
# learned seeds alone differ by 0.12 (standard deviation of eight; the commonest tokens, a fifth of
# the text, have the logits that the draw gave them), so until ENOUGH updates only gross mistakes
# are told.
TOLERANCE, EARLY_TOLERANCE, ENOUGH = 0.15, 0.6, 30
MARKS = 8


@dataclass
class Row:
    """A side at one size.

    Attributes:
        side: which.
        size: tiny or small.
        about: what its process said of itself.
        windows: in the order of the rounds.
    """

    side: Side
    size: str
    about: dict[str, Any]
    windows: list[Window] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Name, precision and whether it was given the settings of memory."""
        malloc = ", malloc" if self.side.malloc and not self.side.ours else ""
        return f"{self.side.name} {self.side.precision}{malloc}"

    @property
    def speed(self) -> float:
        """Target tokens a second, median of the windows."""
        return median(window.speed for window in self.windows)

    @property
    def best(self) -> float:
        """Target tokens a second of the best window."""
        return max(window.speed for window in self.windows)

    @property
    def peak_megabytes(self) -> float:
        """The most that was resident."""
        return max(window.peak_megabytes for window in self.windows)

    @property
    def updates(self) -> int:
        """Updates made, those before the clock too."""
        return sum(len(window.done) for window in self.windows)

    def mean_losses(self, start: int, end: int) -> tuple[float, float]:
        """Label-smoothed loss and likelihood in nats a token, of the updates from start to end."""
        done = [each for window in self.windows for each in window.done][start:end]
        tokens, loss, nll = (sum(column) for column in zip(*done, strict=True))
        return loss / tokens, nll / tokens


def show_curves(rows: Sequence[Row]) -> list[str]:
    """Losses of the sides of one size after as many updates, as Markdown."""
    common = min(row.updates for row in rows)
    marks = min(MARKS, common)
    ends = [common * mark // marks for mark in range(marks + 1)]
    heads = list(map(str, ends[1:]))
    lines = [f"| {rows[0].size}: loss / nll up to update | {' | '.join(heads)} |"]
    lines.append("|---|" + "---|" * len(heads))
    for row in rows:
        means = [row.mean_losses(*pair) for pair in zip(ends[:-1], ends[1:], strict=True)]
        cells = " | ".join(f"{loss:.3f} / {nll:.3f}" for loss, nll in means)
        lines.append(f"| {row.title} | {cells} |")
    return lines


def judge_losses(rows: Sequence[Row]) -> tuple[list[str], bool]:
    """Whether our losses are those of the peer of the same architecture, fairseq's.

    Compared is the mean label-smoothed loss over the second half of the updates that both have
    made, at one size.

    Returns:
        A line for each comparison, and whether all hold.
    """
    lines, agree = [], True
    for row in rows:
        for peer in rows:
            if not row.side.ours or peer.side.program != "fairseq_side":
                continue
            if row.side.model != peer.side.model:
                continue
            common = min(row.updates, peer.updates)
            ours, theirs = (each.mean_losses(common // 2, common)[0] for each in (row, peer))
            tolerance = TOLERANCE if common >= ENOUGH else EARLY_TOLERANCE
            within = abs(ours - theirs) <= tolerance
            agree &= within
            lines.append(
                f"{row.size}: {row.title} {ours:.3f}, {peer.title} {theirs:.3f} nats a token: "
                f"{abs(ours - theirs):.3f} apart, "
                f"{'within' if within else 'MORE THAN'} {tolerance}"
                + (f" (too few updates to tell more: {common})" if common < ENOUGH else "")
            )
    return lines, agree


def show_table(rows: Sequence[Row]) -> list[str]:
    """Speed and memory of all rows, as Markdown."""
    heads = (
        *("side", "size", "precision", "threads", "parameters", "target tok/s, median"),
        *("best window", "x best stock peer", "x best malloc peer", "peak MB", "other load, cores"),
        "products, G/s",
    )
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        bars = [best_peer(rows, row, malloc=malloc) for malloc in (False, True)]
        malloc = ", malloc" if row.side.malloc and not row.side.ours else ""
        cells = (
            f"{row.side.name}{malloc}",
            row.size,
            row.side.precision,
            str(row.about["threads"]),
            f"{row.about['parameters'] / 1e6:.2f} M",
            f"{row.speed:,.0f}",
            f"{row.best:,.0f}",
            *(f"{row.speed / bar.speed:.2f}" if bar else "" for bar in bars),
            f"{row.peak_megabytes:,.0f}",
            f"{median(window.other_load for window in row.windows):.2f}",
            f"{median(window.products for window in row.windows) / 1e9:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def best_peer(rows: Sequence[Row], beside: Row, *, malloc: bool) -> Row | None:
    """The fastest peer of a row's size, stock or with the settings of memory; None where none ran.

    A row in fp32 stands beside peers in fp32, one in bf16 beside all.
    """
    peers = [
        row
        for row in rows
        if not row.side.ours
        and (row.size, row.side.malloc) == (beside.size, malloc)
        and row.side.precision in ("fp32", beside.side.precision)
    ]
    return max(peers, key=lambda row: row.speed, default=None)


@dataclass(frozen=True)
class Target:
    """What a convolution of ours is to reach beside the best peer of the same size."""

    what: str
    precision: str
    malloc: bool
    factor: float | None  # of speed; None: memory at most the peer's


TARGETS = (
    Target("2.5x the best stock peer", "bf16", False, 2.5),
    Target("1.5x the best stock peer", "fp32", False, 1.5),
    Target("1.7x the best peer with malloc settings", "bf16", True, 1.7),
    Target("memory at most the best stock peer's", "bf16", False, None),
    Target("memory at most the best stock peer's", "fp32", False, None),
)


def judge_targets(rows: Sequence[Row]) -> list[str]:
    """A line for each target: met, missed, or which side did not run."""
    lines = []
    for size in dict.fromkeys(row.size for row in rows):
        for model in ("lightconv", "dynamicconv"):
            for target in TARGETS:
                ours = [
                    row
                    for row in rows
                    if row.side.ours
                    and (row.size, row.side.model, row.side.precision)
                    == (size, model, target.precision)
                ]
                name = f"{size} {model} {target.precision}, {target.what}"
                lines.append(f"{name}: {_judge(target, ours, rows)}")
    return lines


def _judge(target: Target, ours: list[Row], rows: Sequence[Row]) -> str:
    if not ours:
        return "not judged, our side did not run"
    peer = best_peer(rows, ours[0], malloc=target.malloc)
    if peer is None:
        return f"not judged, no {'malloc' if target.malloc else 'stock'} peer ran"
    if target.factor is None:
        met = ours[0].peak_megabytes <= peer.peak_megabytes
        figures = f"{ours[0].peak_megabytes:,.0f} MB, {peer.title} {peer.peak_megabytes:,.0f} MB"
    else:
        ratio = ours[0].speed / peer.speed
        met = ratio >= target.factor
        figures = f"{ratio:.2f}x {peer.title}"
    return f"{'met' if met else 'MISSED'} ({figures})"
