"""Time training beside other toolkits: real target tokens a second, memory, and the loss.

All sides train the same sizes on the same pieces of Multi30k (LCMT_DATA holds multi30k/), by the
same recipe, each in a process of its own, which waits while another one trains: a window of updates
for each in turn, as many rounds as asked for; medians count. Peers run as they are installed, and
once more with the settings of memory that `lcmt-train` gives itself (rows marked malloc).

Before the table come the losses after as many updates. Where ours is further than a tolerance
from fairseq's of the same architecture, speeds mean nothing and the exit code is 1.
"""

import argparse
import json
import os
import platform
import sys
from contextlib import ExitStack
from dataclasses import asdict
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from arguments import positive
from lightconv_mt.errors import DataError, LcmtError
from lightconv_mt.evaluation.systems import write_text
from peers.corpus import prepare
from peers.job import SIZES, Job
from peers.process import SideProcess
from peers.report import Row, judge_losses, judge_targets, show_curves, show_table
from peers.sides import MALLOC, SIDES, Side, choose_sides, environment

PEERS = Path(__file__).parents[1] / ".peers"


def main() -> int:
    """Print losses, table and targets; 0 where the losses agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument(
        "--sides",
        nargs="+",
        choices=SIDES,
        default=list(SIDES),
        metavar="SIDE",
        help=f"of {', '.join(SIDES)}; default all",
    )
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--updates", type=positive, default=10, help="timed, of a window")
    parser.add_argument("--warm", type=int, default=3, help="untimed, before them")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--peers", type=Path, default=PEERS, help="folder with peers' packages")
    parser.add_argument("--json", type=Path, help="takes all that was measured")
    arguments = parser.parse_args()
    try:
        return bench(arguments)
    except LcmtError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


def bench(arguments: argparse.Namespace) -> int:
    """Measure what was asked for."""
    sides, lines = choose_sides(arguments.sides, arguments.peers)
    print("\n".join(lines), end="\n" if lines else "", flush=True)
    if not sides:
        print("nothing is left to measure")
        return 0
    torch.set_num_threads(arguments.threads)  # of the products that tell how fast the machine is
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        target_tokens = prepare(corpus)
        for size in arguments.sizes:
            rows += measure(arguments, size, sides, corpus, target_tokens)
            if arguments.json is not None:  # at each size: what is measured is not lost
                write_json(arguments, rows)
    versions = dict.fromkeys(row.about["version"] for row in rows)
    print(
        f"{date.today()}  {machine()}, {os.cpu_count()} cores  "
        f"Python {platform.python_version()}  torch {torch.__version__}  {', '.join(versions)}\n"
        f"{arguments.threads} threads, medians of {arguments.rounds} windows of "
        f"{arguments.updates} updates; {target_tokens:,} target tokens an epoch"
    )
    agreed = True
    for size in arguments.sizes:
        of_size = [row for row in rows if row.size == size]
        judged, agree = judge_losses(of_size)
        agreed &= agree
        print("", *show_curves(of_size), "", *judged, sep="\n")
    if not agreed:
        print("the losses differ: the speeds below are not of the same training")
    malloc = " ".join(f"{name}={value}" for name, value in MALLOC.items())
    print("", *show_table(rows), "", f"malloc: {malloc}", "", *judge_targets(rows), sep="\n")
    return 0 if agreed else 1


def measure(
    arguments: argparse.Namespace,
    size: str,
    sides: list[Side],
    corpus: Path,
    target_tokens: int,
) -> list[Row]:
    """Start all sides at one size and let them train in turn."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory()))
        measured = []
        for number, side in enumerate(sides):
            folder = scratch / str(number)
            folder.mkdir()
            job = Job(
                model=side.model,
                size=size,
                precision=side.precision,
                threads=arguments.threads,
                seed=side.seed,
                corpus=str(corpus),
                scratch=str(folder),
            )
            # -P: the folder one is in adds nothing to what can be imported.
            command = [sys.executable, "-P", "-m", f"peers.{side.program}", job.to_json()]
            variables = environment(side, arguments.peers, arguments.threads)
            process = SideProcess(side.name, command, variables, folder / "log.txt")
            stack.callback(process.close)
            if process.about["target_tokens"] != target_tokens:
                raise DataError(
                    f"{side.name} reads {process.about['target_tokens']} target tokens an epoch, "
                    f"not {target_tokens}: its pieces are others"
                )
            row = Row(side, size, {**process.about, "threads": arguments.threads})
            measured.append((process, row))
        for number in range(arguments.rounds):
            for process, row in measured:
                window = process.train(warm=arguments.warm, updates=arguments.updates)
                row.windows.append(window)
                sys.stderr.write(
                    f"{size}, round {number + 1} of {arguments.rounds}: {row.title} "
                    f"{window.speed:,.0f} target tokens/s, "
                    f"products {window.products / 1e9:.0f} G/s\n"
                )
        return [row for _, row in measured]


def write_json(arguments: argparse.Namespace, rows: list[Row]) -> None:
    """Everything measured, windows and losses of single updates too."""
    values = {
        "date": str(date.today()),
        "machine": machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
        "losses_agree": all(
            judge_losses([row for row in rows if row.size == size])[1] for size in SIZES
        ),
        "rows": [
            {
                **{key: getattr(row, key) for key in ("title", "size", "about", "speed", "best")},
                "side": row.side.name,
                "model": row.side.model,
                "precision": row.side.precision,
                "malloc": row.side.malloc,
                "peak_megabytes": row.peak_megabytes,
                "windows": [asdict(window) for window in row.windows],
            }
            for row in rows
        ],
        "targets": judge_targets(rows),
    }
    write_text(str(arguments.json), json.dumps(values, indent=1) + "\n")


def machine() -> str:
    """Name of the processor, as far as the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


if __name__ == "__main__":
    sys.exit(main())
