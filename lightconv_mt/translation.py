"""Lines in, lines out: what lcmt-translate does with a stream, and how translations are written."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from lightconv_mt.assemble import load_translator, open_output
from lightconv_mt.config import NbestFormat, TranslateConfig
from lightconv_mt.data.lines import decode_line, read_lines, without_mark
from lightconv_mt.decode.translator import Translation, Translator
from lightconv_mt.errors import ConfigError, DataError

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
    check_output(config)
    translator = open_translator(config)
    with open_output(config.output) as output:
        found = translator.translate_stream(
            _read(translator, config.input),
            config.decode,
            prefixes=read_lines(config.prefix) if config.prefix is not None else None,
            chunk_size=config.chunk_lines,
            max_tokens=config.max_tokens,
        )
        for number, translation in enumerate(found, start=1):
            output.write(format_translation(number, translation, config.nbest_format).encode())
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
    )


def check_output(config: TranslateConfig) -> None:
    """Refuse an output that nothing can be, or that would replace something unasked.

    Raises:
        ConfigError: when it exists.
        DataError: when its folder does not.
    """
    if config.output is None:
        return
    path = Path(config.output)
    if not path.parent.is_dir():
        raise DataError(f"cannot write output={path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise ConfigError(f"output={path} is no file; leave it out to write to standard output")
    if path.exists() and not config.overwrite:
        raise ConfigError(
            f"output={path} exists; choose another one, or set overwrite=true to replace it"
        )


def format_translation(number: int, translation: Translation, kind: NbestFormat) -> str:
    """What is written for line `number`, counted from 1."""
    if kind is NbestFormat.text:
        return f"{translation.text}\n"
    if kind is NbestFormat.jsonl:
        nbest = [{"text": text, "score": points} for text, points in translation.nbest]
        found = {"line": number, "nbest": nbest, **translation.notes}
        return json.dumps(found, ensure_ascii=False) + "\n"
    return "".join(f"{number}\t{points:.6f}\t{text}\n" for text, points in translation.nbest)


def _read(translator: Translator, path: str | None) -> Iterator[str]:
    """Lines of a file or standard input; what is no UTF-8 is counted."""
    if path is not None:
        yield from read_lines(path)
        return
    for raw in without_mark(sys.stdin.buffer):
        line, replaced = decode_line(raw)
        translator.report.bad_utf8 += replaced
        yield line
