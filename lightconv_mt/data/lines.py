"""Byte-exact lines: only the newline byte ends one, so no other character can shift a corpus."""

import gzip
import itertools
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path

from lightconv_mt.errors import DataError

logger = logging.getLogger(__name__)

_BOM = b"\xef\xbb\xbf"


class BadUtf8(Enum):
    """What to do with bytes that are no UTF-8: put U+FFFD and count the lines, or stop."""

    replace = "replace"
    error = "error"


def read_lines(path: str | Path, *, on_bad_utf8: BadUtf8 = BadUtf8.replace) -> Iterator[str]:
    r"""Lines of a text file, gzipped or not.

    Only \n ends a line; one \r before it is dropped, as is a byte-order mark at the very beginning.
    U+2028, NEL, VT, FF and lone \r stay inside their line.

    Args:
        path: of the file; gzip is told by its first bytes.
        on_bad_utf8: replace or refuse invalid bytes.

    Yields:
        Each line without its end.

    Raises:
        DataError: when the file cannot be read, is a truncated gzip, or holds invalid bytes that
            are to be refused.
    """
    bad = 0
    for number, raw in enumerate(read_raw_lines(path), start=1):
        line, replaced = decode_line(raw)
        if replaced:
            bad += 1
            if on_bad_utf8 is BadUtf8.error:
                raise DataError(
                    f"{path}, line {number}: invalid UTF-8; set data.on_bad_utf8=replace or mend it"
                )
        yield line
    if bad:
        logger.warning("%s: invalid UTF-8 replaced in %d lines", path, bad)


def read_raw_lines(path: str | Path) -> Iterator[bytes]:
    """Bytes of each line with its end, as `read_lines` tells lines apart.

    Raises:
        DataError: when the file cannot be read or is a truncated gzip.
    """
    path = Path(path)
    try:
        # Opened once: what a pipe has given does not come again.
        with path.open("rb") as file:
            zipped = file.peek(2).startswith(b"\x1f\x8b")
            yield from without_mark(gzip.GzipFile(fileobj=file) if zipped else file)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        ) from error


def check_rereadable(path: str | Path) -> None:
    """Refuse what can be read only once, such as a pipe; what is not there is not refused.

    Raises:
        DataError: when it is neither a file nor a folder.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(f"{path} is no file, and is read several times; write it to one first")


def without_mark(raw_lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines without a byte-order mark at the very beginning."""
    lines = iter(raw_lines)
    # Once at its end, a terminal must not be asked again: it would wait for more.
    first = next(lines, None)
    if first is not None:
        yield first.removeprefix(_BOM)
        yield from lines


def read_chunks(
    path: str | Path, chunk_lines: int, *, wanted: Callable[[int], bool]
) -> Iterator[tuple[int, list[bytes]]]:
    """A file `chunk_lines` lines at a time, of which those not wanted are only counted.

    Args:
        path: as of `read_lines`.
        chunk_lines: lines of a chunk; the last has those that are left.
        wanted: whether to keep the lines of a chunk, by its number from 0.

    Yields:
        How many lines each chunk has, and their bytes, none for an unwanted one.
    """
    lines = read_raw_lines(path)
    for number in itertools.count():
        some = itertools.islice(lines, chunk_lines)
        kept = list(some) if wanted(number) else []
        size = len(kept) or sum(1 for _ in some)
        if not size:
            return
        yield size, kept


def decode_line(raw: bytes) -> tuple[str, bool]:
    r"""Text of a line without its \n or \r\n, and whether invalid bytes were replaced."""
    raw = raw.removesuffix(b"\n").removesuffix(b"\r") if raw.endswith(b"\n") else raw
    try:
        return raw.decode("utf-8"), False
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace"), True
