"""The systems that lcmt-eval scores: translations read from files, or made by runs."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lightconv_mt.config import EvalConfig
from lightconv_mt.data.lines import read_lines
from lightconv_mt.errors import DataError
from lightconv_mt.evaluation.data import Lines, TestData, check_detokenised, check_line_counts
from lightconv_mt.evaluation.speed import Speed, reset_peak_memory, timed_translation
from lightconv_mt.evaluation.tokenised import signs_of_tokenisation
from lightconv_mt.trained_run import load_translator
from lightconv_mt.whole_files import replace_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class System:
    """One system's translations of the test data.

    Attributes:
        name: the file or run folder.
        hypotheses: one line a sentence.
        speed: how fast they came; None where they were given.
    """

    name: str
    hypotheses: list[str]
    speed: Speed | None


def read_systems(config: EvalConfig, data: TestData) -> Iterator[System]:
    """Read the translations that `hyp` names, checked against the references.

    Raises:
        DataError: when a file cannot be read, has another number of lines than the references, or
            looks tokenised and `allow_tokenized` is off.
    """
    for path in config.hyp:
        stream = Lines(path, list(read_lines(path)))
        check_line_counts([stream, Lines(data.name, data.references[0])])
        check_detokenised(stream, allow_tokenized=config.allow_tokenized)
        yield System(path, stream.lines, None)


def translate_systems(config: EvalConfig, data: TestData) -> Iterator[System]:
    """Translate the test data with each run and write what `output` asks for.

    Raises:
        DataError: when there is no source, or an output cannot be written.
        CheckpointError: when a run has no such checkpoint or it is damaged.
    """
    if data.src is None:
        raise DataError(
            "nothing to translate; give src=FILE and ref=FILE, or test_set and langpair"
        )
    for place, run_dir in enumerate(config.run_dir):
        reset_peak_memory()
        translator = load_translator(
            run_dir,
            config.checkpoint,
            config.runtime,
            config.max_source_tokens,
            channel=config.channel,
        )
        hypotheses, speed = timed_translation(
            translator,
            data.src,
            config.decode,
            max_tokens=config.max_tokens,
            latency_sentences=config.latency_sentences if config.latency else 0,
        )
        logger.info("%s: %s", run_dir, speed.text)
        signs = signs_of_tokenisation(hypotheses)
        if signs is not None:
            logger.warning("translations of %s look tokenised: %s", run_dir, signs)
        if config.output:
            write_text(config.output[place], "".join(f"{line}\n" for line in hypotheses))
        yield System(run_dir, hypotheses, speed)


def write_text(path: str, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        DataError: when it cannot be written.
    """
    try:
        replace_text(Path(path), text)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
