"""Score finished runs and print a row for each: validation picks the checkpoint, then the test set.

    scripts/results.py runs/multi30k_lightconv runs/multi30k_lightconv_2 runs/multi30k_attention

Runs that differ in nothing but their seed share a row of means. Words after --eval are those of
lcmt-eval that say how to search and how words are told apart, the same for all runs.
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import mean

from lightconv_mt.config import EvalConfig, TrainRunConfig, load_run_config
from lightconv_mt.data.corpus import SourceConfig, read_source
from lightconv_mt.decode.translator import Translator
from lightconv_mt.errors import ConfigError, DataError, LcmtError
from lightconv_mt.evaluation.systems import write_text
from lightconv_mt.scoring import Score, score
from lightconv_mt.trained_run import load_translator
from lightconv_mt.typed import to_plain
from sweep.measure import logged, scoring_config
from sweep.table import spread

HEAD = [
    *("run", "seeds", "parameters", "steps", "training, minutes", "checkpoint", "validation"),
    *("test BLEU", "lower-cased", "chrF2", "TER"),
]

# What may be given of lcmt-eval; what is scored, and by what, is the same in every table.
TAKEN = ("decode", "runtime", "max_tokens", "max_source_tokens", "tokenize", "lowercase")


@dataclass(frozen=True)
class Found:
    """What one run is worth.

    Attributes:
        run: its folder.
        seed: of the run.
        parameters: of the model.
        steps: trained.
        minutes: spent on steps and validations, as logged.
        validation: BLEU by checkpoint.
        checkpoint: the better one, which the others are of.
        test: BLEU, BLEU without case, chrF2, TER.
        signatures: sacrebleu's, of these.
    """

    run: Path
    seed: int
    parameters: int
    steps: int
    minutes: float
    validation: dict[str, float]
    checkpoint: str
    test: list[float]
    signatures: list[str]


def main() -> int:
    """Print the table, and below it how it came about; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument(
        "--eval",
        nargs="+",
        default=["decode.beam_size=5"],
        metavar="WORD",
        help="key=value of lcmt-eval (default: decode.beam_size=5)",
    )
    parser.add_argument("--json", type=Path, help="file for every figure")
    arguments = parser.parse_args()
    try:
        check_runs(arguments.runs)
        check_words(arguments.eval)
        rows = group([(run, load_run_config(run)) for run in arguments.runs])
        found = [[evaluate(run, arguments.eval) for run in row] for row in rows]
    except LcmtError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for line in [HEAD, ["---"] * len(HEAD), *map(cells, found)]:
        print(f"| {' | '.join(line)} |")
    signatures = [each.signatures for row in found for each in row]
    print(f"\n{date.today()}, {platform.machine()}, Python {platform.python_version()}", end="")
    print("".join(f", {name} {version(name)}" for name in ("torch", "sentencepiece", "sacrebleu")))
    for name, of_runs in zip(HEAD[-4:], zip(*signatures, strict=True), strict=True):
        print(f"{name}: {' or '.join(sorted(set(of_runs)))}")
    print(f"`{' '.join(arguments.eval)}`")
    if arguments.json is not None:
        figures = [[{**asdict(each), "run": str(each.run)} for each in row] for row in found]
        try:
            write_text(str(arguments.json), json.dumps(figures, indent=1) + "\n")
        except DataError as error:  # the table above is not lost
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    return 0


def check_runs(runs: Sequence[Path]) -> None:
    """Raise ConfigError for a run that would count twice in a mean."""
    places = [run.resolve() for run in runs]
    for run, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{run} is given twice; give each run once")


def check_words(words: Sequence[str]) -> None:
    """Raise ConfigError for a word of lcmt-eval that would change nothing here."""
    for word in words:
        if word.lstrip("+").partition("=")[0].partition(".")[0] not in TAKEN:
            raise ConfigError(
                f"--eval {word}: the runs' own validation and test sets are scored here, with the "
                f"better of two checkpoints; give {', '.join(TAKEN)}, or use lcmt-eval"
            )


