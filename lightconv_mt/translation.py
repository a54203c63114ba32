"""Lines in, lines out: what lcmt-translate does with a stream, and how translations are written."""

import json
import logging
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import BinaryIO

from lightconv_mt.config import NbestFormat, TranslateConfig
from lightconv_mt.data.lines import decode_line, read_lines, read_raw_lines, without_mark
from lightconv_mt.decode.alignment import pharaoh
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.translations import Translation
from lightconv_mt.decode.translator import Translator
from lightconv_mt.errors import ConfigError, DataError
from lightconv_mt.interactive import at_terminal, prompted_lines
from lightconv_mt.trained_run import load_translator
from lightconv_mt.whole_files import whole_files

logger = logging.getLogger(__name__)


def translate_stream(config: TranslateConfig) -> int:
    """Translate line after line; each chunk is written as soon as it is done.

    Returns:
        The exit code.

    Raises:
        ConfigError: when several processes were started, or the output exists.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "several processes can only share a file that is to become a file; "
            "give input=FILE and output=FILE"
        )
    check_outputs(config)
    translator = open_translator(config)
    is_interactive = config.input is None and config.output is None and at_terminal()
    with ExitStack() as stack:
        output, *others = (stack.enter_context(_open_output(path)) for path in outputs_of(config))
        found = translator.translate_stream(
            prompted_lines() if is_interactive else _read(translator, config.input),
            search_of(config),
            prefixes=read_lines(config.prefix) if config.prefix is not None else None,
            chunk_size=1 if is_interactive else config.chunk_lines,
            max_tokens=config.max_tokens,
        )
        for number, translation in enumerate(found, start=1):
            texts = format_translation(number, translation, config)
            for file, text in zip((output, *others), texts, strict=True):
                file.write(text.encode())
            output.flush()
    logger.info("translated: %s", translator.report.text)
    return 0


def open_translator(config: TranslateConfig) -> Translator:
    """Load what translates."""
    return load_translator(
        config.run_dir,
        config.checkpoint,
        config.runtime,
        config.max_source_tokens,
        config.long_lines,
        config.channel,
    )


def search_of(config: TranslateConfig) -> DecodeConfig:
    """The search, with alignments where a file is to have them."""
    return replace(
        config.decode, alignments=config.decode.alignments or config.alignments is not None
    )


def outputs_of(config: TranslateConfig) -> list[str | None]:
    """Files to write, None for standard output: translations, then alignments if any."""
    return [config.output, *([config.alignments] if config.alignments is not None else [])]


def check_outputs(config: TranslateConfig, *, made: Collection[str | None] = ()) -> None:
    """Refuse an output that nothing can be, or that would replace something unasked.

    Args:
        config: of the command.
        made: outputs that the same command, interrupted, has written.

    Raises:
        ConfigError: when it exists.
        DataError: when its folder does not.
    """
    for key, name in zip(("output", "alignments"), outputs_of(config), strict=False):
        if name is None:
            continue
        path = Path(name)
        if not path.parent.is_dir():
            raise DataError(f"cannot write {key}={path}: there is no folder {path.parent}")
        if path.exists() and not path.is_file():
            raise ConfigError(f"{key}={path} is no file; leave it out, or choose another one")
        if path.exists() and not config.overwrite and name not in made:
            raise ConfigError(
                f"{key}={path} exists; choose another one, or set overwrite=true to replace it"
            )


def format_translation(number: int, translation: Translation, config: TranslateConfig) -> list[str]:
    """What each of `outputs_of` gets for line `number`, counted from 1."""
    if config.nbest_format is NbestFormat.text:
        text = f"{translation.text}\n"
    elif config.nbest_format is NbestFormat.jsonl:
        nbest = [
            {"text": text, "score": points if isfinite(points) else None}  # JSON has no infinity
            for text, points in translation.nbest
        ]
        found = {"line": number, "nbest": nbest, **translation.notes}
        text = json.dumps(found, ensure_ascii=False) + "\n"
    else:
        rows = (f"{number}\t{points:.6f}\t{text}\n" for text, points in translation.nbest)
        text = "".join(rows)
    if config.alignments is None:
        return [text]
    return [text, f"{pharaoh(translation.alignment or ())}\n"]


def _read(translator: Translator, path: str | None) -> Iterator[str]:
    """Lines of a file or standard input; what is no UTF-8 is counted."""
    for raw in without_mark(sys.stdin.buffer) if path is None else read_raw_lines(path):
        line, replaced = decode_line(raw)
        translator.report.bad_utf8 += replaced
        yield line


@contextmanager
def _open_output(path: str | None) -> Iterator[BinaryIO]:
    """Standard output, or a file that appears under its name when it is whole."""
    if path is None:
        yield sys.stdout.buffer
        return
    try:
        with whole_files(Path(path)) as (file,):
            yield file
    except BrokenPipeError:
        raise  # of standard output beside it: a file has no reader to lose
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
