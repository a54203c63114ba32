"""The rows of a sweep as Markdown, JSON and a picture."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure

from sweep.measure import Measurement

HEAD = ["", "parameters", "BLEU", "runs", "training tokens/s", "decoding sentences/s"]


@dataclass(frozen=True)
class Row:
    """One choice over its seeds.

    Attributes:
        name: of the choice.
        measured: finished runs.
        diverged: how many runs diverged.
        failed: how many ended otherwise.
    """

    name: str
    measured: list[Measurement]
    diverged: int = 0
    failed: int = 0

    @property
    def bleu(self) -> list[float]:
        """Of each finished run."""
        return [each.bleu for each in self.measured]

    @property
    def training(self) -> list[float]:
        """Target tokens a second of each finished run."""
        return [each.training_tokens_per_second for each in self.measured]

    @property
    def decoding(self) -> list[float]:
        """Sentences a second of every round of each finished run."""
        return [speed for each in self.measured for speed in each.decoding_sentences_per_second]

    def cells(self) -> list[str]:
        """The row's cells of the Markdown table."""
        runs = [f"{len(self.measured)}"] if self.measured else []
        runs += [f"{self.diverged} diverged"] if self.diverged else []
        runs += [f"{self.failed} failed"] if self.failed else []
        if not self.measured:
            return [self.name, "", "", ", ".join(runs), "", ""]
        return [
            self.name,
            f"{self.measured[0].parameters / 1e6:.2f} M",
            spread(self.bleu, ".2f"),
            ", ".join(runs),
            spread(self.training, ",.0f"),
            spread(self.decoding, ".1f"),
        ]


def spread(values: Sequence[float], form: str) -> str:
    """Mean and sample standard deviation; the mean alone of one value."""
    centre = format(mean(values), form)
    return centre if len(values) < 2 else f"{centre} ± {format(stdev(values), form)}"


def markdown(rows: Iterable[Row], notes: Sequence[str]) -> str:
    """The table, and below it how it came about."""
    lines = [HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows)]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return table + "\n" + "\n".join(notes) + "\n"


def as_json(rows: Iterable[Row], settings: dict[str, object]) -> str:
    """Every run's figures, with means and deviations of each row."""
    entries = []
    for row in rows:
        values = {"bleu": row.bleu, "training": row.training, "decoding": row.decoding}
        entries.append(
            {
                **asdict(row),
                "mean": {key: mean(each) for key, each in values.items() if each},
                "stdev": {key: stdev(each) for key, each in values.items() if len(each) > 1},
            }
        )
    return json.dumps({"settings": settings, "rows": entries}, indent=1, ensure_ascii=False) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """BLEU with its deviation and each seed, and both speeds, a line for each row."""
    import matplotlib

    shown = [row for row in rows if row.measured]
    places = [-number for number in range(len(shown))]
    figure = Figure(figsize=(10.0, 0.8 + 0.32 * len(shown)), layout="constrained")
    bleu, training, decoding = figure.subplots(1, 3, sharey=True)
    for place, row in zip(places, shown, strict=True):
        error = stdev(row.bleu) if len(row.bleu) > 1 else 0.0
        bleu.errorbar(mean(row.bleu), place, xerr=error, fmt="o", color="C0", capsize=3)
        bleu.plot(row.bleu, [place] * len(row.bleu), "|", color="C1")
    training.barh(places, [mean(row.training) for row in shown], color="C0")
    decoding.barh(places, [mean(row.decoding) for row in shown], color="C0")
    bleu.set_yticks(places, [row.name for row in shown])
    titles = ("BLEU, each seed and mean ± deviation", "training, tokens/s", "decoding, sentences/s")
    for panel, title in zip((bleu, training, decoding), titles, strict=True):
        panel.set_title(title, fontsize=9)
        panel.grid(axis="x", alpha=0.3)
    with matplotlib.rc_context({"svg.hashsalt": "sweep"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
