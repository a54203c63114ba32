"""Average checkpoints of a run into its `average/`, which lcmt-translate and lcmt-eval prefer.

By default the last `checkpoint.average_last` of its configuration, or all if there are fewer.
What `bleu.json` says of a former average is taken out: `lcmt-eval checkpoint=average` scores this.
"""

import argparse
import json
import sys
from pathlib import Path

from lightconv_mt.config import load_run_config
from lightconv_mt.errors import CheckpointError, LcmtError
from lightconv_mt.train.checkpoint import CheckpointStore, write_average
from lightconv_mt.whole_files import replace_text


def main() -> int:
    """Average, and say what went in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--last", type=int, metavar="N", help="the last N checkpoints")
    chosen.add_argument("--steps", type=int, nargs="+", help="the checkpoints of these steps")
    arguments = parser.parse_args()
    try:
        folder, steps = average(arguments.run_dir, arguments.last, arguments.steps)
    except LcmtError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{folder}: mean of {len(steps)} checkpoints, steps {', '.join(map(str, steps))}")
    return 0


def average(run_dir: Path, last: int | None, wanted: list[int] | None) -> tuple[Path, list[int]]:
    """Average the last or the wanted checkpoints; returns the folder and the steps."""
    config = load_run_config(run_dir).checkpoint
    store = CheckpointStore(run_dir, config)
    there = store.steps()
    if wanted is None and last is None and config.average_last:
        last = min(config.average_last, len(there))
    steps = sorted(set(wanted or (there[-last:] if last and 0 < last <= len(there) else [])))
    if not steps or not set(steps) <= set(there):
        raise CheckpointError(
            f"{run_dir} has {len(there)} checkpoints, steps "
            f"{', '.join(map(str, there)) or 'none'}; "
            f"choose among them with --last N or --steps"
        )
    folder = write_average(run_dir, [store.path(step) for step in steps])
    scores = run_dir / "bleu.json"
    if scores.exists():
        of_others = json.loads(scores.read_text())
        of_others.pop("average", None)
        replace_text(scores, json.dumps(of_others, indent=1) + "\n")
    return folder, steps


if __name__ == "__main__":
    sys.exit(main())
