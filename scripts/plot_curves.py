"""Draw the learning curves of runs: likelihoods and BLEU by step, from their metrics.jsonl."""

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

# Panels: the names of its metrics, and how their lines are drawn.
PANELS = {
    "nll": {"train/nll": "--", "valid/nll": "-"},
    "bleu": {"valid/bleu": "-"},
}
TITLES = {"nll": "nll, nats a token", "bleu": "validation BLEU"}

Curve = tuple[list[int], list[float]]


def main() -> int:
    """Draw a line for each run and metric; 2 where a run has no metrics or nothing can be drawn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path, help="an .svg file")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--from-step", type=int, default=0, help="leave out what is before")
    parser.add_argument(
        "--panels", nargs="+", choices=PANELS, default=[*PANELS], help="what is drawn"
    )
    arguments = parser.parse_args()
    if arguments.picture.suffix != ".svg":
        parser.error(f"{arguments.picture} is no .svg file; the picture comes before the runs")
    shown = arguments.panels
    figure, grid = plt.subplots(
        1, len(shown), figsize=(4.5 * len(shown), 3.4), layout="constrained", squeeze=False
    )
    panels = grid[0]
    for number, run in enumerate(arguments.runs):
        try:
            curves = read_curves(run / "metrics.jsonl", from_step=arguments.from_step)
        except (OSError, ValueError) as error:
            sys.stderr.write(f"error: {run} has no metrics that can be read: {error}\n")
            return 2
        for panel, choice in zip(panels, shown, strict=True):
            for name, style in PANELS[choice].items():
                label = run.name if style == "-" else None
                panel.plot(*curves[name], style, color=f"C{number}", label=label)
    for panel, choice in zip(panels, shown, strict=True):
        panel.set(title=TITLES[choice], xlabel="steps")
        panel.grid(alpha=0.3)
    panels[0].legend(title="dashed: training" if "nll" in shown else None)
    try:
        with matplotlib.rc_context({"svg.hashsalt": "curves"}):
            figure.savefig(arguments.picture, format="svg", metadata={"Date": None})
    except OSError as error:
        sys.stderr.write(f"error: cannot write {arguments.picture}: {error.strerror}\n")
        return 2
    return 0


def read_curves(path: Path, *, from_step: int = 0) -> dict[str, Curve]:
    """Steps and values of each metric that a panel shows.

    Args:
        path: a metrics.jsonl.
        from_step: the first one wanted.

    Raises:
        ValueError: when a line is not a JSON object with a step.
    """
    curves: dict[str, Curve] = {name: ([], []) for metrics in PANELS.values() for name in metrics}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} is no record of a step") from error
        for name, (steps, values) in curves.items():
            if name in record and step >= from_step:
                steps.append(step)
                values.append(float(record[name]))
    return curves


if __name__ == "__main__":
    sys.exit(main())
