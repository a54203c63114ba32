"""What lcmt-eval translates and what it holds translations against."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightconv_mt.config import EvalConfig, TrainRunConfig, load_run_config
from lightconv_mt.data.corpus import read_source
from lightconv_mt.data.lines import read_lines
from lightconv_mt.errors import DataError
from lightconv_mt.evaluation.tokenised import signs_of_tokenisation
from lightconv_mt.scoring import load_test_set


@dataclass(frozen=True)
class Lines:
    """Lines and where they come from, for messages."""

    name: str
    lines: list[str]


@dataclass(frozen=True)
class TestData:
    """What is translated and what it is held against.

    Attributes:
        src: source lines; None where only translations and references are given.
        references: one or more streams of as many lines.
        tgt_lang: language of the references, where it is known.
        name: where the references come from.
    """

    src: list[str] | None
    references: list[list[str]]
    tgt_lang: str | None
    name: str


def read_test_data(config: EvalConfig) -> TestData:
    """Read the test set, files, or test data of the runs that a configuration names.

    Raises:
        DataError: when there is none, it cannot be read, its sides differ in length, or its
            references look tokenised and `allow_tokenized` is off.
    """
    named = config.langpair.split("-")[-1] if config.langpair is not None else None
    if config.test_set is not None:
        assert config.langpair is not None
        src, references = load_test_set(config.test_set, config.langpair)
        return TestData(src, references, named, f"test_set={config.test_set}")
    runs = [load_run_config(run_dir) for run_dir in config.run_dir]
    _check_languages(config, runs)
    tgt_lang = named or (runs[0].data.tgt_lang if runs else None)
    source = None
    if config.ref:
        streams = [Lines(path, list(read_lines(path))) for path in config.ref]
        if config.src is not None:
            source = Lines(config.src, list(read_lines(config.src)))
    else:
        source, reference = _own_test_set(config, runs)
        streams = [reference]
    check_line_counts([*([source] if source else []), *streams])
    if source is not None and not source.lines:
        raise DataError(f"{source.name} has no lines; give at least one to translate")
    for stream in streams:
        check_detokenised(stream, allow_tokenized=config.allow_tokenized)
    return TestData(
        source.lines if source else None,
        [stream.lines for stream in streams],
        tgt_lang,
        streams[0].name,
    )


def check_line_counts(streams: Sequence[Lines]) -> None:
    """Raise DataError unless all streams have as many lines as the first."""
    first = streams[0]
    for other in streams:
        if len(other.lines) != len(first.lines):
            raise DataError(
                f"{first.name} has {len(first.lines):,} lines but {other.name} has "
                f"{len(other.lines):,}; line n of one must belong to line n of the other"
            )


def check_detokenised(stream: Lines, *, allow_tokenized: bool) -> None:
    """Raise DataError when lines look tokenised, which makes all scores wrong, unless allowed."""
    signs = signs_of_tokenisation(stream.lines)
    if signs is not None and not allow_tokenized:
        raise DataError(
            f"{stream.name} looks tokenised: {signs}; detokenise it, or let it through with "
            f"allow_tokenized=true"
        )


def _check_languages(config: EvalConfig, runs: list[TrainRunConfig]) -> None:
    for run_dir, run in zip(config.run_dir[1:], runs[1:], strict=True):
        for key in ("src_lang", "tgt_lang"):
            first, other = getattr(runs[0].data, key), getattr(run.data, key)
            if first != other:
                raise DataError(
                    f"{config.run_dir[0]} and {run_dir} cannot be compared: data.{key} is {first} "
                    f"in one and {other} in the other; give runs of the same languages"
                )


def _own_test_set(config: EvalConfig, runs: list[TrainRunConfig]) -> tuple[Lines, Lines]:
    """Sources and references of `data.test`, which all runs must share."""
    test = runs[0].data.test
    if test is None:
        raise DataError(
            f"{config.run_dir[0]} has no test set of its own (data.test); "
            f"give src=FILE and ref=FILE"
        )
    for run_dir, run in zip(config.run_dir[1:], runs[1:], strict=True):
        if run.data.test != test:
            raise DataError(
                f"{config.run_dir[0]} and {run_dir} have different test sets (data.test); "
                f"give src=FILE and ref=FILE, or test_set and langpair"
            )
    pairs = list(read_source(test, runs[0].data))
    name = f"data.test of {config.run_dir[0]}"
    return Lines(name, [pair.src for pair in pairs]), Lines(name, [pair.tgt for pair in pairs])
