"""Results of a long computation, kept chunk by chunk, so that what is done is never redone.

Every process appends to a part of its own: first the bytes of a chunk, then, once these are on the
disk, an entry of its index. What follows the last whole entry was cut short and is written anew.
"""

import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Self

import portalocker

from lightconv_mt.errors import ConfigError, DataError
from lightconv_mt.whole_files import whole_files


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The entry of a chunk in the index of its part.

    Attributes:
        number: from 0.
        start: where its bytes begin in the part.
        sizes: bytes of it that belong to each output, one after the other.
        crc32s: checksums of the same.
        counts: what happened in it, by name.
    """

    number: int
    start: int
    sizes: list[int]
    crc32s: list[int]
    counts: dict[str, int]

    @property
    def end(self) -> int:
        """Where its bytes end in the part."""
        return self.start + sum(self.sizes)


@dataclass(frozen=True)
class Stored:
    """A chunk and the file that holds its bytes."""

    chunk: Chunk
    part: Path


class ChunkWriter:
    """Appends chunks to one part; the operating system's lock keeps other processes from it."""

    def __init__(self, folder: Path, name: str) -> None:
        """Open a part of a folder, and cut off what an interruption left at its end.

        Raises:
            ConfigError: when another process writes it.
        """
        self.part, index = folder / f"{name}.bytes", folder / f"{name}.jsonl"
        with ExitStack() as stack:
            self._index = stack.enter_context(index.open("ab"))
            try:
                portalocker.lock(self._index, portalocker.LOCK_EX | portalocker.LOCK_NB)
            except portalocker.LockException as error:
                raise ConfigError(
                    f"{index} is being written by another process; wait for it, or end it"
                ) from error
            self._bytes = stack.enter_context(self.part.open("ab"))
            whole, size = _read_index(self.part)
            self._end = whole[-1].end if whole else 0
            # The index first: it never says more than there is.
            for file, length in ((self._index, size), (self._bytes, self._end)):
                file.truncate(length)
                _sync(file)
            self._open = stack.pop_all()

    def append(self, number: int, texts: Sequence[bytes], counts: dict[str, int]) -> None:
        """Keep a chunk, of which `texts` go to one output each.

        Raises:
            OSError: when it cannot be written; the chunks before it are intact then.
        """
        chunk = Chunk(
            number=number,
            start=self._end,
            sizes=[len(text) for text in texts],
            crc32s=[zlib.crc32(text) for text in texts],
            counts=counts,
        )
        for file, data in (
            (self._bytes, b"".join(texts)),
            (self._index, f"{json.dumps(asdict(chunk))}\n".encode()),
        ):
            file.write(data)
            _sync(file)
        self._end = chunk.end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def stored_chunks(folder: Path) -> dict[int, Stored]:
    """The whole chunks in all parts of a folder, by number."""
    return {
        chunk.number: Stored(chunk, part)
        for part in sorted(folder.glob("*.bytes"))
        for chunk in _read_index(part)[0]
    }


def join_chunks(stored: dict[int, Stored], outputs: Sequence[Path]) -> None:
    """Write all chunks in order into files that appear under their names when they are whole.

    Args:
        stored: every chunk from 0 on.
        outputs: as many files as a chunk has sizes; the first appears last.

    Raises:
        DataError: when a part is damaged.
        OSError: when a file cannot be written.
    """
    with ExitStack() as stack:
        files = stack.enter_context(whole_files(*reversed(outputs)))[::-1]
        parts = {
            part: stack.enter_context(part.open("rb"))
            for part in {each.part for each in stored.values()}
        }
        for number in range(len(stored)):
            _copy(stored[number], parts[stored[number].part], files)


def is_joined(stored: dict[int, Stored], output: Path, place: int) -> bool:
    """Whether a file is what `join_chunks` made of all these chunks for its output `place`."""
    if not output.is_file():
        return False
    order = [stored[number].chunk for number in sorted(stored)]
    if output.stat().st_size != sum(chunk.sizes[place] for chunk in order):
        return False
    with output.open("rb") as file:
        return all(
            zlib.crc32(file.read(chunk.sizes[place])) == chunk.crc32s[place] for chunk in order
        )


def total_counts(stored: Iterable[Stored]) -> dict[str, int]:
    """Sums of the counts of chunks."""
    total: Counter[str] = Counter()
    for each in stored:
        total.update(each.chunk.counts)
    return dict(total)


def _read_index(part: Path) -> tuple[list[Chunk], int]:
    """Whole chunks of a part from its first one on, and the bytes their entries take."""
    available = part.stat().st_size if part.exists() else 0
    found: list[Chunk] = []
    size = end = 0
    index = part.with_suffix(".jsonl")
    if not index.exists():
        return [], 0
    with index.open("rb") as file:
        for line in file:
            try:
                chunk = Chunk(**json.loads(line))
                whole = chunk.start == end and chunk.end <= available
            except (ValueError, TypeError):
                break
            if not whole or not line.endswith(b"\n"):
                break
            found.append(chunk)
            size, end = size + len(line), chunk.end
    return found, size


def _copy(stored: Stored, part: BinaryIO, files: Sequence[BinaryIO]) -> None:
    chunk = stored.chunk
    part.seek(chunk.start)
    for file, size, expected in zip(files, chunk.sizes, chunk.crc32s, strict=True):
        content = part.read(size)
        if zlib.crc32(content) != expected:
            raise DataError(
                f"{stored.part} is damaged in chunk {chunk.number}; remove it, and the same "
                f"command makes what it held anew"
            )
        file.write(content)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
