"""A corpus read once, cleaned and kept as text: part by part, so that what is done is never redone.

Every part is a folder that appears whole, with a report of its own. Once all parts are there they
are joined to one file for each side, and dropped.
"""

import glob
import json
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from lightconv_mt.data.corpus import (
    CorpusConfig,
    FilterReport,
    SentencePair,
    SourceConfig,
    broken_rule,
    files_of,
    pair_digest,
    read_source,
)
from lightconv_mt.data.lines import read_lines
from lightconv_mt.errors import DataError
from lightconv_mt.whole_files import aside, replace_text, sync, whole_files

logger = logging.getLogger(__name__)

SIDES = ("src", "tgt")
FILES = (*SIDES, *(f"held.{side}" for side in SIDES))  # of a part: training and validation pairs
REPORT = "part.json"
PARTS = "prepare.parts"
SOURCES = "sources.json"  # beside the parts: the files that they were read from


@dataclass
class PartReport:
    """What became of the pairs of one part.

    Attributes:
        read: pairs read.
        kept: those of them that are training data.
        held_out: those that are validation data instead.
        dropped: the others, by rule.
        examples: some of the dropped pairs, by rule.
        last: whether the source ends with this part.
        sizes: bytes of each file.
    """

    read: int = 0
    kept: int = 0
    held_out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[list[str]]] = field(default_factory=dict)
    last: bool = False
    sizes: dict[str, int] = field(default_factory=dict)


def prepare_corpus(
    corpus: CorpusConfig, folder: Path, *, hold_out_every: int | None, part_pairs: int
) -> None:
    """Write `train.NAME.src`, `train.NAME.tgt` and so on; goes on where a former call was stopped.

    Validation and test pairs are written as they are, the training pairs that `corpus.filter`
    keeps. Line breaks inside a sentence become spaces. Parts of files that have changed since are
    read anew.

    Args:
        corpus: what to read and how to clean it.
        folder: where to; `report.txt` there says what was dropped and why.
        hold_out_every: every so many kept training pairs one becomes validation data, in place of
            `corpus.valid`; None holds out nothing.
        part_pairs: pairs read between two savings.

    Raises:
        DataError: when something cannot be read or written, or no training pair is left, or none
            to validate with.
    """
    with _disk_errors(folder):
        valid = None if hold_out_every else corpus.valid
        for split, source in (("valid", valid), ("test", corpus.test)):  # what is wrong fails early
            if source is not None:
                with whole_files(*(folder / f"{split}.{side}" for side in SIDES)) as files:
                    count = 0
                    for pair in map(_on_one_line, read_source(source, corpus)):
                        _write_pair(files, pair)
                        count += 1
                if not count:
                    raise DataError(f"data.{split} has no sentence pair; give some, or null")
        parts = _prepare_parts(corpus, folder / PARTS, hold_out_every, part_pairs)
        report = _join_reports(parts)
        if not sum(report.kept.values()):
            raise DataError("no training pair is left; " + "; ".join(report.lines()))
        held = [path for paths in parts.values() for path in paths]
        if hold_out_every and not any((path / "held.src").stat().st_size for path in held):
            raise DataError(
                f"hold_out_every={hold_out_every} holds out none of "
                f"{sum(report.kept.values()):,} pairs; give a lower one, and another out"
            )
        for name, paths in parts.items():
            for side in SIDES:
                _join(folder / f"train.{name}.{side}", [path / side for path in paths])
        for side in SIDES if hold_out_every else ():
            _join(folder / f"valid.{side}", [path / f"held.{side}" for path in held])
        replace_text(folder / "report.txt", "".join(f"{line}\n" for line in report.lines()))
        for line in report.lines():
            logger.info("data: %s", line)
        shutil.rmtree(folder / PARTS)