def group(runs: Sequence[tuple[Path, TrainRunConfig]]) -> list[list[Path]]:
    """Runs in rows: those whose configurations differ in run_dir and seed at most."""
    rows: dict[str, list[Path]] = {}
    for run, config in runs:
        same = to_plain(replace(config, run_dir="one", seed=0))
        rows.setdefault(json.dumps(same, sort_keys=True), []).append(run)
    return [*rows.values()]


def evaluate(run: Path, words: Sequence[str]) -> Found:
    """Score one run.

    Args:
        run: its folder.
        words: of lcmt-eval.

    Raises:
        DataError: when it has no test data, or logged no times.
        CheckpointError: when it has no such checkpoint.
    """
    trained = load_run_config(run)
    if trained.data.test is None or trained.data.valid is None:
        raise DataError(f"{run} has no test set or no validation set of its own; scores need both")
    config = scoring_config(run, words)
    steps, minutes = training_time(run)  # before anything is translated: it may be refused
    # A run without an average of its own may have been given one since.
    averaged = trained.checkpoint.average_last > 0 or (run / "average").exists()
    translators, validation = {}, {}
    for checkpoint in ("best", "average") if averaged else ("best",):
        translators[checkpoint] = load_translator(
            str(run), checkpoint, config.runtime, config.max_source_tokens
        )
        (bleu,) = translate_and_score(
            translators[checkpoint],
            trained.data.valid,
            config,
            trained,
            [("bleu", config.lowercase)],
        )
        validation[checkpoint] = bleu.value
    chosen = max(validation, key=lambda checkpoint: validation[checkpoint])
    translator = translators[chosen]
    metrics = [("bleu", False), ("bleu", True), ("chrf", False), ("ter", False)]
    scores = translate_and_score(translator, trained.data.test, config, trained, metrics)
    return Found(
        run=run,
        seed=trained.seed,
        parameters=sum(each.numel() for each in translator.model.parameters()),
        steps=steps,
        minutes=minutes,
        validation=validation,
        checkpoint=chosen,
        test=[each.value for each in scores],
        signatures=[each.signature for each in scores],
    )


def translate_and_score(
    translator: Translator,
    source: SourceConfig,
    config: EvalConfig,
    trained: TrainRunConfig,
    metrics: Sequence[tuple[str, bool]],
) -> list[Score]:
    """Scores of one set's translations, for each metric and whether it is without case."""
    pairs = [*read_source(source, trained.data)]
    lines = [pair.src for pair in pairs]
    found = translator.translate(lines, config.decode, max_tokens=config.max_tokens)
    hypotheses = [translation.text for translation in found]
    return [
        each
        for metric, lowercase in metrics
        for each in score(
            hypotheses,
            [[pair.tgt for pair in pairs]],
            metrics=[metric],
            tokenize=config.tokenize,
            lowercase=lowercase,
            tgt_lang=trained.data.tgt_lang,
        )
    ]


def training_time(run: Path) -> tuple[int, float]:
    """Steps, and minutes spent on them and on validations; pauses between resumptions left out."""
    speeds, tokens, validations = logged(
        run, "train/tokens_per_second", "train/tokens_per_step", "valid/seconds"
    )
    ends = [0, *(event.step for event in speeds)]
    paces = [size.value / speed.value for size, speed in zip(tokens, speeds, strict=True)]
    # The last steps are fewer than are logged together.
    ends, paces = [*ends, max(ends[-1], validations[-1].step)], [*paces, paces[-1]]
    spans = pairwise(ends)
    seconds = sum((end - start) * pace for (start, end), pace in zip(spans, paces, strict=True))
    return ends[-1], (seconds + sum(event.value for event in validations)) / 60


def cells(row: Sequence[Found]) -> list[str]:
    """A row of the table."""
    first = row[0]
    chosen = [each.validation[each.checkpoint] for each in row]
    return [
        f"`{first.run.name}`",
        ", ".join(str(each.seed) for each in row),
        f"{first.parameters / 1e6:.2f} M",
        f"{first.steps:,}",
        f"{mean(each.minutes for each in row):.0f}",
        ", ".join(each.checkpoint for each in row),
        spread(chosen, ".2f"),
        *(spread(values, ".2f") for values in zip(*(each.test for each in row), strict=True)),
    ]


if __name__ == "__main__":
    sys.exit(main())
