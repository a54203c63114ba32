"""A file becomes a file: its chunks are shared by processes, and kept until all are there.

The chunks that are done lie in a folder beside the output, so that the same command goes on from
there after any interruption, with as many processes as it then has.
"""

import json
import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lightconv_mt.assemble import start_runtime
from lightconv_mt.config import RuntimeConfig, TranslateConfig, load_run_config
from lightconv_mt.data.chunks import (
    ChunkWriter,
    Stored,
    is_joined,
    join_chunks,
    stored_chunks,
    total_counts,
)
from lightconv_mt.data.lines import check_rereadable, decode_line, read_chunks, read_raw_lines
from lightconv_mt.decode.shortlist import shortlist_path
from lightconv_mt.decode.translations import TranslationReport
from lightconv_mt.decode.translator import Translator
from lightconv_mt.errors import DataError
from lightconv_mt.run_folder import check_same, find_checkpoint, lock_run
from lightconv_mt.train.checkpoint import weights_digest
from lightconv_mt.train.distributed import Distributed, join_processes
from lightconv_mt.train.storage import remove_folder
from lightconv_mt.translation import (
    check_outputs,
    format_translation,
    open_translator,
    outputs_of,
    search_of,
    translate_stream,
)
from lightconv_mt.typed import to_plain
from lightconv_mt.whole_files import remove_leftovers, replace_text, sha256_of

logger = logging.getLogger(__name__)

# What may differ when a command goes on: places, whose contents are compared instead, and what
# decides no output.
FREE_KEYS = (
    *("run_dir", "checkpoint", "channel", "input", "output", "alignments", "prefix", "overwrite"),
    *("runtime.threads", "runtime.keep_memory", "runtime.parallel", "runtime.timeout_seconds"),
)
STARTED = "started.json"
WHOLE = "chunks"  # says how many there are, once all are
SECONDS_BETWEEN_NEWS = 60.0


def translate(config: TranslateConfig) -> int:
    """Translate a file chunk by chunk, or any other stream; returns the exit code.

    Raises:
        ConfigError: when the output exists, or was begun with other settings.
        DataError: when something cannot be read or written.
    """
    if config.input is not None and not Path(config.input).exists():
        raise DataError(f"cannot read {config.input}: there is no such file")
    if config.input is None or config.output is None or not Path(config.input).is_file():
        return translate_stream(config)
    device = start_runtime(config.runtime)
    _share_threads(config.runtime, device)
    folder, timeout = Path(f"{config.output}.chunks"), config.runtime.timeout_seconds
    with join_processes(config.runtime.parallel, device, timeout) as distributed:
        if not distributed.is_main:
            logging.getLogger("lightconv_mt").setLevel(logging.ERROR)
        with ExitStack() as held:  # what only the main process holds, to the end
            try:
                _translate_file(config, folder, distributed, held)
            except OSError as error:
                raise DataError(
                    f"cannot write {folder}: {error.strerror or error}; free some space or mend "
                    f"it, the same command goes on from there"
                ) from error
    return 0


def _translate_file(
    config: TranslateConfig, folder: Path, distributed: Distributed, held: ExitStack
) -> None:
    is_done = False
    with distributed.main_first():
        if distributed.is_main:
            is_done = _open_folder(config, folder, held)
    if distributed.of_main(is_done):
        return
    num_chunks = _translate_share(config, folder, distributed)
    distributed.wait()
    if distributed.is_main:
        _finish(config, folder, num_chunks)


def _open_folder(config: TranslateConfig, folder: Path, held: ExitStack) -> bool:
    """Lock the folder, new or to be gone on with; returns whether the output is there already."""
    now = _settings(config)
    remove_leftovers(folder)  # of one that was interrupted as its very last
    if not stored_chunks(folder):
        check_outputs(config)
    held.enter_context(lock_run(folder, key="output", work="written"))
    stored, outputs = stored_chunks(folder), outputs_of(config)
    if not stored:
        _start(folder, now)
        return False
    remedy = f"choose another output, or remove {folder}"
    check_same(folder, _read_started(folder), now, free=FREE_KEYS, remedy=remedy)
    made = _made_outputs(folder, stored, outputs)
    if len(made) == len(outputs):
        # It was interrupted when all was done but this.
        remove_folder(folder)
        logger.info("%s is finished; nothing to do", config.output)
        return True
    check_outputs(config, made=made)
    lines = total_counts(stored.values()).get("lines", 0)
    logger.info("going on after %s lines that are done", f"{lines:,}")
    return False


def _start(folder: Path, settings: dict[str, Any]) -> None:
    """Begin anew in a folder without a chunk, whatever it was begun with before."""
    for path in [*folder.glob("part-*"), folder / WHOLE]:
        path.unlink(missing_ok=True)  # a process of before may not have ended yet
    replace_text(folder / STARTED, json.dumps(settings, indent=1))


def _read_started(folder: Path) -> dict[str, Any]:
    """The settings that the chunks of a folder were made with.

    Raises:
        DataError: when they cannot be read.
    """
    try:
        then = json.loads((folder / STARTED).read_text())
    except (FileNotFoundError, ValueError):
        then = None
    if not isinstance(then, dict):
        raise DataError(f"{folder / STARTED} is damaged; remove {folder} to start anew")
    return then


def _made_outputs(
    folder: Path, stored: dict[int, Stored], outputs: Sequence[str | None]
) -> list[str | None]:
    """The outputs that were joined already; before all chunks are done an older one may seem so."""
    whole = folder / WHOLE
    if not whole.exists() or whole.read_text() != str(len(stored)):
        return []
    return [name for place, name in enumerate(outputs) if is_joined(stored, Path(str(name)), place)]


