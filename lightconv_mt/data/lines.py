"""Byte-exact lines: only the newline byte ends one, so no other character can shift a corpus."""

import gzip
import logging
import zlib
from collections.abc import Iterator
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
    path = Path(path)
    bad = 0
    try:
        with path.open("rb") as probe:
            zipped = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line, replaced = decode_line(raw.removeprefix(_BOM) if number == 1 else raw)
                if replaced:
                    bad += 1
                    if on_bad_utf8 is BadUtf8.error:
                        raise DataError(
                            f"{path}, line {number}: invalid UTF-8; "
                            f"set data.on_bad_utf8=replace or mend it"
                        )
                yield line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    if bad:
        logger.warning("%s: invalid UTF-8 replaced in %d lines", path, bad)


def decode_line(raw: bytes) -> tuple[str, bool]:
    r"""Text of a line without its \n or \r\n, and whether invalid bytes were replaced."""
    raw = raw.removesuffix(b"\n").removesuffix(b"\r") if raw.endswith(b"\n") else raw
    try:
        return raw.decode("utf-8"), False
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace"), True
