"""Files that are whole or not there: written aside, synced, then renamed."""

import glob
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO


def announce(action: str, path: Path) -> None:
    """Called before every change to the disk; tests replace it to fail or to end the process."""


@contextmanager
def whole_files(*paths: Path) -> Iterator[list[BinaryIO]]:
    """Files to write, which take their names, in this order, when all of them are whole.

    Raises:
        OSError: when one cannot be written; what stood under its name is intact then.
    """
    written = [aside(path) for path in paths]
    try:
        with ExitStack() as stack:
            for path, temporary in zip(paths, written, strict=True):
                remove_leftovers(path)
                announce("write", temporary)
            yield [stack.enter_context(temporary.open("wb")) for temporary in written]
        sync(written)
        for path, temporary in zip(paths, written, strict=True):
            announce("rename", path)
            os.replace(temporary, path)
    finally:
        for temporary in written:
            temporary.unlink(missing_ok=True)
    sync(dict.fromkeys(path.parent for path in paths))


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a small file; errors as of `whole_files`."""
    with whole_files(path) as (file,):
        file.write(content)


def replace_text(path: Path, text: str) -> None:
    """Write a small file in UTF-8; errors as of `whole_files`."""
    replace_bytes(path, text.encode())


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def aside(path: Path) -> Path:
    """Where a file or folder is while it is being written."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


def remove_leftovers(path: Path) -> None:
    """Remove what processes that are gone have left of a file or folder they were writing."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        process = leftover.name.rpartition("-")[2]
        if process.isdecimal() and not _is_running(int(process)):
            remove(leftover)


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that can be done."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(paths: Iterable[Path]) -> None:
    """Have the disk hold what was written of files, or renamed in folders."""
    for path in paths:
        announce("sync", path)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True