def _translate_share(config: TranslateConfig, folder: Path, distributed: Distributed) -> int:
    """Translate this process's part of what is missing; returns the number of all chunks."""
    turns = _Turns(stored_chunks(folder).keys(), distributed)
    distributed.wait()  # until all have seen the same chunks
    translator: Translator | None = None
    num_chunks, first, news = 0, 0, _News()
    with ChunkWriter(folder, f"part-{distributed.rank:05d}") as writer:
        for size, lines, prefixes in _read(config, turns):
            if lines:
                translator = translator or open_translator(config)
                writer.append(
                    num_chunks, *_translate_chunk(config, translator, first, lines, prefixes)
                )
                news.tell(size)
            num_chunks, first = num_chunks + 1, first + size
    return num_chunks


class _Turns:
    """Which chunks this process makes: every so many of those that are missing."""

    def __init__(self, done: Collection[int], distributed: Distributed) -> None:
        self.done, self.rank, self.size = done, distributed.rank, distributed.size
        self.missing = 0

    def take(self, number: int) -> bool:
        """Whether to make a chunk; asked once for each, in order."""
        if number in self.done:
            return False
        self.missing += 1
        return (self.missing - 1) % self.size == self.rank


class _News:
    """Says every minute how far this process is."""

    def __init__(self) -> None:
        self.lines, self.began = 0, time.monotonic()
        self.last = self.began

    def tell(self, lines: int) -> None:
        self.lines, now = self.lines + lines, time.monotonic()
        if now - self.last > SECONDS_BETWEEN_NEWS:
            self.last = now
            speed = self.lines / (now - self.began)
            logger.info("this process: %s lines, %.0f a second", f"{self.lines:,}", speed)


def _read(
    config: TranslateConfig, turns: _Turns
) -> Iterator[tuple[int, list[bytes], list[str] | None]]:
    """Lines of each chunk, none unless it is this process's, and what they are to begin with."""
    taken: list[bool] = []

    def take(number: int) -> bool:
        taken.append(turns.take(number))
        return taken[number]

    lines = read_chunks(str(config.input), config.chunk_lines, wanted=take)
    if config.prefix is None:
        for size, chunk in lines:
            yield size, chunk, None
        return
    starts = read_chunks(config.prefix, config.chunk_lines, wanted=taken.__getitem__)
    for (size, chunk), (_, begun) in zip(lines, starts, strict=True):
        yield size, chunk, [decode_line(raw)[0] for raw in begun]


def _translate_chunk(
    config: TranslateConfig,
    translator: Translator,
    first: int,
    raw_lines: Sequence[bytes],
    prefixes: list[str] | None,
) -> tuple[list[bytes], dict[str, int]]:
    """What each output gets for the lines from number `first` (from 0) on, and their counts."""
    decoded = [decode_line(raw) for raw in raw_lines]
    report = translator.report
    report.lines = first
    before = asdict(report)
    report.bad_utf8 += sum(replaced for _, replaced in decoded)
    found = translator.translate(
        [line for line, _ in decoded],
        search_of(config),
        prefixes=prefixes,
        max_tokens=config.max_tokens,
        first_line=first,
    )
    texts = [
        format_translation(number, translation, config)
        for number, translation in enumerate(found, start=first + 1)
    ]
    counts = {name: count - before[name] for name, count in asdict(report).items()}
    return ["".join(column).encode() for column in zip(*texts, strict=True)], counts


def _finish(config: TranslateConfig, folder: Path, num_chunks: int) -> None:
    """Join the chunks, say what happened to their lines, and drop the folder."""
    stored = stored_chunks(folder)
    assert sorted(stored) == list(range(num_chunks)), (len(stored), num_chunks)
    replace_text(folder / WHOLE, str(num_chunks))
    join_chunks(stored, [Path(str(name)) for name in outputs_of(config)])
    report = TranslationReport(**total_counts(stored.values()))
    logger.info("translated: %s", report.text)
    remove_folder(folder)


def _settings(config: TranslateConfig) -> dict[str, Any]:
    """All that decides the output, as JSON values.

    Raises:
        DataError: when a file cannot be read, or there are more prefixes than lines or fewer.
    """
    digests: dict[str, Any] = {
        "model": [_weights_digest(folder, config.checkpoint) for folder in config.run_dir],
        "channel": [_weights_digest(folder, "auto") for folder in config.channel],
        "input": _file_digest(str(config.input)),
    }
    if config.decode.shortlist is not None:
        path = shortlist_path(config.decode.shortlist, Path(config.run_dir[0]))
        digests["shortlist"] = _file_digest(str(path))
    if config.prefix is not None:
        digests["prefix"] = _file_digest(config.prefix)
        lines, prefixes = (
            sum(1 for _ in read_raw_lines(path)) for path in (str(config.input), config.prefix)
        )
        if lines != prefixes:
            raise DataError(
                f"{config.prefix} has {prefixes:,} prefixes for {lines:,} lines; "
                f"give one, or an empty line, for each"
            )
    plain: dict[str, Any] = json.loads(json.dumps(to_plain(config)))
    return {**plain, "files_written": len(outputs_of(config)), "sha256": digests}


def _weights_digest(run_dir: str, checkpoint: str) -> str:
    weights = find_checkpoint(Path(run_dir), checkpoint, load_run_config(run_dir))
    return weights_digest(weights)[:16]


def _file_digest(path: str) -> str:
    check_rereadable(path)
    try:
        return sha256_of(Path(path))[:16]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _share_threads(runtime: RuntimeConfig, device: torch.device) -> None:
    """Divide the processors among the processes of a machine; torchrun gives one to each."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes > 1 and runtime.threads is None and device.type == "cpu":
        there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, (there or 1) // processes))
