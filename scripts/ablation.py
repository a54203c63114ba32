"""Train choices over seeds and put them into one table: Markdown, JSON and a picture.

    scripts/ablation.py runs/ablation experiment=multi30k_tiny variant=conv,lightconv seed=1,2,3

Words are those of lcmt-train --multirun; each combination is a run below OUT, and all seeds of one
are a row. Repeating the command goes on where it stopped and trains nothing twice. In OUT:
table.md, table.json, table.svg.
"""

import argparse
import platform
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

from arguments import positive
from lightconv_mt.errors import ConfigError, LcmtError
from lightconv_mt.whole_files import replace_text
from sweep.measure import Measurement, measure, scoring_config
from sweep.runs import DIVERGED, DONE, Run, check_words, list_runs, train_runs
from sweep.table import Row, as_json, draw, markdown


def main() -> int:
    """Train, measure, write; returns 1 when a run failed otherwise than by divergence."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the runs and the table")
    parser.add_argument("words", nargs="+", help="key=value of lcmt-train, several values swept")
    parser.add_argument("--jobs", type=positive, default=1, help="runs trained at a time")
    parser.add_argument(
        "--rounds", type=positive, default=3, help="translations of the test set timed"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=256, help="sentences decoded together"
    )
    parser.add_argument(
        "--eval",
        nargs="+",
        default=["decode.beam_size=4", "checkpoint=auto"],
        metavar="WORD",
        help="key=value of lcmt-eval (default: decode.beam_size=4 checkpoint=auto)",
    )
    arguments = parser.parse_args()
    try:
        return run(arguments)
    except LcmtError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stopped:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return 128 + stopped.args[0] if stopped.args else 130


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks for."""
    if arguments.jobs < 1 or arguments.rounds < 1 or arguments.batch_size < 1:
        raise ConfigError("--jobs, --rounds and --batch-size take 1 or more")
    runs = list_runs(arguments.out, arguments.words)
    # A wrong word is told before anything is trained.
    scoring_config(arguments.out, arguments.eval)
    for each in runs:
        check_words(each)
    codes = train_runs(runs, jobs=arguments.jobs)
    measured: dict[Run, Measurement] = {}
    for each in runs:
        if codes[each] == DONE:
            config = scoring_config(each.folder, arguments.eval)
            found = measure(
                each.folder, config, rounds=arguments.rounds, batch_size=arguments.batch_size
            )
            measured[each] = found
            print(f"{each.folder.name}: BLEU {found.bleu:.2f}", flush=True)
    rows = [
        Row(
            name=name,
            measured=[measured[each] for each in runs if each.row == name and each in measured],
            diverged=sum(each.row == name and codes[each] == DIVERGED for each in runs),
            failed=sum(each.row == name and codes[each] not in (DONE, DIVERGED) for each in runs),
        )
        for name in dict.fromkeys(each.row for each in runs)
    ]
    settings = {
        "date": str(date.today()),
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("torch", "sentencepiece", "sacrebleu")},
        "words": arguments.words,
        "eval": arguments.eval,
        "rounds": arguments.rounds,
        "batch_size": arguments.batch_size,
        "jobs": arguments.jobs,
    }
    text = markdown(rows, notes(arguments, [*measured.values()]))
    replace_text(arguments.out / "table.md", text)
    replace_text(arguments.out / "table.json", as_json(rows, settings))
    if measured:
        draw(rows, arguments.out / "table.svg")
    sys.stdout.write(text)
    return 1 if any(row.failed for row in rows) else 0


def notes(arguments: argparse.Namespace, measured: list[Measurement]) -> list[str]:
    """How the figures came about, for the reader of the table."""
    signatures = sorted({each.signature for each in measured})
    sizes = sorted({each.sentences for each in measured})
    return [
        f"{date.today()}, {platform.machine()}, torch {version('torch')}. "
        f"± is the sample standard deviation, of BLEU and training over runs, of decoding over "
        f"{arguments.rounds} rounds of each run.",
        f"BLEU on {', '.join(map(str, sizes))} sentences: {', '.join(signatures)}; "
        f"`{' '.join(arguments.eval)}`, batches of {arguments.batch_size} sentences.",
        "Training speed is the median of the target tokens a second that a run logged, "
        f"{arguments.jobs} run{'s' if arguments.jobs > 1 else ''} at a time.",
        f"`{' '.join(arguments.words)}`",
    ]


if __name__ == "__main__":
    sys.exit(main())