def _prepare_parts(
    corpus: CorpusConfig, folder: Path, hold_out_every: int | None, part_pairs: int
) -> dict[str, list[Path]]:
    """Folders of all parts, by source, in order; those there are already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    _drop_outdated(corpus, folder)
    seen: set[bytes] = set()
    found: dict[str, list[Path]] = {}
    passed = 0  # pairs that no rule dropped, over all sources
    for name, source in corpus.train.items():
        paths, reports = _finished_parts(folder, name)
        for path, done in zip(paths, reports, strict=True):
            passed += done.kept + done.held_out
            if corpus.filter.drop_duplicates:
                seen.update(map(pair_digest, _read_part(path)))
        start = sum(done.read for done in reports)
        if start:
            logger.info("data: %s: going on after %s pairs", name, f"{start:,}")
        pairs = read_source(source, corpus, start=start) if not _is_last(reports) else iter(())
        while not _is_last(reports):
            path = folder / f"{name}.{len(paths):05d}"
            rows = map(_on_one_line, islice(pairs, part_pairs))
            done = _write_part(path, rows, corpus, seen, passed, hold_out_every, part_pairs)
            passed += done.kept + done.held_out
            paths, reports = [*paths, path], [*reports, done]
            total, kept = (sum(getattr(each, key) for each in reports) for key in ("read", "kept"))
            logger.info("data: %s: %s pairs read, %s kept", name, f"{total:,}", f"{kept:,}")
        found[name] = paths
    return found


def _drop_outdated(corpus: CorpusConfig, folder: Path) -> None:
    """Drop all parts unless every training file is what it was when the first part was begun."""
    now = json.dumps({name: stamps(source) for name, source in corpus.train.items()})
    try:
        then = (folder / SOURCES).read_text(encoding="utf-8")
    except (OSError, ValueError):
        then = None
    if then == now:
        return
    if any(folder.iterdir()):
        # Those of an unchanged source go too: they hold no duplicates of the sources before it.
        logger.warning("data: training files have changed since they were read; read anew")
        shutil.rmtree(folder)
        folder.mkdir()
    replace_text(folder / SOURCES, now)


def stamps(source: SourceConfig) -> list[tuple[str, int, int]]:
    """Path, bytes and time of the last change, in ns, of every file of a source on this disk."""
    files = [
        path
        for named in files_of(source)
        for path in (sorted(named.rglob("*")) if named.is_dir() else [named])
        if path.is_file()
    ]
    return [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]


def _write_part(
    path: Path,
    pairs: Iterator[SentencePair],
    corpus: CorpusConfig,
    seen: set[bytes],
    passed: int,
    hold_out_every: int | None,
    part_pairs: int,
) -> PartReport:
    """Write one part; `passed` pairs came before it."""
    temporary = aside(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    done, report = PartReport(), FilterReport()
    with ExitStack() as stack:
        files = [stack.enter_context((temporary / name).open("wb")) for name in FILES]
        for pair in pairs:
            done.read += 1
            rule = broken_rule(pair, corpus.filter, seen)
            if rule is not None:
                report.drop("", rule, pair)
                continue
            passed += 1
            held = hold_out_every is not None and passed % hold_out_every == 0
            _write_pair(files[2:] if held else files[:2], pair)
            done.held_out += held
            done.kept += not held
    done.dropped = dict(report.dropped.get("", {}))
    done.examples = {
        rule: [[*each] for each in shown] for (_, rule), shown in report.examples.items()
    }
    done.last = done.read < part_pairs
    done.sizes = {name: (temporary / name).stat().st_size for name in FILES}
    (temporary / REPORT).write_text(json.dumps(asdict(done)), encoding="utf-8")
    sync(temporary / name for name in (*FILES, REPORT))
    temporary.replace(path)
    return done


def _finished_parts(folder: Path, name: str) -> tuple[list[Path], list[PartReport]]:
    """Whole parts of a source, from the first one on; what follows a damaged one is dropped."""
    paths: list[Path] = []
    reports: list[PartReport] = []
    for leftover in folder.glob(".*.tmp-*"):
        shutil.rmtree(leftover)
    for path in sorted(folder.glob(f"{glob.escape(name)}.[0-9][0-9][0-9][0-9][0-9]")):
        report = _read_report(path)
        if report is None or path.name != f"{name}.{len(paths):05d}" or _is_last(reports):
            logger.warning("data: %s is damaged or out of order; read anew", path)
            shutil.rmtree(path)
            continue
        paths, reports = [*paths, path], [*reports, report]
    return paths, reports


def _read_report(path: Path) -> PartReport | None:
    """The report of a part, or None when the part is not what its report says."""
    try:
        report = PartReport(**json.loads((path / REPORT).read_text(encoding="utf-8")))
        sizes = {name: (path / name).stat().st_size for name in FILES}
    except (OSError, ValueError, TypeError):
        return None
    return report if sizes == report.sizes else None


def _is_last(reports: Sequence[PartReport]) -> bool:
    return bool(reports) and reports[-1].last


def _read_part(path: Path) -> Iterator[SentencePair]:
    """All pairs of a part that no rule dropped."""
    for prefix in ("", "held."):
        sides = (read_lines(path / f"{prefix}{side}") for side in SIDES)
        yield from map(SentencePair, *sides)


def _join_reports(parts: dict[str, list[Path]]) -> FilterReport:
    joined = FilterReport()
    for name, paths in parts.items():
        for path in paths:
            done = _read_report(path)
            assert done is not None, path
            joined.kept[name] += done.kept
            if done.held_out:
                joined.kept[f"{name} (held out)"] += done.held_out
            for rule, count in done.dropped.items():
                for src, tgt in done.examples[rule]:
                    joined.drop(name, rule, SentencePair(src, tgt))
                joined.dropped[name][rule] += count - len(done.examples[rule])
    return joined


def _on_one_line(pair: SentencePair) -> SentencePair:
    return SentencePair(*(re.sub(r"[\r\n]+", " ", side) for side in pair))


def _write_pair(files: Sequence[BinaryIO], pair: SentencePair) -> None:
    for file, side in zip(files, pair, strict=True):
        file.write(f"{side}\n".encode("utf-8", "replace"))


def _join(path: Path, parts: list[Path]) -> None:
    with whole_files(path) as (file,):
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {folder}: {error.strerror or error}; free some space or choose "
            f"another out, the same command goes on from there"
        ) from error
